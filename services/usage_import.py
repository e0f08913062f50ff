"""Importing a file of usage: each line once as counted, however often the import is killed and run again.

Beside FILE stand `FILE.progress`, how far the import came, and `FILE.rejected`, the lines that hold no event with the
reason. The progress never passes a line that the brokers may not have; lines after it are sent again, with the same
ids, and count once. It is removed when all is sent.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Final

from billing.errors import Rejected
from infra.failpoints import failpoint
from services.usage_file import BEGINNING, Fault, Format, Line, Mark, read
from tallybook_sdk import Delivery, UsageEvent

SAVE_S: Final = 1.0
SAVE_LINES: Final = 20_000
_HEAD_BYTES: Final = 65_536

Send = Callable[[UsageEvent, Callable[[Delivery], None]], None]
"""Takes an event along; the report comes later, from another thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is imported, and as what."""

    path: Path
    form: Format
    tenant: str
    source: str
    """Of events that name none."""
    makes_ids: bool = False
    """Lines without an id get one, made of the file's name, the line's number and its text."""

    @property
    def progress(self) -> Path:
        return self.path.with_name(self.path.name + ".progress")

    @property
    def rejected(self) -> Path:
        return self.path.with_name(self.path.name + ".rejected")

    def id_of(self, line: int, text: str) -> str:
        """The id of a line that has none: the same whenever the file is read."""
        hashed = "\n".join((self.path.name, str(line), text)).encode(errors="replace")
        return f"line-{blake2b(hashed, digest_size=16).hexdigest()}"

    def lines(self, after: Mark) -> Iterator[Line]:
        """The lines after the mark."""
        with self.path.open("rb") as file:
            yield from read(file, self.form, self.source, after=after, make_id=self.id_of if self.makes_ids else None)


@dataclass(slots=True)
class Outcome:
    """What became of a file."""

    resumed_after: int
    """Line after which this run began; 0: the first."""
    delivered: int = 0
    """Events of this run that the brokers have."""
    rejected: int = 0
    """Lines of the whole file that hold no event."""
    not_delivered: dict[str, int] = field(default_factory=dict)
    """Events of this run by the reason of their failure."""

    @property
    def is_complete(self) -> bool:
        """Whether every line that holds an event is on the log."""
        return not self.not_delivered


def mark_of(job: Job, *, again: bool = False) -> Mark:
    """How far the import came. `again`: forget it and begin anew; nothing counts twice.

    Raises:
        Rejected: the progress is of other content, of another tenant or source, or cannot be read.
    """
    if again:
        job.progress.unlink(missing_ok=True)
    try:
        stored: dict[str, Any] = json.loads(job.progress.read_text())
        mark = Mark(int(stored["line"]), int(stored["bytes"]))
    except FileNotFoundError:
        return BEGINNING
    except (ValueError, KeyError, TypeError) as e:
        raise Rejected("unreadable_progress", f"{job.progress} cannot be read; --again begins anew") from e
    for name, value in _identity(job, mark).items():
        if stored.get(name) != value:
            said = f"{job.progress} is of an import with another {name}; --again begins anew"
            raise Rejected("other_import", said, field=name)
    return mark


def _identity(job: Job, mark: Mark) -> dict[str, object]:
    """What must be the same for an import to go on: file up to the mark (its head and its length), and options."""
    with job.path.open("rb") as file:
        head = file.read(min(_HEAD_BYTES, mark.bytes))
        length = file.seek(0, os.SEEK_END)
    content = sha256(head).hexdigest() if length >= mark.bytes else "shorter"
    return {"content": content, "tenant": job.tenant, "source": job.source, "makes_ids": job.makes_ids}


class Import:
    """One run of an import."""

    def __init__(self, job: Job, after: Mark) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._under_way: dict[int, Mark] = {}  # line -> the mark before it; in the order of the file
        self._read = after
        self._saved_s = time.monotonic()
        self._saved_line = after.line
        kept = _kept(job.rejected, after.line)
        self._rejected = job.rejected.open("w", encoding="utf-8")
        self._rejected.writelines(kept)
        self.outcome = Outcome(after.line, rejected=len(kept))

    def run(self, lines: Iterator[Line], send: Send, finish: Callable[[], None]) -> Outcome:
        """Send all `lines`. `finish` waits for the deliveries. Progress is saved whatever ends the run."""
        try:
            for line in lines:
                self._take(line, send)
                if line.number - self._saved_line >= SAVE_LINES or time.monotonic() - self._saved_s >= SAVE_S:
                    self.save()
            finish()
        finally:
            self.save()
            self._rejected.close()
        if self.outcome.is_complete:
            self._job.progress.unlink(missing_ok=True)
        if not self.outcome.rejected:
            self._job.rejected.unlink(missing_ok=True)
        return self.outcome

    def _take(self, line: Line, send: Send) -> None:
        if isinstance(line.event, Fault):
            fault = line.event
            told = {"line": line.number, "field": fault.field, "reason": fault.detail, "text": line.text.rstrip("\r\n")}
            self._rejected.write(json.dumps(told) + "\n")
            self.outcome.rejected += 1
        else:
            with self._lock:
                self._under_way[line.number] = self._read
            send(line.event, lambda report, number=line.number: self._delivered(number, report))  # type: ignore[misc]
        self._read = Mark(line.number, line.end)

    def _delivered(self, number: int, report: Delivery) -> None:
        with self._lock:
            if report.error is None:
                del self._under_way[number]
                self.outcome.delivered += 1
            else:  # stays under way: the progress does not pass it
                failed = self.outcome.not_delivered
                failed[report.error] = failed.get(report.error, 0) + 1

    def save(self) -> None:
        """Note how far every line is with the brokers."""
        with self._lock:
            mark = next(iter(self._under_way.values()), self._read)
        self._rejected.flush()
        beside = self._job.progress.with_name(self._job.progress.name + ".new")
        beside.write_text(json.dumps(asdict(mark) | _identity(self._job, mark)))
        beside.replace(self._job.progress)
        self._saved_s, self._saved_line = time.monotonic(), self._read.line
        failpoint("import.after_save")


def _kept(rejected: Path, upto: int) -> list[str]:
    """What stands in FILE.rejected of lines up to `upto`; later ones are read again."""
    if not upto or not rejected.exists():
        return []
    kept = []
    for text in rejected.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(text)["line"] <= upto:
                kept.append(text)
        except (ValueError, KeyError, TypeError):  # the last line of a killed import
            continue
    return kept
