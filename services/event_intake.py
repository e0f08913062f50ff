"""Reading `billing.events` into Postgres rows that are never rebuilt.

The place in the log moves in the transaction that writes the rows, by compare-and-set: what was written is never
written again, whatever dies in between, and a process that lost its partition without knowing cannot write. After
any failure the place is read back from Postgres and the log is read on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from infra import postgres, telemetry
from infra.errors import Conflict, Transient
from infra.failpoints import failpoint
from infra.kafka import Consumer, KafkaConfig, Position, Record
from infra.settings import Settings
from infra.watchdog import Watchdog
from schemas.codec import decode_event
from schemas.errors import DecodeError

log = telemetry.logger("services.event_intake")

EVENTS: Final = "billing.events"
BATCH_MAX: Final = 500

Apply = Callable[[postgres.Cursor, EventEnvelope, bytes], None]
"""Writes the rows of one event; the bytes are its value in the log."""


class Unplaced(Exception):
    """Where to read on could not be asked when the group gave partitions: the process has to start again."""


class EventLog(Protocol):
    """What the intake needs of a Kafka consumer."""

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        assigned: Callable[[list[Position]], Mapping[Position, int] | None],
        revoked: Callable[[list[Position]], None],
        lost: Callable[[list[Position]], None],
    ) -> None: ...

    def poll(self, records_max: int, timeout_s: float) -> list[Record]: ...

    def seek(self, position: Position, offset: int) -> None: ...

    def close(self) -> None: ...


class EventIntake:
    """Applies the events that `wanted` names, each once, in order per tenant."""

    def __init__(
        self,
        name: str,
        events: EventLog,
        pool: postgres.Pool,
        wanted: Iterable[type],
        apply: Apply,
        *,
        passing: Mapping[str, str] | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """`name` stands in app.consumer_offset. `passing` names failpoints for `poll`, `rows` and `commit`."""
        self._name = name
        self._events = events
        self._pool = pool
        self._wanted = frozenset(each.__name__ for each in wanted)
        self._apply = apply
        self._passing = dict(passing or {})
        self._watchdog = watchdog
        self._next: dict[Position, int] = {}
        self._astray = False
        self._unplaced: Exception | None = None
        events.subscribe([EVENTS], assigned=self._assigned, revoked=self._revoked, lost=self._revoked)

    def step(self, timeout_s: float) -> int:
        """Apply what came in; how many events that was.

        Raises:
            CorruptHistory: an event of the log cannot be read.
            Transient: the log or Postgres is away. Call again after a pause.
            Unplaced: end the process.
        """
        if self._astray:
            self._rewind()
        records = self._poll(timeout_s)
        if not records:
            return 0
        self._pass("poll")
        # Until it is known that these are committed, nothing behind them may be read: the log has moved past them.
        self._astray = True
        applied = 0
        try:
            with postgres.transaction(self._pool) as tx:
                for record in records:
                    applied += self._apply_one(tx, record)
                self._move(tx, records)
                self._pass("rows")
        except Conflict as e:
            log.warning("rolled back, reading on from the stored place", consumer=self._name, reason=str(e))
            return 0
        for record in records:
            self._next[record.topic, record.partition] = record.offset + 1
        self._astray = False
        if self._watchdog is not None:
            for position in {(each.topic, each.partition) for each in records}:
                self._watchdog.applied(position, self._next[position])
        self._pass("commit")
        return applied

    def _poll(self, timeout_s: float) -> list[Record]:
        try:
            records = self._events.poll(BATCH_MAX, timeout_s)
        except Transient:
            self._astray = True  # whatever was fetched before the error is lost, and the log has moved past it
            raise
        if self._unplaced is not None:
            raise Unplaced("partitions were assigned, but their stored places could not be read") from self._unplaced
        # Without those of a partition that was taken away in this very moment.
        places = [(each, self._next.get((each.topic, each.partition))) for each in records]
        return [each for each, place in places if place is not None and each.offset >= place]

    def close(self) -> None:
        """Leave the group."""
        self._events.close()

    def _apply_one(self, tx: postgres.Cursor, record: Record) -> int:
        kind = record.headers.get("ce_type", b"").decode().rpartition(".")[2]
        if kind and kind not in self._wanted:
            return 0
        try:
            envelope = decode_event(record.value)
        except DecodeError as e:
            log.critical(
                "event cannot be read",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                reason=str(e),
            )
            raise CorruptHistory(f"{record.topic}[{record.partition}]@{record.offset}: {e}") from e
        if envelope.meta.type not in self._wanted:
            return 0
        assert record.value is not None
        self._apply(tx, envelope, record.value)
        return 1

    def _move(self, tx: postgres.Cursor, records: Sequence[Record]) -> None:
        """Raises `Conflict` if the stored place is not where this batch began."""
        ends = {(each.topic, each.partition): each.offset + 1 for each in records}
        for (topic, partition), end in sorted(ends.items()):
            at: dict[str, Any] = {"consumer": self._name, "topic": topic, "partition": partition}
            expected = self._next[topic, partition]
            if tx.execute(MOVE_PLACE, {**at, "end": end, "expected": expected}).rowcount != 1:
                raise Conflict(f"{topic}[{partition}] is not at {expected}: another process moved it")

    def _assigned(self, positions: list[Position]) -> dict[Position, int]:
        try:
            self._next |= self._stored(positions)
        except (Transient, Conflict) as e:
            self._unplaced = e  # it must not leave a callback of the client, which would go on without partitions
            return {}
        if self._watchdog is not None:
            self._watchdog.holds({each: self._next[each] for each in positions})
        return {each: self._next[each] for each in positions}

    def _revoked(self, positions: list[Position]) -> None:
        for each in positions:
            self._next.pop(each, None)
        if self._watchdog is not None:
            self._watchdog.lets_go(positions)

    def _rewind(self) -> None:
        self._next |= self._stored(list(self._next))
        for position, offset in self._next.items():
            self._events.seek(position, offset)
        self._astray = False

    def _stored(self, positions: list[Position]) -> dict[Position, int]:
        with postgres.transaction(self._pool) as tx:
            rows = tx.execute(_STORED, (self._name,)).fetchall()
        stored = {(topic, partition): next_offset for topic, partition, next_offset in rows}
        return {each: stored.get(each, 0) for each in positions}

    def _pass(self, place: str) -> None:
        if place in self._passing:
            failpoint(self._passing[place])


_STORED = """
SELECT topic, partition, next_offset
  FROM app.consumer_offset
 WHERE consumer = %s
"""

MOVE_PLACE: Final = """
INSERT INTO app.consumer_offset (consumer, topic, partition, next_offset)
SELECT %(consumer)s, %(topic)s, %(partition)s, %(end)s
 WHERE %(expected)s = 0
    OR EXISTS (SELECT FROM app.consumer_offset
                WHERE consumer = %(consumer)s AND topic = %(topic)s AND partition = %(partition)s)
    ON CONFLICT (consumer, topic, partition) DO UPDATE
   SET next_offset = EXCLUDED.next_offset, moved_at = now()
 WHERE consumer_offset.next_offset = %(expected)s
"""
"""Moves a consumer's place. No row changes if another process moved it: the caller rolls back."""


def consumer(settings: Settings, group: str) -> Consumer:
    """A consumer of committed events that starts at the beginning where nothing is stored."""
    static: dict[str, Any] = {"group.instance.id": settings.instance} if settings.instance else {}
    return Consumer(KafkaConfig.of(settings), group, reset="earliest", **static, **_MEMBER)


_MEMBER: Final[Mapping[str, Any]] = {"session.timeout.ms": 6_000, "heartbeat.interval.ms": 1_500}
