"""A supervised program is started, restarted when it dies, and left alone when only an operator can help."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from infra.errors import Misconfigured
from infra.local.children import MISCONFIGURED, STUCK_BACKOFF_S, Child, Program, State, is_running
from infra.local.ports import Ports
from infra.settings import Settings
from services.supervisor import PREPARE, SERVERS, SERVICES, chosen, plan
from tests.waiting import eventually


def child(tmp_path: Path, code: str, *, once: bool = False) -> Child:
    return Child(Program(name="it", command=(sys.executable, "-c", code), stage=0, once=once), tmp_path / "it.log")


def tended(one: Child, state: State) -> bool:
    one.tend(time.monotonic())
    return one.state is state


def test_a_killed_program_runs_again_soon_and_is_counted(tmp_path: Path) -> None:
    one = child(tmp_path, "import signal; signal.pause()")
    one.prepare(lambda _: None)
    eventually(lambda: tended(one, State.HEALTHY))
    first = one.describe()["pid"]
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: tended(one, State.HEALTHY) and one.describe()["pid"] != first)
    assert time.monotonic() - killed < 2
    assert one.restarts == 1
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 5)
    assert one.exit_code == -signal.SIGTERM


def test_whether_a_program_answers_is_not_asked_at_each_look(tmp_path: Path) -> None:
    """Or the end of one question would be the look that asks the next, and nothing else would get the processor."""
    asked: list[bool] = []
    command = (sys.executable, "-c", "import signal; signal.pause()")
    one = Child(
        Program(name="it", command=command, stage=0, ready=lambda: asked.append(False) or False), tmp_path / "l"
    )
    one.start()
    now = time.monotonic()
    for millisecond in range(100):
        one.tend(now + millisecond / 1000)
    assert asked == [False, False]
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 5)


@pytest.mark.parametrize("awaited", [True, False])
def test_a_program_whose_answers_are_awaited_goes_first(tmp_path: Path, awaited: bool) -> None:
    command = (sys.executable, "-c", "import signal; signal.pause()")
    one = Child(Program(name="it", command=command, stage=0, awaited=awaited), tmp_path / "it.log")
    one.start()
    pid = one.describe()["pid"]
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, pid) == (ours if awaited else ours + 10)
    assert (os.getsid(pid), os.getpgid(pid)) == (os.getsid(0), pid), "niceness counts within a session"
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 5)


def test_a_misconfigured_program_is_not_started_again(tmp_path: Path) -> None:
    one = child(tmp_path, f"raise SystemExit({MISCONFIGURED})")
    one.prepare(lambda _: None)
    eventually(lambda: tended(one, State.FAILED))
    assert not one.tend(time.monotonic() + 60)


def test_a_program_that_ends_by_itself_is_done(tmp_path: Path) -> None:
    one = child(tmp_path, "print('said')", once=True)
    one.prepare(lambda _: None)
    eventually(lambda: tended(one, State.DONE))
    assert one.last_line() == "said"


def test_a_program_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    one = child(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN); print('on', flush=True); signal.pause()")
    one.prepare(lambda _: None)
    eventually(lambda: tended(one, State.HEALTHY) and one.last_line() == "on")
    pid, started_at = one.describe()["pid"], one.started_at
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 0.2)
    assert one.exit_code == -signal.SIGKILL
    assert not is_running(pid, started_at)


def test_a_failed_preparation_is_a_problem_and_nothing_starts(tmp_path: Path) -> None:
    def fail(report: object) -> None:
        raise Misconfigured("no room")

    one = Child(Program(name="it", command=("false",), stage=0, prepare=fail), tmp_path / "it.log")
    one.prepare(lambda _: None)
    eventually(lambda: one.problem is not None)
    assert not one.tend(time.monotonic())


def test_another_process_with_the_same_number_is_not_ours() -> None:
    assert not is_running(os.getpid(), 1.0)


def test_ports_are_remembered(tmp_path: Path) -> None:
    port = Ports(tmp_path).get("kafka")
    assert Ports(tmp_path).get("kafka") == port
    assert Ports(tmp_path).get("postgres") != port


def test_a_server_given_by_address_is_not_started(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, kafka="kafka.example:9092")
    programs, addresses = plan(settings, chosen(()))
    assert [program.name for program in programs] == ["postgres", "valkey", PREPARE, *SERVICES]
    assert addresses["kafka"] == "kafka.example:9092"
    assert all(program.env.get("TALLYBOOK_KAFKA") == "kafka.example:9092" for program in programs[2:])


def test_groups_name_what_belongs_together() -> None:
    assert chosen(["stack"]) == {*SERVERS, PREPARE}
    assert chosen(()) == {*SERVERS, PREPARE, *SERVICES}
    with pytest.raises(Misconfigured, match="kafak"):
        chosen(["kafak"])


def crashing(tmp_path: Path, *positions: int) -> Child:
    """A program that ends with 70 at these positions, one after the other, and then runs."""
    code = (
        "import json, sys, pathlib, signal\n"
        f"positions, count = {positions!r}, pathlib.Path({str(tmp_path / 'count')!r})\n"
        "number = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(number + 1))\n"
        "if number == len(positions): signal.pause()\n"
        "where = {'topic': 'usage.events', 'partition': 3, 'offset': positions[number]}\n"
        "print(json.dumps({'level': 'error', **where})); print('Traceback'); sys.exit(70)"
    )
    return child(tmp_path, code)


def until_it_ended(one: Child, now: float) -> None:
    eventually(lambda: one.tend(now) and one.state is State.BACKING_OFF)


def test_what_ends_at_one_position_again_and_again_is_given_longer_pauses(tmp_path: Path) -> None:
    one = crashing(tmp_path, *[1234] * 12)
    one.prepare(lambda _: None)
    pauses, now = [], time.monotonic()
    for _ in range(12):
        until_it_ended(one, now)
        pauses.append(one._due - now)
        now = one._due
        one.tend(now)
    said = one.describe()
    assert (said["stuck_at"], said["stuck_times"], said["last_exit"]) == ("usage.events/3@1234", 12, 70)
    assert pauses == sorted(pauses)
    assert pauses[-1] == STUCK_BACKOFF_S
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 5)


def test_what_moves_on_is_not_stuck(tmp_path: Path) -> None:
    one = crashing(tmp_path, 7, 7, 8)
    one.prepare(lambda _: None)
    seen, now = [], time.monotonic()
    for _ in range(3):
        until_it_ended(one, now)
        seen.append((one.stuck_at, one.stuck_times))
        now = one._due
        one.tend(now)
    assert seen == [("usage.events/3@7", 1), ("usage.events/3@7", 2), ("usage.events/3@8", 1)]
    eventually(lambda: tended(one, State.HEALTHY))
    one.started_at -= 60  # as if it had run for a minute
    one.tend(now)
    assert one.stuck_at == ""
    one.ask_to_stop()
    one.wait_stopped(time.monotonic() + 5)
