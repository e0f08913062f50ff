"""`tallybook up`, `down` and `status`: the local stack and all processes, supervised."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.errors import Misconfigured, Transient
from infra.local.children import end_leftovers, is_running, resident_bytes
from infra.settings import STATE_FILE, Settings
from services import supervisor

_POLL_S = 0.1
_LAG, _AGE = "tallybook_consumer_lag_records", "tallybook_consumer_oldest_unapplied_seconds"
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Start only these: servers, stack (servers and preparations), services, or a name."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add `up`, `down` and `status`."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    only: Only = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop all on Ctrl-C or SIGTERM.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Start the local stack and all processes; returns when everything answers. Data is kept in TALLYBOOK_DATA."""
    settings = Settings.from_env(os.environ, running=False)
    names = supervisor.chosen(only or ())
    if foreground:
        raise typer.Exit(supervisor.main(settings, names, with_parent=with_parent))
    started = time.monotonic()
    process = None if supervisor.is_owned(settings.data) else _spawn(settings, names)
    state = _wait(settings, process)
    if as_json:
        typer.echo(json.dumps({"addresses": state["addresses"], "data": str(settings.data)}, indent=1))
        return
    missing = names - state["processes"].keys() - _elsewhere(settings)
    for name, address in _shown(state["addresses"]).items():
        if name in state["processes"] or name not in ("api", "sandbox"):
            typer.echo(f"{name:10}{address}")
    verb = "started" if process else "was running"
    typer.echo(f"{verb}: {len(state['processes'])} processes, {time.monotonic() - started:.1f} s, data {settings.data}")
    if missing:
        raise Misconfigured(f"already running without {', '.join(sorted(missing))}: `tallybook down` first")


def down(as_json: AsJson = False) -> None:
    """Stop everything that `up` started. The data stays."""
    settings = Settings.from_env(os.environ, running=False)
    state = supervisor.read_state(settings.data)
    ended = sorted(name for name, child in state.get("processes", {}).items() if child["pid"])
    if supervisor.is_owned(settings.data):
        os.kill(state["supervisor"], signal.SIGTERM)
        deadline = time.monotonic() + settings.stop_timeout.total_seconds() * 4 + 5
        while supervisor.is_owned(settings.data):
            if time.monotonic() > deadline:
                raise Transient(f"the supervisor (process {state['supervisor']}) does not stop; see its log")
            time.sleep(_POLL_S)
    else:
        ended = end_leftovers(state.get("processes", {}), settings.stop_timeout.total_seconds())
    typer.echo(json.dumps({"stopped": ended}) if as_json else f"stopped: {', '.join(ended) or 'nothing was running'}")


def status(as_json: AsJson = False) -> None:
    """Show each process: pid, uptime, restarts, health, memory, and how many records it is behind. Exit code 1 if not
    all are well, 69 if nothing runs."""
    settings = Settings.from_env(os.environ, running=False)
    state = supervisor.read_state(settings.data)
    alive = supervisor.is_owned(settings.data)
    rows = {name: _look(child, supervised=alive) for name, child in state.get("processes", {}).items()}
    if not alive and not any(row["pid"] for row in rows.values()):
        raise Transient(f"nothing runs on {settings.data}; start it with `tallybook up`")
    if as_json:
        shown = {"phase": state["phase"], "supervised": alive, "addresses": _shown(state["addresses"])}
        typer.echo(json.dumps(shown | {"processes": rows}, indent=1))
    else:
        _print(rows)
        if not alive:
            typer.echo("the supervisor is gone: nothing is restarted any more; `tallybook up` or `down` cleans up")
    if not alive or any(row["health"] not in ("healthy", "done") for row in rows.values()):
        raise typer.Exit(1)


def _spawn(settings: Settings, names: frozenset[str]) -> subprocess.Popen[bytes]:
    logs = settings.data / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if _is_over(settings):
        (settings.data / STATE_FILE).unlink()
    options = [word for name in sorted(names) for word in ("--only", name)]
    with (logs / "supervisor.log").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--foreground", *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives this terminal
        )


def _is_over(settings: Settings) -> bool:
    """Whether the last run ended in order: its state would be taken for that of the new one."""
    return supervisor.read_state(settings.data).get("phase") in ("stopped", "failed")


def _wait(settings: Settings, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """The state, once everything answers.

    Raises:
        Transient: something does not answer in time, or the supervisor ended.
        Misconfigured: a process needs an operator.
    """
    deadline = time.monotonic() + settings.start_timeout.total_seconds()
    with _progress() as show:
        while True:
            state = supervisor.read_state(settings.data)
            mine = process is None or state.get("supervisor") == process.pid
            if mine and state.get("phase") == "running":
                return state
            if mine and state.get("problem"):
                raise Transient(state["problem"])
            if process is not None and process.poll() is not None:
                raise Transient(f"the supervisor ended; see {settings.data / 'logs' / 'supervisor.log'}")
            children = state.get("processes", {}) if mine else {}
            for name, child in children.items():
                if child["state"] == "failed":
                    raise Misconfigured(f"{name} ended with code 78; its log says why: {child['log']}")
                if child["restarts"] >= supervisor.TRIES and not child["has_worked"]:
                    raise Transient(f"{name} ends again and again (code {child['exit_code']}); see {child['log']}")
            waiting = {name: child for name, child in children.items() if child["state"] not in ("healthy", "done")}
            if time.monotonic() > deadline:
                raise Transient("not healthy in time: " + "; ".join(f"{n}, see {c['log']}" for n, c in waiting.items()))
            show(waiting)
            time.sleep(_POLL_S)


@contextmanager
def _progress() -> Iterator[Any]:
    """A line on a terminal that says what is being waited for; nothing where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said: list[str] = []

        def tell(waiting: Mapping[str, Any]) -> None:
            text = _notes(waiting)
            if text and text not in said:
                said.append(text)
                console.print(text)

        yield tell
        return
    with console.status("starting") as line:
        yield lambda waiting: line.update(_notes(waiting) or f"waiting for {', '.join(waiting)}")


def _notes(waiting: Mapping[str, Any]) -> str:
    return "; ".join(child["note"] for child in waiting.values() if child["note"])


def _look(child: Mapping[str, Any], *, supervised: bool) -> dict[str, Any]:
    """What a person wants to know of a process now."""
    running = is_running(child["pid"], child["started_at"])
    health = child["state"] if supervised else "unsupervised"
    if not running and child["state"] in ("healthy", "starting"):
        health = "gone"
    shown = supervisor.metrics("127.0.0.1", child["metrics_port"]) if running and child["metrics_port"] else None
    if running and child["metrics_port"] and shown is None:
        health = "no answer"
    lags, ages = (_values(shown or "", name) for name in (_LAG, _AGE))
    return {
        "pid": child["pid"] if running else None,
        "health": health,
        "uptime_s": round(time.time() - child["started_at"]) if running else None,
        "restarts": child["restarts"],
        "memory_bytes": resident_bytes(child["pid"]) if running else None,
        "lag_records": int(sum(lags)) if lags else None,
        "oldest_unapplied_s": round(max(ages)) if ages else None,
        "exit_code": child["exit_code"],
        "last_exit": child["last_exit"],
        "stuck_at": child["stuck_at"],
        "stuck_times": child["stuck_times"],
        "note": child["note"],
    }


def _values(text: str, name: str) -> list[float]:
    """The values of a metric, one per partition."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return [float(line.rpartition(" ")[2]) for line in lines]


def _print(rows: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("process", "health", "pid", "uptime", "restarts", "memory", "behind", "oldest"):
        table.add_column(heading, justify="left" if heading in ("process", "health") else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            row["health"],
            str(row["pid"] or "-"),
            _span(row["uptime_s"]),
            str(row["restarts"]),
            f"{row['memory_bytes'] / 1e6:.0f} MB" if row["memory_bytes"] else "-",
            f"{row['lag_records']:,}" if row["lag_records"] is not None else "-",
            _span(row["oldest_unapplied_s"] or None),
        )
    Console().print(table)
    for name, row in rows.items():
        if row["restarts"] and row["last_exit"] is not None:
            typer.echo(f"{name}: {_ended(row)}")


def _ended(row: Mapping[str, Any]) -> str:
    """How often and where a process ended."""
    times = "once" if row["restarts"] == 1 else f"{row['restarts']} times"
    said = f"restarted {times}, last exit {row['last_exit']}"
    if not row["stuck_at"]:
        return said
    return said + (f", stuck at {row['stuck_at']}" if row["stuck_times"] > 1 else f" at {row['stuck_at']}")


def _span(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} m {rest:02} s" if minutes else f"{rest} s"


def _shown(addresses: Mapping[str, str]) -> dict[str, str]:
    """Addresses without passwords."""
    return {
        name: address.split("://")[0] + "://" + address.rpartition("@")[2] if "@" in address else address
        for name, address in addresses.items()
    }


def _elsewhere(settings: Settings) -> set[str]:
    """Servers that are not run here because they were given by address."""
    fields = {"kafka": settings.kafka, "postgres": settings.postgres, "valkey": settings.redis}
    return {name for name, address in (fields | {"sandbox": settings.sandbox}).items() if address}
