"""Bad configuration is refused at the start, with the name of the setting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from infra.errors import Misconfigured, Transient
from infra.settings import Settings, duration
from services.cli import MISCONFIGURED, main


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"TALLYBOOK_KAFAK": "x:1"}, "TALLYBOOK_KAFAK is not a setting"),
        ({"TALLYBOOK_STOP_TIMEOUT": "10"}, "TALLYBOOK_STOP_TIMEOUT: '10' is not a duration; write it with units"),
        ({"TALLYBOOK_STOP_TIMEOUT": "1.5s"}, "TALLYBOOK_STOP_TIMEOUT: '1.5s' is not a duration"),
        ({"TALLYBOOK_STOP_TIMEOUT": "-10s"}, "is not a duration"),
        ({"TALLYBOOK_API_PORT": "eighty"}, "TALLYBOOK_API_PORT: "),
        ({"TALLYBOOK_API_PORT": "99999"}, "TALLYBOOK_API_PORT: "),
        ({"TALLYBOOK_BILLING_PARTITIONS": "0"}, "TALLYBOOK_BILLING_PARTITIONS: "),
        ({"TALLYBOOK_LOG_LEVEL": "loud"}, "TALLYBOOK_LOG_LEVEL: "),
        ({"TALLYBOOK_TOPIC_PREFIX": "a b"}, "TALLYBOOK_TOPIC_PREFIX: "),
        ({"TALLYBOOK_CONFIG": "/nowhere/tallybook.toml"}, "TALLYBOOK_CONFIG: cannot read /nowhere/tallybook.toml"),
    ],
)
def test_a_bad_variable_is_refused_by_name(env: Mapping[str, str], says: str) -> None:
    with pytest.raises(Misconfigured, match=re.escape(says)):
        Settings.from_env(env)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kafak = "x:1"', "configuration file: kafak is not a setting"),
        ("api_port = [8080]", "TALLYBOOK_API_PORT: "),
        ("api_port = 1\napi_port = 2", "is not TOML"),
        ("kafka: x", "is not TOML"),
    ],
)
def test_a_bad_configuration_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tallybook.toml"
    file.write_text(text)
    with pytest.raises(Misconfigured, match=re.escape(says)):
        Settings.from_env({"TALLYBOOK_CONFIG": str(file)})


def test_the_environment_wins_over_the_file_and_the_file_over_the_running_stack(tmp_path: Path) -> None:
    file = tmp_path / "tallybook.toml"
    file.write_text('redis = "redis://file"\nkafka = "file:1"')
    (tmp_path / "state.json").write_text(
        json.dumps({"addresses": {"kafka": "stack:1", "redis": "redis://stack", "postgres": "postgresql://stack"}})
    )
    env = {"TALLYBOOK_CONFIG": str(file), "TALLYBOOK_DATA": str(tmp_path), "TALLYBOOK_KAFKA": "env:1"}
    settings = Settings.from_env(env)
    assert (settings.kafka, settings.redis, settings.postgres) == ("env:1", "redis://file", "postgresql://stack")
    assert Settings.from_env(env, running=False).postgres == ""


def test_a_secret_appears_neither_in_the_text_nor_in_an_error(tmp_path: Path) -> None:
    env = {
        "TALLYBOOK_DATA": str(tmp_path),
        "TALLYBOOK_STRIPE_KEY": "sk_secret",
        "TALLYBOOK_POSTGRES": "postgresql://me:hunter2@db/x",
    }
    settings = Settings.from_env(env)
    assert not re.search("sk_secret|hunter2", f"{settings!r}{settings.redacted()}")
    with pytest.raises(Misconfigured) as refused:
        Settings.from_env(env | {"TALLYBOOK_API_PORT": "x"})
    assert not re.search("sk_secret|hunter2", str(refused.value))


def test_an_address_that_nobody_gave_is_asked_for_by_name(tmp_path: Path) -> None:
    settings = Settings.from_env({"TALLYBOOK_DATA": str(tmp_path)})
    with pytest.raises(Transient, match="TALLYBOOK_KAFKA"):
        settings.require("kafka")


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("10s", timedelta(seconds=10)),
        ("5m", timedelta(minutes=5)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
    ],
)
def test_a_duration_is_written_with_its_unit(text: str, span: timedelta) -> None:
    assert duration(text) == span


def test_the_command_line_ends_with_78_on_bad_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLYBOOK_KAFAK", "x:1")
    assert main(["config", "check"]) == MISCONFIGURED
    assert "TALLYBOOK_KAFAK" in capsys.readouterr().err
