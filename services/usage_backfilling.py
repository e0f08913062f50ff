"""Counts events again that came before a meter was changed: reads the log a second time, beside the aggregator.

Consumes  usage.events, from the first event of a backfill's span up to the control record that asks for it
Produces  nothing
Owns      usage_backfill and usage_backfill_value; changes usage_value and usage_window once, at a backfill's end
Repeats   safely because each piece of the log and the place after it are one Postgres transaction, places move by
          compare-and-set, and so does the state at the end: of two that work on one backfill one starts again

    aggregator   ... e e e N e e e e ...        notes at N what is asked for, and goes on
    here             e e e N                    rows nobody reads, piece by piece, then the switch

Nothing that is judged here may have changed since N: so a correction of the tenant that comes later waits for this
(`finish`), backfills are done in the order of the log, and identities are kept for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from billing.backfilling import Backfill
from billing.errors import Rejected
from billing.metering import UsageAmended, UsageControl
from infra import kafka, postgres, telemetry
from infra.errors import Conflict, Transient
from infra.failpoints import failpoint
from infra.faust_app import Batch
from infra.kafka import KafkaConfig, Record
from infra.settings import Settings
from infra.shutdown import on_signals
from projections import generation, usage, usage_backfill
from projections.usage_backfill import Asked, Key, Pending, Row
from schemas.codec import UsageRecords, decode_usage, decode_usage_records
from schemas.errors import DecodeError
from services.usage_identity import identity_bytes
from services.usage_judged import Judged
from services.usage_measuring import EPOCH, MICROSECOND, Contribution, Measuring, RawEvent, raw_of

log = telemetry.logger("services.usage_backfilling")

NAME: Final = "backfill"
IDLE_S: Final = 1.0
TROUBLE_S: Final = 5.0
PUBLISH_GRACE: Final = timedelta(hours=12)
"""A control record may be so late and still find every event it names: half of what the dedupe horizon has to spare."""
NO_END: Final = datetime(9999, 12, 31, tzinfo=UTC)
PIECE_BYTES_MAX: Final = 2_000_000  # about 24,000 events in batches
_NICENESS: Final = 10  # whoever counts for the first time goes first

COUNTED = telemetry.counter("usage_events_backfilled_total", "Events that were counted again.")
PENDING = telemetry.gauge("usage_backfills_pending", "Backfills in a partition that are not done.")
FAILED = telemetry.counter("usage_backfills_failed_total", "Backfills that could not be done.")

ReadLog = Callable[[int, int, int], Iterable[Sequence[Record]]]
"""Records of a partition from one offset up to another, in order. Raises `LogTooShort`, `Transient`."""


class LogTooShort(Exception):
    """The log does not reach back to the first event that is to be counted again."""


def unread(partition: int, start: int, end: int) -> Iterable[Sequence[Record]]:
    """For who has no log to read."""
    raise Transient(f"partition {partition} of {usage.TOPIC} has to be read from {start} to {end}, and cannot be here")


class CorrectionWaits(Exception):
    """A correction can be applied only when an earlier backfill of its tenant is done."""

    def __init__(self, tenant: str, offset: int) -> None:
        super().__init__(f"the correction at offset {offset} waits for a backfill of {tenant}")
        self.tenant = tenant
        self.offset = offset


def check(tx: postgres.Cursor, partition: int, judged: Judged) -> None:
    """Raises `CorrectionWaits` for the first correction in `judged` that has to."""
    corrections = [each for run in judged.runs() for each in run.corrections]
    if not corrections:
        return
    waiting = usage_backfill.pending(tx, partition, {each.tenant for each in corrections})
    asked_for = [(each.key.tenant, each.key.offset) for each in waiting]
    asked_for += [(measuring.control.tenant, measuring.offset) for measuring, _ in judged.backfills]
    for each in corrections:
        if any(tenant == each.tenant and offset < each.record.offset for tenant, offset in asked_for):
            raise CorrectionWaits(each.tenant, each.record.offset)


def divided(batch: Batch, offset: int) -> tuple[Batch | None, Batch]:
    """What comes before the record at `offset`, if anything does, and the rest."""
    before = [each for each in batch if each.offset < offset]
    rest = [each for each in batch if each.offset >= offset]
    follows = before[-1].offset + 1 if before else batch.follows
    return Batch(before, batch.follows) if before else None, Batch(rest, follows, next_offset=batch.next_offset)


def asked(partition: int, judged: Judged) -> list[Asked]:
    """What the control records in `judged` ask for."""
    return [
        _asked(partition, backfill, measuring, appended_at)
        for measuring, appended_at in judged.backfills
        if (backfill := measuring.control.backfill) is not None
        and any(meter.key == backfill.meter for meter in measuring.control.meters)
    ]


def _asked(partition: int, backfill: Backfill, measuring: Measuring, appended_at: datetime) -> Asked:
    """Of events that are surely known one by one."""
    control = measuring.control
    oldest_us = measuring.accepted_us((appended_at - PUBLISH_GRACE - EPOCH) // MICROSECOND)[0]
    begins = max((backfill.from_time - EPOCH) // MICROSECOND, oldest_us)
    return Asked(
        Key(control.tenant, partition, measuring.offset),
        control.version,
        measuring.value,
        backfill.meter,
        EPOCH + timedelta(microseconds=begins),
        backfill.to_time or NO_END,
        appended_at,
    )


def reader(config: KafkaConfig) -> ReadLog:
    """Reads from Kafka."""

    def read(partition: int, start: int, end: int) -> Iterator[Sequence[Record]]:
        expected = start
        for records in kafka.scan(config, usage.TOPIC, {partition: start}, {partition: end}):
            follows = records[-1].offset + 1
            if follows - expected > len(records):
                check_kept(partition, expected)
            yield records
            expected = follows
        if expected < end:
            check_kept(partition, expected)

    def check_kept(partition: int, offset: int) -> None:
        """Offsets that hold no record may be markers of transactions, or what retention took, even while it is read."""
        kept = kafka.start_offsets(config, usage.TOPIC, [partition])[partition]
        if kept > offset:
            raise LogTooShort(
                f"the log of partition {partition} begins at offset {kept}; events from {offset} on count"
            )

    return read


class Backfilling:
    """Does what is pending, in the order of the log."""

    def __init__(self, pool: postgres.Pool, read: ReadLog, *, into: int | None = None) -> None:
        """`into`: the generation to work on; None follows the current one."""
        self._pool = pool
        self._read = read
        self._into = into

    def finish(self, partition: int | None = None, tenants: Collection[str] | None = None) -> int:
        """Do everything that is pending, of `partition` and `tenants` or of all; returns how many it were.

        Raises:
            Conflict: somebody else works on the same; call again.
            Transient: the log or Postgres is away; call again.
        """
        with postgres.transaction(self._pool) as tx:
            number = generation.enter(tx, usage.SET, self._into)
            waiting = usage_backfill.pending(tx, partition, tenants)
        for each in waiting:
            try:
                self._do(number, each)
            except generation.Stale as e:
                raise Conflict(str(e)) from e
        return len(waiting)

    def show(self) -> None:
        """Tell by the gauge how many are pending."""
        with postgres.transaction(self._pool) as tx:
            generation.enter(tx, usage.SET, self._into)
            PENDING.set(len(usage_backfill.pending(tx)))

    def _do(self, number: int, backfill: Pending) -> None:
        key, at = backfill.key, backfill.next_offset
        if at is None:
            with self._entered(number) as tx:
                at = usage_backfill.begin(tx, backfill)
        definition = Definition(backfill)
        try:
            for records in self._read(key.partition, at, key.offset) if at < key.offset else ():
                for piece in definition.pieces(records):
                    at = self._prepare(number, definition, piece, at, piece[-1].offset + 1)
                    failpoint("backfill.after_piece")
        except LogTooShort as e:
            with self._entered(number) as tx:
                usage_backfill.fail(tx, key, str(e))
            FAILED.inc()
            log.error("backfill failed", tenant=key.tenant, partition=key.partition, offset=key.offset, reason=str(e))
            return
        self._prepare(number, definition, [], at, key.offset)  # markers of transactions may stand before it
        with self._entered(number) as tx:
            usage_backfill.switch(tx, number, backfill)
            failpoint("backfill.before_commit")
        log.info("meter backfilled", tenant=key.tenant, meter=backfill.meter, partition=key.partition, at=key.offset)

    def _prepare(
        self, number: int, definition: Definition, records: Sequence[Record], expected: int, next_offset: int
    ) -> int:
        """One piece, in one transaction; returns where to go on."""
        with self._entered(number) as tx:
            found = definition.counted(tx, records)
            made, unmeasured = definition.measured(found)
            usage.make_months(tx, {each.time.date().replace(day=1) for each, _ in made})
            ids = usage.series_ids(tx, {part.series for _, part in made})
            rows = [
                Row(ids[part.series], each.offset, each.place, each.time, part.number, part.text) for each, part in made
            ]
            usage_backfill.prepare(tx, definition.backfill.key, rows, expected, next_offset, len(found), unmeasured)
        COUNTED.inc(len(found))
        return next_offset

    @contextmanager
    def _entered(self, number: int) -> Iterator[postgres.Cursor]:
        with postgres.transaction(self._pool) as tx:
            generation.enter(tx, usage.SET, number, writes=True)
            yield tx


def finish(pool: postgres.Pool, read: ReadLog, into: int | None) -> None:
    """Do all that is pending in a generation, beside the process whose work it is.

    Raises:
        Transient: the log or Postgres is away.
    """
    while True:
        try:
            Backfilling(pool, read, into=into).finish()
            return
        except Conflict:  # that process is at it
            time.sleep(_LOOK_AGAIN_S)


_LOOK_AGAIN_S: Final = 0.2


class Event(NamedTuple):
    """An event of the span, as it stands in the log."""

    identity: bytes
    offset: int
    place: int
    """In its record, from 0."""
    time: datetime
    raw: RawEvent


class Definition:
    """A meter as the control record of a backfill defines it."""

    def __init__(self, backfill: Pending) -> None:
        self.backfill = backfill
        control = decode_usage(backfill.control)
        assert isinstance(control, UsageControl)
        meter = next(each for each in control.meters if each.key == backfill.meter)
        self._type = meter.event_type
        # Bounds were judged when the event came: each is measured at its own time.
        self._measuring = Measuring(replace(control, meters=(meter,), clock=None), 0, b"")
        self._tenant = backfill.key.tenant.encode()
        self._begins_us = (backfill.begins_at - EPOCH) // MICROSECOND
        self._ends_us = (backfill.ends_at - EPOCH) // MICROSECOND

    def pieces(self, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
        """`records`, in pieces that fit one transaction."""
        first = size = 0
        for place, each in enumerate(records):
            size += len(each.value or b"") if each.key == self._tenant else 0
            if size >= PIECE_BYTES_MAX:
                yield records[first : place + 1]
                first, size = place + 1, 0
        if first < len(records):
            yield records[first:]

    def counted(self, tx: postgres.Cursor, records: Sequence[Record]) -> list[Event]:
        """The events of the meter's type and the span that count."""
        found = []
        for record in records:
            if record.key != self._tenant:
                continue
            for index, raw in enumerate(_events(record)):
                if raw["type"] == self._type and self._begins_us <= raw["time"] < self._ends_us:
                    time = EPOCH + timedelta(microseconds=raw["time"])
                    found.append(Event(identity_bytes(raw["source"], raw["id"]), record.offset, index, time, raw))
        if not found:
            return []
        places = [(each.identity, each.offset, each.place) for each in found]
        counting = usage_backfill.counting(tx, self.backfill, places)
        return [each for each in found if (each.offset, each.place) in counting]

    def measured(self, events: Sequence[Event]) -> tuple[list[tuple[Event, Contribution]], int]:
        """What each contributes, and how many there are that cannot be measured."""
        made, unmeasured = [], 0
        for each in events:
            try:
                made += [(each, part) for part in self._measuring.contributions(each.raw, each.raw["time"])]
            except Rejected:
                unmeasured += 1
        return made, unmeasured


def _events(record: Record) -> Sequence[RawEvent]:
    try:
        content = decode_usage_records(record.value)
    except DecodeError:
        return ()
    if isinstance(content, UsageAmended):
        return (raw_of(content.event),)
    return content.events if isinstance(content, UsageRecords) else ()


def main(settings: Settings) -> int:
    """Do what comes up until SIGTERM."""
    stop = on_signals()
    os.nice(_NICENESS)
    with postgres.worker_pool(settings, size=1) as pool:
        backfilling = Backfilling(pool, reader(KafkaConfig.of(settings)))
        while not stop.is_set():
            try:
                backfilling.show()
                stop.wait(0 if backfilling.finish() else IDLE_S)
            except (Transient, Conflict, generation.NoGeneration) as error:
                log.warning("backfills pause", reason=str(error))
                stop.wait(TROUBLE_S)
    return 0
