"""Every line of a process is one JSON object, whoever wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from infra import telemetry


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[list[dict[str, object]]]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    telemetry.configure("info", service="test")
    written: list[dict[str, object]] = []
    telemetry.logger("services.payments").info("payment declined", invoice_id="inv_1", attempt=2)
    logging.getLogger("some.library").warning("it said %s", "so")
    telemetry.logger("services.payments").debug("too fine")
    try:
        raise ValueError("why")
    except ValueError:
        telemetry.logger("services.payments").exception("payment crashed")
    written.extend(json.loads(line) for line in capsys.readouterr().out.splitlines())
    yield written
    root.handlers = handlers
    root.setLevel(level)
    telemetry.forget()


def test_a_line_is_a_constant_phrase_with_fields(lines: list[dict[str, object]]) -> None:
    first = lines[0]
    assert first.pop("at")
    assert first == {
        "event": "payment declined",
        "level": "info",
        "logger": "services.payments",
        "service": "test",
        "invoice_id": "inv_1",
        "attempt": 2,
    }


def test_lines_of_libraries_take_the_same_form(lines: list[dict[str, object]]) -> None:
    assert (lines[1]["event"], lines[1]["level"], lines[1]["service"]) == ("it said so", "warning", "test")


def test_a_crash_is_one_line_with_its_traceback(lines: list[dict[str, object]]) -> None:
    assert len(lines) == 3
    assert "ValueError: why" in str(lines[2]["exception"])
