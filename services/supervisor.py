"""Runs the whole system on one machine: the embedded servers, then the preparations, then every process.

Owns the data folder while it lives (a lock says so), writes `state.json` after each change, restarts whatever dies, and
on SIGTERM stops the processes first and the servers last. Its own death leaves the rest running without care; the next
`up` or `down` ends what it finds.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from infra import telemetry
from infra.errors import Conflict, Misconfigured, Transient
from infra.local import stack
from infra.local.children import Child, Program, State, end_leftovers
from infra.local.ports import Ports, is_free
from infra.settings import PREFIX, STATE_FILE, Settings

SERVICES = (
    "sandbox",
    "command-handler",
    "usage-aggregator",
    "backfill",
    "recount",
    "projector",
    "entitlements",
    "meters",
    "scheduler",
    "invoicing",
    "outbox",
    "payments",
    "api",
)
"""Every process of the system, in the order in which `status` shows them; `tallybook run NAME` runs one."""

RESTARTS = telemetry.gauge("process_restarts", "Times the supervisor started the process again.", "process")
LAST_EXIT = telemetry.gauge("process_last_exit_code", "Code with which it ended last; negative: a signal.", "process")
STUCK = telemetry.gauge("process_stuck_times", "Times in a row it ended at one position of a log.", "process")

SERVERS = ("kafka", "postgres", "valkey")
PREPARE = "prepare"
"""Runs once before the services: migrations, topics, first generations."""

_SERVER_STAGE, _PREPARE_STAGE, _SERVICE_STAGE = 0, 1, 2
_TICK_S = 0.05
TRIES = 6
"""A server or the preparations that never worked are given up after so many restarts (about 12 s)."""
_GROUPS = {"servers": SERVERS, "stack": (*SERVERS, PREPARE), "services": SERVICES}


def chosen(only: Iterable[str]) -> frozenset[str]:
    """The names that `--only` selects; everything if it is empty.

    Raises:
        Misconfigured: a name is neither a process nor a group of them.
    """
    everything = (*SERVERS, PREPARE, *SERVICES)
    names: set[str] = set()
    for name in only:
        if name not in everything and name not in _GROUPS:
            raise Misconfigured(f"--only: {name!r} is none of {', '.join((*_GROUPS, *everything))}")
        names.update(_GROUPS.get(name, (name,)))
    return frozenset(names or everything)


def plan(settings: Settings, names: frozenset[str]) -> tuple[list[Program], dict[str, str]]:
    """The programs to run and the addresses of everything, given by settings or picked here.

    Raises:
        Misconfigured: a server cannot run on this machine as it is.
    """
    ports = Ports(settings.data)
    given = frozenset(name for name in ("kafka", "postgres", "redis") if getattr(settings, name))
    programs, addresses = stack.servers(settings, ports, given)
    addresses |= {name: value for name in ("postgres_worker", "postgres_api") if (value := getattr(settings, name))}
    api_port = settings.api_port or ports.get("api")
    sandbox_port = settings.sandbox_port or ports.get("sandbox")
    addresses["api"] = f"http://{settings.api_host}:{api_port}"
    addresses["sandbox"] = settings.sandbox or f"http://127.0.0.1:{sandbox_port}"
    common = {f"{PREFIX}{name.upper()}": value for name, value in addresses.items() if name in Settings.model_fields}
    if "kafka" not in given:  # nobody else uses this cluster: a restarted process gets its partitions back at once
        common[f"{PREFIX}INSTANCE"] = settings.instance or "local"
    common |= {f"{PREFIX}API_PORT": str(api_port), f"{PREFIX}SANDBOX_PORT": str(sandbox_port)}
    programs.append(_process(PREPARE, common, stage=_PREPARE_STAGE, once=True))
    listening = {"api": api_port, "sandbox": sandbox_port}
    for name in SERVICES:
        if name == "sandbox" and settings.sandbox:
            continue
        shown_at = ports.get(f"metrics {name}")
        own = common | {f"{PREFIX}METRICS_PORT": str(shown_at)}
        programs.append(_process(name, own, stage=_SERVICE_STAGE, port=listening.get(name)))
    return [program for program in programs if program.name in names], addresses


def _process(name: str, env: Mapping[str, str], *, stage: int, once: bool = False, port: int | None = None) -> Program:
    """Process `name`; it is healthy when it shows its metrics and, if it has a `port`, takes connections there."""
    shown_at = int(env.get(f"{PREFIX}METRICS_PORT", 0))
    return Program(
        name=name,
        command=(sys.executable, "-m", "services.cli", "run", name),
        env=env,
        stage=stage,
        ready=lambda: metrics("127.0.0.1", shown_at) is not None and (port is None or not is_free(port)),
        once=once,
        awaited=name == "api",
    )


def metrics(host: str, port: int) -> str | None:
    """What a process shows at /metrics; None if it does not answer."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(host, port, timeout=0.5)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()
    return None


@contextlib.contextmanager
def owning(data: Path) -> Iterator[None]:
    """Be the only supervisor of `data`.

    Raises:
        Conflict: another one lives.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "supervisor.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"a supervisor already runs on {data}") from error
        yield


def is_owned(data: Path) -> bool:
    """Whether a supervisor lives on `data`."""
    if not data.is_dir():
        return False
    try:
        with owning(data):
            return False
    except Conflict:
        return True


def read_state(data: Path) -> dict[str, Any]:
    """The state file of `data`; empty before the first start."""
    try:
        state: dict[str, Any] = json.loads((data / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return state


class Supervisor:
    """Starts the programs stage by stage and tends them until it is asked to stop."""

    def __init__(self, settings: Settings, programs: list[Program], addresses: Mapping[str, str]) -> None:
        self._settings = settings
        self._addresses = dict(addresses)
        logs = settings.data / "logs"
        self._children = [Child(program, logs / f"{program.name}.log") for program in programs]
        self._phase = "starting"
        self._problem = ""
        self._written = ""
        self._stop = False

    def run(self, parent: int | None = None) -> int:
        """Until SIGTERM or SIGINT, or until the process `parent` is no longer ours; returns an exit code."""
        wake = self._listen()
        self._end_leftovers()
        while not self._stop and not self._problem and (parent is None or os.getppid() == parent):
            self._tend()
            select.select([wake], [], [], _TICK_S if self._phase == "starting" else _TICK_S * 4)
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        self._shut_down()
        return 1 if self._problem else 0

    def _listen(self) -> int:
        """Let SIGTERM, SIGINT and the end of a child interrupt the wait; returns what to wait on."""

        def ask(number: int, _frame: FrameType | None) -> None:
            self._stop = self._stop or number != signal.SIGCHLD

        wake, tell = os.pipe()
        for end in (wake, tell):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, ask)
        return wake

    def _end_leftovers(self) -> None:
        leftovers = end_leftovers(read_state(self._settings.data).get("processes", {}), grace_s=10)
        if leftovers:
            _say(f"ended what an earlier supervisor left: {', '.join(leftovers)}")

    def _tend(self) -> None:
        changed = False
        self._show()
        # A stage may start when every earlier one has worked.
        stage = min((c.program.stage for c in self._children if not c.has_worked), default=_SERVICE_STAGE)
        for child in self._children:
            if child.state is State.WAITING and child.program.stage <= stage:
                child.prepare(self._reporter(child))
                changed = True
            elif child.tend(time.monotonic()):
                changed = True
                _say(f"{child.program.name}: {child.state} (pid {child.describe()['pid']}, restarts {child.restarts})")
            self._problem = self._problem or _problem_of(child)
        if self._phase == "starting" and all(c.state in (State.HEALTHY, State.DONE) for c in self._children):
            self._phase, changed = "running", True
        if changed or self._phase == "starting":
            self._write()

    def _show(self) -> None:
        for child in self._children:
            name = child.program.name
            RESTARTS.labels(name).set(child.restarts)
            LAST_EXIT.labels(name).set(child.last_exit or 0)
            STUCK.labels(name).set(child.stuck_times)

    def _reporter(self, child: Child) -> Callable[[str], None]:
        def report(note: str) -> None:
            if self._stop:
                raise Transient("stopped while starting")
            child.note = note

        return report

    def _shut_down(self) -> None:
        self._phase = "stopping"
        self._write()
        for stage in (_SERVICE_STAGE, _PREPARE_STAGE, _SERVER_STAGE):
            children = [child for child in self._children if child.program.stage == stage]
            for child in children:
                child.ask_to_stop()
            # A server writes its checkpoint; give it twice the time of a process.
            grace = self._settings.stop_timeout.total_seconds() * (2 if stage == _SERVER_STAGE else 1)
            deadline = time.monotonic() + grace
            for child in children:
                child.wait_stopped(deadline)
        self._phase = "failed" if self._problem else "stopped"
        self._addresses = {}
        self._write()

    def _write(self) -> None:
        """Replace the state file in one step; it holds passwords, so only its owner may read it."""
        state = {
            "supervisor": os.getpid(),
            "phase": self._phase,
            "problem": self._problem,
            "addresses": self._addresses,
            "processes": {child.program.name: child.describe() for child in self._children},
        }
        text = json.dumps(state, indent=1)
        if text == self._written:
            return
        self._written = text
        target = self._settings.data / STATE_FILE
        beside = target.with_suffix(f".{time.monotonic_ns()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        beside.replace(target)


def main(settings: Settings, only: Iterable[str], *, with_parent: bool = False) -> int:
    """Run the chosen programs in the foreground until asked to stop. `settings` are those given, not the running ones.

    Raises:
        Conflict: another supervisor runs on the data folder.
        Misconfigured: a name is unknown, or a server cannot run here.
    """
    parent = os.getppid() if with_parent else None
    names = chosen(only)
    with owning(settings.data):
        programs, addresses = plan(settings, names)
        telemetry.serve_metrics(
            settings.metrics_host, settings.metrics_port or Ports(settings.data).get("metrics supervisor")
        )
        return Supervisor(settings, programs, addresses).run(parent)


def _problem_of(child: Child) -> str:
    """Why the whole cannot go on because of `child`; empty while it can. A service may fail without the others."""
    if child.problem is not None:
        return f"{child.program.name}: {child.problem}"
    hopeless = child.state is State.FAILED or (child.restarts >= TRIES and not child.has_worked)
    if hopeless and child.program.stage < _SERVICE_STAGE:
        return f"{child.program.name} ended with code {child.exit_code}: {child.last_line()}; see {child.log}"
    return ""


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()
