"""`tallybook schemas` says what a release would break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schemas.released import FOLDER
from services.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "avro")
    return tmp_path / "avro"


def test_the_released_schemas_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemas", "check"]) == 0
    assert "each readable by every version" in capsys.readouterr().out


def test_a_field_without_default_fails_with_its_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((folder / "events" / "ClockAdvanced.1.avsc").read_text())
    schema["fields"].append({"name": "why", "type": "string", "doc": "Why."})
    (folder / "events" / "ClockAdvanced.2.avsc").write_text(json.dumps(schema))
    assert main(["schemas", "check", str(folder)]) == 1
    assert "ClockAdvanced.2 against .1: why: added_without_default" in capsys.readouterr().err
    assert main(["schemas", "check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [each["code"] for each in report["problems"]] == ["added_without_default"]


@pytest.mark.parametrize("text", ["{", '{"name": "Other", "namespace": "tallybook.events"}', "[]"])
def test_a_file_that_is_no_schema_is_named(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "events" / "ClockAdvanced.1.avsc").write_text(text)
    assert main(["schemas", "check", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("invalid_schema: ")
    assert "ClockAdvanced.1.avsc" in said


def test_the_list_has_every_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemas", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len({row["fingerprint"] for row in rows}) == len(rows) == len(list(FOLDER.glob("*/*.avsc")))
