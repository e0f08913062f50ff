"""A program that somebody keeps running: started, watched, restarted when it dies, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

FIRST_RESTART_S = 0.2
LONGEST_BACKOFF_S = 10.0
STEADY_S = 10.0
"""A program that ran this long is given the fast first restart again, unless it ended where it ended before."""
STUCK_BACKOFF_S = 60.0
"""Longest pause before a program that ended at one position of a log for the third time or more."""
_STUCK_TIMES = 3
_READ_BACK_BYTES = 64_000

_LOG_BYTES_MAX = 50_000_000
_ASK_S = 0.05  # between two questions whether a program answers
_STEPS_BACK = 10  # of niceness: a tenth of the share of a processor that they would take
MISCONFIGURED = 78
"""Exit code of a program that an operator has to help; it is not restarted."""


class State(StrEnum):
    """What a child is doing."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    HEALTHY = "healthy"
    BACKING_OFF = "backing off"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and how to see that it works."""

    name: str
    command: tuple[str, ...]
    stage: int
    """Stages start one after the other, each when the one before is healthy."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the supervisor."""
    ready: Callable[[], bool] = lambda: True
    """Whether it answers; must return within a second."""
    prepare: Callable[[Callable[[str], None]], None] | None = None
    """Run once, before the first start: downloads, formats. Is given where to report progress."""
    stop_signal: signal.Signals = signal.SIGTERM
    once: bool = False
    """Ends by itself; exit code 0 is its success."""
    awaited: bool = False
    """Somebody waits for each of its answers: where processors are short it goes before the others."""


@dataclass(slots=True)
class Child:
    """One program and the process that runs it now, if any."""

    program: Program
    log: Path
    state: State = State.WAITING
    restarts: int = 0
    exit_code: int | None = None
    """Of the process that ran last; None while one runs."""
    last_exit: int | None = None
    """Code with which it ended last; negative: the signal that ended it."""
    stuck_at: str = ""
    """Position in a log, `topic/partition@offset`, at which it ended, by its own last words; empty if it moved on."""
    stuck_times: int = 0
    """How often in a row it ended there."""
    started_at: float = 0.0
    """Seconds since the epoch."""
    note: str = ""
    """What it is busy with, for people."""
    has_worked: bool = False
    """Was healthy once, or did what it does once."""
    problem: Exception | None = None
    """Why it could not be prepared."""
    _preparing: threading.Thread | None = None
    _process: subprocess.Popen[bytes] | None = None
    _backoff_s: float = FIRST_RESTART_S
    _due: float = 0.0
    _asked_at: float = 0.0
    _said_from: int = 0
    _ran_s: float = 0.0

    def prepare(self, report: Callable[[str], None]) -> None:
        """Prepare beside everything else, then start; a failure ends in `problem`. `report` may raise to give up."""

        def work(prepare: Callable[[Callable[[str], None]], None]) -> None:
            try:
                prepare(report)
            except Exception as problem:  # handed to the supervisor, who stops everything for it
                self.problem = problem

        if self.program.prepare is None:
            self.start()
            return
        self.state = State.PREPARING
        self._preparing = threading.Thread(target=work, args=(self.program.prepare,), daemon=True)
        self._preparing.start()

    def start(self) -> None:
        """Start the program; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as out:
            self._said_from = out.tell()
            self._process = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.program.env},
                # Ctrl-C in the terminal is for the supervisor, who stops us in order. No session of its own: Linux
                # would share the processors out by session first (`sched_autogroup`), and niceness would say nothing.
                process_group=0,
            )
        if not self.program.awaited:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + _STEPS_BACK)
        self.state, self.started_at, self.exit_code = State.STARTING, time.time(), None
        self._asked_at = 0.0

    def tend(self, now: float) -> bool:
        """Take one look: reap it, restart it when due, see whether it answers. True if anything changed."""
        before = (self.state, self.restarts, self.stuck_at)
        if self._preparing is not None:
            if not self._preparing.is_alive() and self.problem is None:
                self._preparing = None
                self.start()
        elif self.state is State.BACKING_OFF and now >= self._due:
            self.restarts += 1
            self.start()
        elif self._process is not None and (code := self._process.poll()) is not None:
            self._ended(code, now)
        elif self.state is State.STARTING and not self.program.once and self._answers(now):
            self.state, self.note, self.has_worked = State.HEALTHY, "", True
        elif self.stuck_at and self.state is State.HEALTHY and self._age_s() > self._ran_s * 2 + STEADY_S:
            self.stuck_at, self.stuck_times = "", 0  # it has outlived the place
        return before != (self.state, self.restarts, self.stuck_at)

    def _answers(self, now: float) -> bool:
        """Whether it is ready. Not asked at each look: the question can be a process whose end is the next look."""
        if now < self._asked_at + _ASK_S:
            return False
        self._asked_at = now
        return self.program.ready()

    def _age_s(self) -> float:
        return time.time() - self.started_at

    def _ended(self, code: int, now: float) -> None:
        self._process, self.exit_code, self.last_exit, self._ran_s = None, code, code, self._age_s()
        if self.program.once and code == 0:
            self.state, self.has_worked = State.DONE, True
        elif code == MISCONFIGURED:
            self.state = State.FAILED
        else:
            place = last_position(self.log, self._said_from)
            is_same = bool(place) and place == self.stuck_at
            self.stuck_at, self.stuck_times = place, self.stuck_times + 1 if is_same else bool(place)
            if self._ran_s >= STEADY_S and not is_same:
                self._backoff_s = FIRST_RESTART_S
            self.state, self._due = State.BACKING_OFF, now + self._backoff_s
            longest = STUCK_BACKOFF_S if self.stuck_times >= _STUCK_TIMES else LONGEST_BACKOFF_S
            self._backoff_s = min(self._backoff_s * 2, longest)

    def ask_to_stop(self) -> None:
        """Send the signal that ends it cleanly, and do not start it again."""
        self.state = State.DONE if self.state is State.DONE else State.WAITING
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self.program.stop_signal)

    def wait_stopped(self, deadline: float) -> None:
        """Wait until it ended; if that is not before `deadline` (monotonic), kill it with all its children."""
        if self._preparing is not None:
            self._preparing.join(max(0.0, deadline - time.monotonic()))
        if self._process is None:
            return
        try:
            self.exit_code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.note = "did not stop in time and was killed"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.exit_code = self._process.wait()
        self._process = None

    def last_line(self) -> str:
        """The last thing it said."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"

    def describe(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "pid": self._process.pid if self._process else None,
            "state": self.state.value,
            "restarts": self.restarts,
            "started_at": self.started_at or None,
            "exit_code": self.exit_code,
            "last_exit": self.last_exit,
            "stuck_at": self.stuck_at,
            "stuck_times": self.stuck_times,
            "note": self.note,
            "has_worked": self.has_worked,
            "metrics_port": int(self.program.env.get("TALLYBOOK_METRICS_PORT", 0)) or None,
            "log": str(self.log),
        }


def last_position(log: Path, start: int) -> str:
    """The last position in a topic that an error in `log` names, from byte `start` on; empty if none does."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _READ_BACK_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            if said["level"] in ("error", "critical"):
                return f"{said['topic']}/{said['partition']}@{said['offset']}"
    return ""


def is_running(pid: int | None, started_at: float | None) -> bool:
    """Whether process `pid` still is the one that was started at `started_at` (numbers are used again)."""
    if not pid or not started_at:
        return False
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and bool(abs(process.create_time() - started_at) < 5)
    except psutil.Error:
        return False


def is_named(pid: int, name: str) -> bool:
    """Whether process `pid` runs the program `name`."""
    try:
        return bool(psutil.Process(pid).name() == name)
    except psutil.Error:
        return False


def resident_bytes(pid: int) -> int:
    """Memory of process `pid` and its children; 0 if it is gone."""
    try:
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
    except psutil.Error:
        return 0


def end_leftovers(described: Mapping[str, Mapping[str, Any]], grace_s: float) -> list[str]:
    """End what a killed supervisor left behind, given its last descriptions; returns the names of what still ran."""
    left = {
        name: psutil.Process(child["pid"])
        for name, child in described.items()
        if is_running(child["pid"], child["started_at"])
    }
    for process in left.values():
        with contextlib.suppress(psutil.Error):
            # A server's own way to end at once and cleanly; SIGINT is Postgres' fast shutdown.
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    _, stubborn = psutil.wait_procs(list(left.values()), timeout=grace_s)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_s)
    return sorted(left)
