"""The embedded stack: starts, heals, stops, and comes back with its data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import kafka, postgres
from infra.settings import Settings
from services.prepare import prepare
from services.supervisor import is_owned, read_state
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]


class Local:
    """A stack of its own, driven by the command line."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_TEST_")}
        self.env["TALLYBOOK_DATA"] = str(data)

    def tallybook(self, *words: str) -> tuple[int, str]:
        """Exit code and output of one command."""
        command = [sys.executable, "-m", "services.cli", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.tallybook("status", "--json")[1])
        return parsed

    def pid(self, name: str) -> int:
        return int(read_state(self.data)["processes"][name]["pid"])

    def settings(self) -> Settings:
        return Settings.from_env(self.env)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until the supervisor has it healthy again as another process."""
        before = self.pid(name)
        os.kill(before, signal.SIGKILL)

        def healed() -> bool:
            child = read_state(self.data)["processes"][name]
            return child["pid"] not in (None, before) and child["state"] == "healthy"

        eventually(healed)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    local = Local(tmp_path_factory.mktemp("stack"))
    code, said = local.tallybook("up", "--only", "servers")
    assert code == 0, said
    yield local
    local.tallybook("down")


def remember(settings: Settings) -> None:
    with postgres.connect(postgres.worker_url(settings)) as connection:
        connection.execute("INSERT INTO app.lease (name, token) VALUES ('remembered', 7)")


def remembered(settings: Settings) -> bool:
    with postgres.connect(postgres.worker_url(settings)) as connection:
        return connection.execute("SELECT token FROM app.lease WHERE name = 'remembered'").fetchone() == (7,)


def topics_are_whole(settings: Settings) -> bool:
    """The broker answers for each partition."""
    wanted = range(settings.billing_partitions)
    return set(kafka.end_offsets(kafka.KafkaConfig.of(settings), "billing.events", wanted)) == set(wanted)


def test_killed_servers_come_back_with_what_was_committed(local: Local) -> None:
    prepare(local.settings())
    remember(local.settings())
    for name in ("postgres", "kafka", "valkey"):
        local.kill(name)
    assert remembered(local.settings())
    assert topics_are_whole(local.settings())
    assert {name: row["restarts"] >= 1 for name, row in local.status()["processes"].items()} == {
        "kafka": True,
        "postgres": True,
        "valkey": True,
    }


def test_down_leaves_nothing_running_and_up_finds_the_data(local: Local) -> None:
    before = local.settings()
    pids = [local.pid(name) for name in ("kafka", "postgres", "valkey")]
    assert local.tallybook("down")[0] == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert local.tallybook("status")[0] == 69
    code, said = local.tallybook("up", "--only", "servers")
    assert code == 0, said
    assert (local.settings().kafka, local.settings().postgres) == (before.kafka, before.postgres)
    assert remembered(local.settings())
    assert topics_are_whole(local.settings())


def test_what_a_killed_supervisor_left_is_ended_by_down(local: Local) -> None:
    local.tallybook("up", "--only", "servers")
    pids = [local.pid(name) for name in ("kafka", "postgres", "valkey")]
    os.kill(read_state(local.data)["supervisor"], signal.SIGKILL)
    eventually(lambda: not is_owned(local.data))
    code, said = local.tallybook("status")
    assert code == 1
    assert "supervisor is gone" in said
    code, said = local.tallybook("down")
    assert code == 0
    assert said.strip() == "stopped: kafka, postgres, valkey"
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_name_that_is_none_of_ours_is_refused(local: Local) -> None:
    code, said = local.tallybook("up", "--only", "kafak")
    assert code == 78
    assert "kafak" in said
