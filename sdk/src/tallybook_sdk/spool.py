"""Events that were accepted and not yet acknowledged, on disk: they outlive the producer.

A folder holds numbered segments of records that are only ever appended: an event, or the note that a run of events is
settled. A segment whose events are all settled is deleted. Whatever is left when the folder is opened again was not
acknowledged, as far as this disk knows, and is sent again with its ids: what Kafka has already counts once.

Every record carries its length and a CRC-32. A record that a crash cut off ends its segment: what stands before it is
sent, the rest is kept aside in a file `.damaged`.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SEGMENT_BYTES = 16 * 1024 * 1024
_HEAD = struct.Struct(">II")  # length and CRC-32 of what follows: kind, number and content
_SAID = struct.Struct(">BQ")
_COUNT = struct.Struct(">I")
_EVENT, _SETTLED = 1, 2

log = logging.getLogger(__name__)


class Fsync(StrEnum):
    """When accepted events are forced to the disk itself. The end of the process alone loses none, ever."""

    NEVER = "never"
    """Left to the operating system: a crash of the machine may lose the last seconds."""
    BATCH = "batch"
    """As each batch is sent: a crash of the machine may lose what waited for company, `linger` at most."""
    EVENT = "event"
    """Before `send` returns: nothing is lost, and each `send` takes as long as the disk."""


class SpoolUnusable(Exception):
    """The folder cannot be used as it is: another process has it, or it is of another tenant. Says which."""


@dataclass(slots=True)
class _Segment:
    """One file."""

    path: Path
    first: int
    """Number of the first event in it; those before the next segment's first are here."""
    open_events: int = 0
    """Events in it that are not settled."""


class Spool:
    """The folder, locked for as long as this object is open. One thread at a time."""

    def __init__(self, folder: Path, owner: str, fsync: Fsync = Fsync.NEVER) -> None:
        """`owner` says whose events lie there: the topic and the tenant.

        Raises:
            SpoolUnusable: another process has it, or it is another owner's.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fsync = Fsync.NEVER  # taking over is one fsync, below
        self._lock = self._locked(owner)
        self._segments: list[_Segment] = []
        """In order; the last is written."""
        self._file = -1
        self._written = 0
        self._next = 1
        left = self._left()
        before = self._paths()
        self._begin()
        self.left: list[tuple[int, bytes]] = [(self.append(encoded), encoded) for encoded in left]
        """What the predecessor left, by number; to be sent again."""
        os.fsync(self._file)
        _fsync_folder(folder)
        self._fsync = fsync
        for path in before:  # the oldest first: a note that settles events stands in their segment or a later one
            path.unlink()

    def append(self, encoded: bytes) -> int:
        """Keep an event; its number. It outlives this process from now on.

        Raises:
            OSError: the disk is full or broken; the event is not kept.
        """
        if self._written > SEGMENT_BYTES:
            self._begin()
        number = self._next
        self._write(_EVENT, number, encoded)
        self._next += 1
        self._segments[-1].open_events += 1
        if self._fsync is Fsync.EVENT:
            os.fsync(self._file)
        return number

    def sending(self) -> None:
        """The events so far are about to be sent."""
        if self._fsync is Fsync.BATCH:
            os.fsync(self._file)

    def settle(self, first: int, count: int) -> None:
        """The events `first`, `first + 1`, ... are acknowledged, or their failure was told: forget them.

        Raises:
            OSError: the disk is full or broken; the successor will send them again.
        """
        ends = [*(each.first for each in self._segments[1:]), self._next]
        for segment, end in zip(self._segments, ends, strict=True):
            segment.open_events -= max(min(first + count, end) - max(first, segment.first), 0)
        self._write(_SETTLED, first, _COUNT.pack(count))
        while len(self._segments) > 1 and not self._segments[0].open_events:
            self._segments.pop(0).path.unlink()
        if self._written > SEGMENT_BYTES:
            self._begin()

    def close(self) -> None:
        """Let go of the folder. Where nothing is left to send, no segment stays."""
        if self._file < 0:
            return
        if not any(each.open_events for each in self._segments):
            for each in self._segments:
                each.path.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Close the files and leave all as it is: in the child of a fork, whose parent goes on with the folder."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._file = -1

    def _locked(self, owner: str) -> int:
        import fcntl  # only here: Windows has none, and does without a spool

        path = self._folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            holder = _told(lock).get("pid", "unknown")
            os.close(lock)
            said = f"spool {self._folder}: process {holder} has it; each producer needs a folder of its own"
            raise SpoolUnusable(said) from e
        known = _told(lock).get("owner", owner)
        if known != owner:
            os.close(lock)
            raise SpoolUnusable(f"spool {self._folder}: it holds events of {known}, not of {owner}")
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"owner": owner, "pid": os.getpid()}).encode(), 0)
        return lock

    def _left(self) -> list[bytes]:
        """What was not settled, in order. Damaged segments are kept aside."""
        events: dict[int, bytes] = {}
        settled: set[int] = set()
        for path in self._paths():
            data = path.read_bytes()
            good = 0
            for end, kind, number, content in _records(data):
                good = end
                if kind == _EVENT:
                    events[number] = content
                elif kind == _SETTLED:
                    (count,) = _COUNT.unpack(content)
                    settled.update(range(number, number + count))
            if good < len(data):
                aside = path.with_suffix(".damaged")
                aside.write_bytes(data[good:])
                log.warning("%s is damaged after byte %d; the rest is kept in %s", path, good, aside)
        self._next = max([*events, *settled], default=0) + 1
        return [events[number] for number in sorted(events.keys() - settled)]

    def _begin(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        serial = max((int(each.stem) for each in self._paths()), default=0) + 1
        path = self._folder / f"{serial:012d}.spool"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._segments.append(_Segment(path, self._next))
        self._written = 0
        if self._fsync is not Fsync.NEVER:
            _fsync_folder(self._folder)

    def _write(self, kind: int, number: int, content: bytes) -> None:
        said = _SAID.pack(kind, number) + content
        record = _HEAD.pack(len(said), zlib.crc32(said)) + said
        try:
            if os.write(self._file, record) < len(record):
                raise OSError(f"spool {self._folder}: the disk is full")
        except OSError:
            os.ftruncate(self._file, self._written)  # half a record would hide those after it
            raise
        self._written += len(record)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.spool"))


def _records(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Where it ends, kind, number and content of each record, up to the first that is cut off or garbled."""
    at = 0
    while at + _HEAD.size + _SAID.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        begin, end = at + _HEAD.size, at + _HEAD.size + length
        if length < _SAID.size or end > len(data) or zlib.crc32(data[begin:end]) != crc:
            return
        kind, number = _SAID.unpack_from(data, begin)
        yield end, kind, number, data[begin + _SAID.size : end]
        at = end


def _told(lock: int) -> dict[str, str]:
    try:
        told = json.loads(os.pread(lock, 4096, 0) or b"{}")
    except ValueError:  # its writer was killed in between
        return {}
    return {name: str(value) for name, value in told.items()} if isinstance(told, dict) else {}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
