"""Faust's stream as micro-batches of one partition each, with proof that no record was passed by.

Whatever leaves an agent's body is acknowledged by Faust, so nothing may leave it: `apply_or_exit` repeats or ends the
process. And `micro_batches` proves that its records follow each other in the log, or ends the process. The supervisor
restarts it at the stored offsets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from infra import telemetry
from infra.errors import Conflict, Transient
from infra.kafka import KafkaConfig, Position, Record, scan, start_offsets
from infra.settings import Settings

log = telemetry.logger("infra.micro_batches")

CRASHED = 70  # exit code: the supervisor starts the process again
_LOOK_S = 0.5  # how often the ends of idle partitions are looked at
_GAP_ATTEMPTS = 6  # 12 s in all: a broker that starts or moves a leader answers again by then
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BATCHES_AHEAD = 3  # read while one is being applied; more only costs memory


class Batch(list[Record]):
    """Records of one partition that follow each other in the log; none where the log holds only what nobody reads."""

    def __init__(
        self,
        records: Sequence[Record],
        follows: int,
        *,
        position: Position | None = None,
        next_offset: int | None = None,
    ) -> None:
        """`position` and `next_offset` are needed where there are no records to tell them."""
        super().__init__(records)
        self.topic, self.partition = position or (records[0].topic, records[0].partition)
        self.follows = follows
        """The log holds no record from this offset up to the first one here: markers and aborted ones at most."""
        self.next_offset = records[-1].offset + 1 if next_offset is None else next_offset
        """Where to go on. Without records: the log holds none from `follows` up to here."""


async def micro_batches(
    stream: Any,
    max_records: int = 500,
    max_wait: float = 0.05,
    max_bytes: int = 4 * 1024 * 1024,
    *,
    tell_ends: bool = False,
) -> AsyncIterator[Batch]:
    """The records of `stream` by partition: as many as came in while the last batch was applied, up to the limits.

    A batch waits `max_wait` seconds for company. `tell_ends`: where a partition ends with what nobody reads (the marker
    of a transaction, aborted records), a batch without records says so. Ends the process if a record was passed by.
    """
    buffer = _Buffer(max_records, max_bytes)
    reader = asyncio.ensure_future(_read(stream, buffer))
    look_at = time.monotonic() + _LOOK_S
    try:
        while True:
            await _either(buffer.filled.wait(), reader, timeout_s=_LOOK_S)
            if tell_ends and time.monotonic() >= look_at:
                for passed in await _unread_ends(stream.app, buffer):
                    yield passed
                look_at = time.monotonic() + _LOOK_S
            if not buffer.is_full() and max_wait:
                await asyncio.sleep(max_wait)
            batch = buffer.take()
            if batch:
                yield batch
    finally:
        reader.cancel()


async def apply_or_exit(apply: Callable[[Batch], None], batch: Batch, *, patience_s: float = 60) -> None:
    """Call `apply(batch)` in a thread until it succeeds. Never raises, or the batch would count as done.

    `Transient` and `Conflict` are repeated for `patience_s`; then, and on anything else, the process ends.
    """
    deadline = time.monotonic() + patience_s
    for attempt in itertools.count():
        try:
            await asyncio.to_thread(apply, batch)
            return
        except (Transient, Conflict) as error:
            where = {"topic": batch.topic, "partition": batch.partition, "offset": batch.follows}
            if time.monotonic() > deadline:
                log.error("batch given up", reason=str(error), **where)
                os._exit(CRASHED)
            log.warning("batch repeated", reason=str(error), attempt=attempt, **where)
            await asyncio.sleep(min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1))
        except Exception:
            log.exception("batch failed", topic=batch.topic, partition=batch.partition, offset=batch.follows)
            os._exit(CRASHED)


class _Waiting:
    """Records of one partition, in order; `follows` as in `Batch`."""

    def __init__(self, follows: int) -> None:
        self.follows = follows
        self.records: deque[Record] = deque()


class _Buffer:
    """Records read ahead, by partition."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.max_records = max_records
        self.max_bytes = max_bytes
        self.filled = asyncio.Event()
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.next_offsets: dict[Position, int] = {}
        """Of each partition that was read from, where to go on."""
        self._waiting: dict[Position, _Waiting] = {}
        self._records = self._bytes = 0

    def add(self, records: Sequence[Record], follows: int) -> None:
        """Records of one partition; if others of it wait, these follow them. `follows` as in `Batch`."""
        position = (records[0].topic, records[0].partition)
        waiting = self._waiting.get(position)
        if waiting is None:
            waiting = self._waiting[position] = _Waiting(follows)
        waiting.records.extend(records)
        self.next_offsets[position] = records[-1].offset + 1
        self._moved(len(records), _size(records))

    def forget(self, position: Position) -> None:
        """Drop what waits of a partition whose reading began anew."""
        waiting = self._waiting.pop(position, None)
        if waiting is not None:
            self._moved(-len(waiting.records), -_size(waiting.records))

    def holds(self, position: Position) -> bool:
        """Whether records of that partition wait."""
        return position in self._waiting

    def is_full(self) -> bool:
        return self._records >= self.max_records or self._bytes >= self.max_bytes

    def take(self) -> Batch | None:
        """What waits of the partition that waits longest."""
        if not self._waiting:
            return None
        position = next(iter(self._waiting))
        waiting = self._waiting.pop(position)
        follows = waiting.follows
        taken: list[Record] = []
        size = 0
        while waiting.records and len(taken) < self.max_records and (not taken or size < self.max_bytes):
            record = waiting.records.popleft()
            taken.append(record)
            size += len(record.value or b"")
        if waiting.records:
            waiting.follows = taken[-1].offset + 1
            self._waiting[position] = waiting  # at the back of the queue
        self._moved(-len(taken), -size)
        return Batch(taken, follows)

    def _moved(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size
        room = self._records < self.max_records * _BATCHES_AHEAD and self._bytes < self.max_bytes * _BATCHES_AHEAD
        (self.has_room.set if room else self.has_room.clear)()
        (self.filled.set if self._records else self.filled.clear)()


def _size(records: Iterable[Record]) -> int:
    return sum([len(each.value or b"") for each in records])


async def _read(stream: Any, buffer: _Buffer) -> None:
    """Fill `buffer`, with proof for all records of a message that they follow those before them in the log."""
    consumer = stream.app.consumer
    async for event in stream.events():
        message = event.message
        position = (plain(stream.app, message.topic), message.partition)
        offset, seen = message.records[0].offset, buffer.next_offsets.get(position)
        if seen is None or message.after is None or message.after != seen:
            # The first records of an assignment: they follow what is stored, or what they are read after.
            start = consumer.starts.get(position, 0)
            follows = start if seen is None or offset < seen or offset == start else seen
            buffer.forget(position) if follows == start else None
            if offset > follows:
                await _prove_gap(stream.app.settings, position, follows, offset)
        else:
            follows = seen
        buffer.add(_records(position, message.records), min(follows, offset))
        if not buffer.has_room.is_set():
            await buffer.has_room.wait()


async def _unread_ends(app: Any, buffer: _Buffer) -> list[Batch]:
    """For each partition that ends with what nobody reads: a batch that says so."""
    ends = []
    for position, start in list(app.consumer.starts.items()):
        follows = buffer.next_offsets.get(position, start)
        end = app.consumer.passed_end(position, follows)
        if end is None or buffer.holds(position):
            continue
        with contextlib.suppress(Transient):
            first = await asyncio.to_thread(_first_record, app.settings, position, follows, end)
            # A record there is on its way to us. And one may have come in while the log was looked at.
            if first is None and not buffer.holds(position) and buffer.next_offsets.get(position, start) == follows:
                buffer.next_offsets[position] = end
                ends.append(Batch([], follows, position=position, next_offset=end))
    return ends


async def _prove_gap(settings: Settings, position: Position, follows: int, offset: int) -> None:
    """Return if the log holds no record of `position` from `follows` up to `offset`; else end the process."""
    for attempt in range(_GAP_ATTEMPTS):
        try:
            found = await asyncio.to_thread(_first_record, settings, position, follows, offset)
        except Transient as error:
            log.warning("gap in a log not looked at yet", topic=position[0], offset=offset, reason=str(error))
            await asyncio.sleep(0.2 * 2**attempt)
            continue
        if found is not None:
            _end("records were passed by", position, offset, first=found)
        return
    _end("gap in a log could not be looked at", position, offset)


def _first_record(settings: Settings, position: Position, start: int, end: int) -> int | None:
    """Offset of the first committed record from `start` up to `end`; of one that retention took, `start`."""
    config = KafkaConfig.of(settings)
    topic, partition = position
    kept_from = start_offsets(config, topic, [partition])[partition]
    if 0 < start < kept_from:
        return start
    batches = scan(config, topic, {partition: max(start, kept_from)}, {partition: end})
    return next((each[0].offset for each in batches), None)


def _end(said: str, position: Position, offset: int, **fields: Any) -> NoReturn:
    log.error(said, topic=position[0], partition=position[1], offset=offset, **fields)
    os._exit(CRASHED)


async def _either(wanted: Any, worker: asyncio.Future[None], *, timeout_s: float) -> None:
    """Wait for `wanted`, but not for long; raise what ended `worker` if that comes first."""
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({waiting, worker}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if worker.done() and not waiting.done():
            worker.result()
            raise asyncio.CancelledError  # the stream ended: the app stops
    finally:
        waiting.cancel()


def plain(app: Any, topic: str) -> str:
    """The name of `topic` without the cluster's prefix."""
    return topic[len(app.settings.topic_prefix) :]


def _records(position: Position, fetched: Sequence[Any]) -> list[Record]:
    """`fetched` as the log holds it."""
    topic, partition = position
    records = []
    at_ms, appended_at = 0, _EPOCH
    for each in fetched:
        if each.timestamp != at_ms:
            at_ms = each.timestamp
            appended_at = _EPOCH + timedelta(milliseconds=at_ms)
        named, repeated = _headers(each.headers)
        records.append(Record(topic, partition, each.offset, each.key, each.value, named, repeated, appended_at))
    return records


def _headers(pairs: Sequence[tuple[str, bytes | None]]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    named: dict[str, Any] = dict(pairs)
    if None in named.values():
        named = {name: value or b"" for name, value in named.items()}
    if len(named) == len(pairs):
        return named, ()
    names = [name for name, _ in pairs]
    return named, tuple(name for name in named if names.count(name) > 1)
