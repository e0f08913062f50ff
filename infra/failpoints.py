"""Named places between two durable steps, where a test can kill, pause or fail the process.

`TALLYBOOK_FAILPOINT="handler.after_poll=kill@3"` kills the process (SIGKILL) when it passes that place for the third
time. Actions: `kill`, `raise`, `pause:SECONDS`; `@N` is the pass at which it fires (1 if absent); several are
separated by commas. A kill or a pause fires once per data folder: the restarted process finds its mark there
and runs through.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import Misconfigured

FAILPOINTS = (
    "handler.after_fence",
    "handler.after_fold",
    "handler.after_poll",
    "handler.after_begin",
    "handler.after_first_produce",
    "handler.after_send_offsets",
    "handler.before_commit",
    "handler.after_commit",
    "usage.after_poll",
    "usage.after_copy",
    "usage.after_correction",
    "usage.before_commit",
    "usage.after_commit",
    "backfill.after_piece",
    "backfill.before_commit",
    "import.after_save",
    "recount.before_commit",
    "meters.before_commit",
    "meters.after_commit",
    "projector.after_poll",
    "projector.after_rows",
    "projector.after_commit",
    "entitlements.after_publish",
    "replay.after_batch",
    "replay.before_swap",
    "replay.after_swap",
    "scheduler.before_send",
    "scheduler.after_send",
    "invoicing.after_poll",
    "invoicing.after_job_commit",
    "invoicing.after_claim",
    "invoicing.after_rating",
    "invoicing.after_send",
    "outbox.after_rows",
    "outbox.after_commit",
    "payments.after_claim",
    "payments.after_start",
    "payments.after_charge",
    "payments.after_record",
    "payments.before_done",
    "sandbox.before_answer",
    "sandbox.after_write",
)
"""Every place there is. A name used in the code and missing here fails `tests/test_architecture.py`."""

_SPEC = re.compile(r"(?P<name>[a-z_.]+)=(?P<action>kill|raise|pause:(?P<seconds>\d+(\.\d+)?))(@(?P<pass>[1-9]\d*))?\Z")


class FailpointReached(Exception):
    """Raised by the action `raise`; nothing in the system catches it by name."""


@dataclass(slots=True)
class _Armed:
    action: str
    pause_s: float
    fires_at: int
    mark: Path | None
    passed: int = field(default=0)


_armed: dict[str, _Armed] = {}


def configure(spec: str, data: Path | None = None) -> None:
    """Arm the failpoints of `spec` (empty: none). Marks of what has happened are kept under `data`.

    Raises:
        Misconfigured: `spec` cannot be read, or names a failpoint that does not exist.
    """
    _armed.clear()
    for part in filter(None, (piece.strip() for piece in spec.split(","))):
        match = _SPEC.match(part)
        if match is None:
            raise Misconfigured(f"TALLYBOOK_FAILPOINT: {part!r} is not NAME=kill|raise|pause:SECONDS[@N]")
        name = match["name"]
        if name not in FAILPOINTS:
            raise Misconfigured(f"TALLYBOOK_FAILPOINT: no failpoint is named {name!r}; known: {', '.join(FAILPOINTS)}")
        mark = data / "failpoints" / f"{name}.fired" if data is not None else None
        if mark is not None and mark.exists():
            continue
        action = match["action"].partition(":")[0]
        _armed[name] = _Armed(action, float(match["seconds"] or 0), int(match["pass"] or 1), mark)


def failpoint(name: str) -> None:
    """Do nothing, unless `name` was armed and this is the pass at which it fires."""
    if not _armed:
        return
    armed = _armed.get(name)
    if armed is None:
        return
    armed.passed += 1
    if armed.passed != armed.fires_at:
        return
    match armed.action:
        case "kill":
            _leave(armed.mark)
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise FailpointReached(name)
        case _:
            _leave(armed.mark)
            time.sleep(armed.pause_s)


def _leave(mark: Path | None) -> None:
    if mark is not None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
