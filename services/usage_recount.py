"""Counts the usage log a second time and compares, all the time: per tenant and hour, received = sum of fates.

Consumes  usage.events, every partition, from its own places
Produces  nothing; gauges, and an error line for each tenant and hour that does not add up
Owns      app.usage_received, app.usage_recount_gap and its places in app.consumer_offset
Repeats   safely because counts and places are one Postgres transaction and places move by compare-and-set: of two
          instances one counts a record, the other reads its place again

It knows records and how many events they hold, nothing of identities, meters or bounds. An hour is compared once both
have passed all of it, in one snapshot, so that neither's lag is mistaken for a loss. Where retention took records
before they were counted here, the hours they may lie in are a gap, and are not compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from infra import kafka, postgres, telemetry
from infra.errors import Conflict, Misconfigured, Transient
from infra.failpoints import failpoint
from infra.kafka import Consumer, KafkaConfig, Record
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import Watchdog, watched
from projections import generation, usage
from services.event_intake import MOVE_PLACE
from services.reconcile import events_in, hour_of

log = telemetry.logger("services.usage_recount")

NAME: Final = "recount"
POLL_S: Final = 0.2
TROUBLE_S: Final = 1.0
CHECK_S: Final = 2.0
RECENT: Final = timedelta(hours=2)
EVERYTHING_S: Final = 600.0  # so often all hours are compared, not only the recent ones
_RECORDS_MAX: Final = 500
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NICENESS: Final = 10  # whoever counts for the first time goes first

DIFFERING = telemetry.gauge("usage_hours_differing", "Tenants' hours whose events and fates do not add up.")
UNACCOUNTED = telemetry.gauge("usage_events_unaccounted", "Events by which they differ, either way.")
COUNTED = telemetry.counter("usage_events_recounted_total", "Events in the log, counted a second time.")


@dataclass(frozen=True, slots=True)
class Difference:
    """A tenant's hour in one partition that does not add up."""

    tenant: str
    hour: datetime
    partition: int
    received: int
    """Events in the log."""
    accounted: int
    """Events with a fate."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one partition that retention took before they were counted a second time."""

    partition: int
    first_offset: int
    next_offset: int
    """The first that the log still had."""
    since: datetime | None
    """First hour they may lie in; None: any before `until`."""
    until: datetime | None
    """Last such hour: that of the first record behind them, which may not be whole. None: no record came yet."""


def main(settings: Settings) -> int:
    """Count and compare until SIGTERM."""
    stop = on_signals()
    os.nice(_NICENESS)
    with postgres.worker_pool(settings) as pool:
        recount = Recount(settings, pool, watchdog=watched(settings))
        try:
            while not stop.is_set():
                try:
                    recount.step(POLL_S)
                    recount.check_when_due()
                except (Transient, Conflict) as e:
                    log.warning("recount pauses", reason=str(e))
                    recount.rewind()
                    stop.wait(TROUBLE_S)
        finally:
            recount.close()
    return 0


class Recount:
    """The second count, and the comparison with the first."""

    def __init__(self, settings: Settings, pool: postgres.Pool, *, watchdog: Watchdog | None = None) -> None:
        self._pool = pool
        self._watchdog = watchdog
        self._partitions = range(settings.usage_partitions)
        self._config = KafkaConfig.of(settings)
        self._consumer = Consumer(self._config, NAME)
        self._next: dict[int, int] = {}
        self._in_gap: frozenset[int] = frozenset()
        """Partitions of which no record behind the last gap was seen yet."""
        self._known: dict[tuple[str, datetime, int], Difference] = {}
        self._checked_s = self._swept_s = float("-inf")

    def step(self, timeout_s: float) -> int:
        """Count what came in; how many events that was.

        Raises:
            Conflict: another instance moved a place; `rewind` and go on.
            Transient: the log or Postgres is away, or the log does not reach back to a place any more; `rewind` and go
                on after a pause.
        """
        if not self._next:
            self._place()
        records = self._poll(timeout_s)
        ends = {each.partition: each.offset + 1 for each in records}
        if not records:  # markers of transactions may stand before the end
            at = {each: self._consumer.position((usage.TOPIC, each)) for _, each in self._consumer.at_end}
            ends = {each: place for each, place in at.items() if place is not None and place > self._next[each]}
        if not ends:
            return 0
        rows = _rows(records)
        behind = {each.partition: hour_of(each.appended_at) for each in reversed(records)} if self._in_gap else {}
        with postgres.transaction(self._pool) as tx:
            for partition, end in sorted(ends.items()):
                moved = {"consumer": NAME, "topic": usage.TOPIC, "partition": partition, "end": end}
                if tx.execute(MOVE_PLACE, {**moved, "expected": self._next[partition]}).rowcount != 1:
                    raise Conflict(f"{usage.TOPIC}/{partition} is not at {self._next[partition]}: another one counted")
            tx.executemany(_ADD, rows)
            for partition in self._in_gap & behind.keys():
                tx.execute(_END_GAP, {"partition": partition, "until": behind[partition]})
            failpoint("recount.before_commit")
        self._next |= ends
        self._in_gap -= behind.keys()
        if self._watchdog is not None:
            for partition, end in ends.items():
                self._watchdog.applied((usage.TOPIC, partition), end)
        events = sum(row[3] for row in rows)
        COUNTED.inc(events)
        return events

    def rewind(self) -> None:
        """Forget what was read; the next step reads on from the stored places."""
        self._next = {}

    def check_when_due(self) -> None:
        """Compare the recent hours every two seconds, and all of them every ten minutes."""
        now = time.monotonic()
        if now - self._swept_s >= EVERYTHING_S:
            self._swept_s = self._checked_s = now
            self.check(_BEGINNING)
        elif now - self._checked_s >= CHECK_S:
            self._checked_s = now
            self.check(datetime.now(UTC) - RECENT)

    def check(self, since: datetime = _BEGINNING) -> list[Difference]:
        """Compare the hours from `since` on; raises the alarm for each difference that is new."""
        with postgres.transaction(self._pool) as tx:
            found = differences(tx, since)
        known = {key: each for key, each in self._known.items() if each.hour >= since}
        told = {(each.tenant, each.hour, each.partition): each for each in found}
        for key, each in told.items():
            if known.get(key) != each:
                log.error(
                    "usage does not add up",
                    tenant=each.tenant,
                    hour=each.hour.isoformat(),
                    partition=each.partition,
                    received=each.received,
                    accounted=each.accounted,
                )
        for key in known.keys() - told.keys():
            log.info("usage adds up again", tenant=key[0], hour=key[1].isoformat(), partition=key[2])
        self._known = {key: each for key, each in self._known.items() if each.hour < since} | told
        DIFFERING.set(len(self._known))
        UNACCOUNTED.set(sum(abs(each.received - each.accounted) for each in self._known.values()))
        return found

    def close(self) -> None:
        """Let go of the brokers."""
        self._consumer.close()

    def _poll(self, timeout_s: float) -> list[Record]:
        try:
            return self._consumer.poll(_RECORDS_MAX, timeout_s)
        except Misconfigured as e:  # so says the client where its place is gone
            begins = kafka.start_offsets(self._config, usage.TOPIC, self._partitions)
            if all(begins[each] <= at for each, at in self._next.items()):
                raise
            raise Transient(f"{usage.TOPIC} was cut before it was counted again") from e

    def _place(self) -> None:
        begins = kafka.start_offsets(self._config, usage.TOPIC, self._partitions)
        with postgres.transaction(self._pool) as tx:
            stored = places(tx)
            at = {each: stored.get(each, 0) for each in self._partitions}
            cut = {each: begin for each, begin in begins.items() if begin > at[each]}
            for partition, begin in cut.items():
                self._skip(tx, partition, at[partition], begin)
            self._in_gap = frozenset(each.partition for each in gaps(tx) if each.until is None)
        self._next = at | cut
        starts = {(usage.TOPIC, each): at for each, at in self._next.items()}
        self._consumer.assign(starts)
        if self._watchdog is not None:
            self._watchdog.holds(starts)

    def _skip(self, tx: postgres.Cursor, partition: int, at: int, begin: int) -> None:
        moved = {"consumer": NAME, "topic": usage.TOPIC, "partition": partition, "expected": at, "end": begin}
        if tx.execute(MOVE_PLACE, moved).rowcount != 1:
            raise Conflict(f"{usage.TOPIC}/{partition} is not at {at}: another one counted")
        tx.execute(_BEGIN_GAP, moved)
        log.warning("the log was cut before it was counted again", partition=partition, offset=at, next_offset=begin)


def _rows(records: Sequence[Record]) -> list[tuple[str, datetime, int, int, int, int]]:
    """Rows of app.usage_received, in the order of their keys."""
    made: dict[tuple[str, datetime, int], list[int]] = {}
    for record in records:
        tenant, events = events_in(record)
        if not events:
            continue
        key = (tenant, hour_of(record.appended_at), record.partition)
        counted = made.setdefault(key, [0, record.offset, record.offset])
        counted[0] += events
        counted[2] = record.offset
    return [(*key, *counted) for key, counted in sorted(made.items())]  # type: ignore[misc]


def places(tx: postgres.Cursor) -> dict[int, int]:
    """Partition -> offset up to which the log was counted a second time."""
    return dict(
        tx.execute("SELECT partition, next_offset FROM app.consumer_offset WHERE consumer = %s", (NAME,)).fetchall()
    )


def gaps(tx: postgres.Cursor) -> list[Gap]:
    """What of the log could never be counted a second time, by partition and from the oldest."""
    return [Gap(*row) for row in tx.execute(_GAPS).fetchall()]


def differences(tx: postgres.Cursor, since: datetime = _BEGINNING) -> list[Difference]:
    """What does not add up from the hour `since` on, as far as both counts have passed; sets the snapshot of `tx`.

    Hours in a `Gap` are left out.
    """
    tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    number = generation.enter(tx, usage.SET)
    asked: dict[str, Any] = {"since": since, "consumer": NAME, "set": usage.SET, "generation": number}
    return [Difference(*row) for row in tx.execute(_DIFFERENCES, asked | {"topic": usage.TOPIC}).fetchall()]


@dataclass(frozen=True, slots=True)
class Hour:
    """A tenant's hour over all partitions."""

    tenant: str
    hour: datetime
    received: int
    """Events in the log, as far as they were counted a second time: in the hours of a `Gap` less than there were."""
    counted: int
    duplicate: int
    conflict: int
    rejected: int
    voided: int
    """Corrections appended in the hour, like the next: they are no events, and what they correct stays `counted`."""
    amended: int


def hours(tx: postgres.Cursor, since: datetime, tenant: str | None = None) -> list[Hour]:
    """Both counts by tenant and hour, in the snapshot of `tx`, which has entered the generation of usage."""
    return [Hour(*row) for row in tx.execute(_HOURS, {"since": since, "tenant": tenant}).fetchall()]


_ADD = """
INSERT INTO app.usage_received (tenant_id, hour, partition, events, first_offset, last_offset)
VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, hour, partition) DO UPDATE
   SET events = usage_received.events + EXCLUDED.events,
       first_offset = least(usage_received.first_offset, EXCLUDED.first_offset),
       last_offset = greatest(usage_received.last_offset, EXCLUDED.last_offset)
"""

_GAPS = """
SELECT partition, first_offset, next_offset, since, until FROM app.usage_recount_gap ORDER BY partition, first_offset
"""

# Records come by their append: those that are missing are no older than the newest that was counted.
_BEGIN_GAP = """
INSERT INTO app.usage_recount_gap (partition, first_offset, next_offset, since)
SELECT %(partition)s, %(expected)s, %(end)s, (SELECT max(hour) FROM app.usage_received WHERE partition = %(partition)s)
"""

_END_GAP = "UPDATE app.usage_recount_gap SET until = %(until)s WHERE partition = %(partition)s AND until IS NULL"

# Where this count is ahead, a row is complete in both if its last record is applied. Where the aggregator is ahead, an
# hour counts as complete once this count has seen records of the hour after the next one.
_DIFFERENCES = """
WITH received AS (SELECT tenant_id, hour, partition, events, last_offset
                    FROM app.usage_received WHERE hour >= %(since)s),
     fate AS (SELECT tenant_id, hour, partition, counted + duplicate + conflict + rejected AS accounted
                FROM usage_fate WHERE hour >= %(since)s),
     place AS (SELECT r.partition, r.next_offset AS recounted, a.next_offset AS applied,
                      (SELECT max(hour) FROM app.usage_received n WHERE n.partition = r.partition) AS newest
                 FROM app.consumer_offset r
                 JOIN app.checkpoint a ON a.projection = %(set)s AND a.generation = %(generation)s
                                      AND a.topic = r.topic AND a.partition = r.partition
                WHERE r.consumer = %(consumer)s AND r.topic = %(topic)s)
SELECT tenant_id, hour, partition, coalesce(r.events, 0), coalesce(f.accounted, 0)
  FROM received r
  FULL JOIN fate f USING (tenant_id, hour, partition)
  JOIN place p USING (partition)
 WHERE coalesce(r.events, 0) <> coalesce(f.accounted, 0)
   AND CASE WHEN p.recounted >= p.applied THEN coalesce(r.last_offset, -1) < p.applied
            ELSE hour < p.newest - interval '1 hour' END
   AND NOT EXISTS (SELECT FROM app.usage_recount_gap g
                    WHERE g.partition = p.partition AND hour >= coalesce(g.since, '-infinity')
                      AND hour <= coalesce(g.until, 'infinity'))
 ORDER BY tenant_id, hour, partition
"""

_HOURS = """
WITH received AS (SELECT tenant_id, hour, sum(events)::bigint AS events
                    FROM app.usage_received WHERE hour >= %(since)s GROUP BY tenant_id, hour),
     fate AS (SELECT tenant_id, hour, sum(counted)::bigint AS counted, sum(duplicate)::bigint AS duplicate,
                     sum(conflict)::bigint AS conflict, sum(rejected)::bigint AS rejected,
                     sum(voided)::bigint AS voided, sum(amended)::bigint AS amended
                FROM usage_fate WHERE hour >= %(since)s GROUP BY tenant_id, hour)
SELECT tenant_id, hour, coalesce(events, 0), coalesce(counted, 0), coalesce(duplicate, 0), coalesce(conflict, 0),
       coalesce(rejected, 0), coalesce(voided, 0), coalesce(amended, 0)
  FROM received
  FULL JOIN fate USING (tenant_id, hour)
 WHERE tenant_id = coalesce(%(tenant)s, tenant_id)
 ORDER BY tenant_id, hour
"""
