"""Rows and place move together: what is written once is never written again, and nothing is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from billing.tenant import AdvanceClock, ClockAdvanced
from infra import postgres
from infra.clock import now
from infra.errors import Transient
from infra.kafka import Position, Record
from infra.settings import Settings
from schemas.codec import encode_event
from services import event_intake
from services.event_intake import EVENTS, EventIntake, Unplaced
from tests.invoicing import airline
from tests.invoicing.airline import JANUARY, ManualClock
from tests.invoicing.handler import MemoryHandler


class MemoryLog:
    """One partition that is read as a Kafka consumer reads it: a position that moves on, and can be set back."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.at = 0
        self._assigned: Callable[[list[Position]], Mapping[Position, int] | None] = lambda _: {}

    def subscribe(self, topics: Sequence[str], *, assigned: Any, revoked: Any, lost: Any) -> None:
        self._assigned = assigned
        self.assign()

    def assign(self) -> None:
        self.at = (self._assigned([(EVENTS, 0)]) or {}).get((EVENTS, 0), 0)

    def poll(self, records_max: int, timeout_s: float) -> list[Record]:
        found = [each for each in self.records if each.offset >= self.at][:2]
        if found:
            self.at = found[-1].offset + 1
        return found

    def seek(self, position: Position, offset: int) -> None:
        self.at = offset

    def close(self) -> None:
        pass


@pytest.fixture
def records() -> list[Record]:
    """Two events that nobody wants, then seven; offsets with the gaps that transaction markers leave."""
    handler = MemoryHandler(ManualClock().now)
    handler.must("airport", airline.register())
    handler.must("airport", airline.BOOK)
    for day in range(7):
        handler.must("airport", AdvanceClock(to=JANUARY.replace(day=day + 2)))
    made = []
    for n, each in enumerate(handler.log):
        kind = f"tallybook.events.{each.meta.type}".encode()
        made.append(Record(EVENTS, 0, n * 3, b"airport", encode_event(each), {"ce_type": kind}, (), now()))
    return made


@pytest.fixture
def pool(fresh: Settings) -> Iterator[postgres.Pool]:
    with postgres.worker_pool(fresh) as opened:
        with postgres.connect(fresh.postgres, autocommit=True) as owner:
            owner.execute("CREATE TABLE app.seen (position bigserial, day integer)")
            owner.execute("GRANT ALL ON app.seen TO tallybook_worker; GRANT ALL ON app.seen_position_seq TO PUBLIC")
        yield opened


def note(tx: postgres.Cursor, envelope: EventEnvelope, value: bytes) -> None:
    tx.execute("INSERT INTO app.seen (day) VALUES (%s)", (envelope.event.to.day,))


def seen(pool: postgres.Pool) -> list[int]:
    with postgres.transaction(pool) as tx:
        return [row[0] for row in tx.execute("SELECT day FROM app.seen ORDER BY position").fetchall()]


def intake(log: MemoryLog, pool: postgres.Pool) -> EventIntake:
    return EventIntake("test", log, pool, [ClockAdvanced], note)


ALL = list(range(2, 9))


def test_events_are_applied_once_and_in_order_across_restarts(records: list[Record], pool: postgres.Pool) -> None:
    for _ in range(8):
        restarted = intake(MemoryLog(records), pool)
        restarted.step(0)
    assert seen(pool) == ALL


def test_a_process_that_lost_its_partition_unknowingly_writes_nothing(
    records: list[Record], pool: postgres.Pool
) -> None:
    zombie, heir = intake(MemoryLog(records), pool), intake(MemoryLog(records), pool)
    for _ in range(10):
        heir.step(0)
        zombie.step(0)
    assert seen(pool) == ALL


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_nothing_is_skipped_when_postgres_goes_away(
    records: list[Record], pool: postgres.Pool, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    reading = intake(MemoryLog(records), pool)
    reading.step(0)
    real, left = postgres.transaction, failures

    @contextmanager
    def failing(of: postgres.Pool) -> Iterator[postgres.Cursor]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Transient("Postgres is away")
        with real(of) as tx:
            yield tx

    monkeypatch.setattr(event_intake.postgres, "transaction", failing)
    for _ in range(failures):
        with pytest.raises(Transient):
            reading.step(0)
    for _ in range(10):
        reading.step(0)
    monkeypatch.undo()
    assert seen(pool) == ALL


def test_a_commit_whose_answer_was_lost_is_not_repeated(
    records: list[Record], pool: postgres.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = intake(MemoryLog(records), pool)
    real = postgres.transaction

    @contextmanager
    def lost(of: postgres.Pool) -> Iterator[postgres.Cursor]:
        with real(of) as tx:
            yield tx
        raise Transient("the connection died at COMMIT")

    monkeypatch.setattr(event_intake.postgres, "transaction", lost)
    with pytest.raises(Transient):
        reading.step(0)
    monkeypatch.undo()
    for _ in range(10):
        reading.step(0)
    assert seen(pool) == ALL


def test_partitions_given_while_postgres_is_away_end_the_process(
    records: list[Record], pool: postgres.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog(records)
    reading = intake(log, pool)

    @contextmanager
    def away(of: postgres.Pool) -> Iterator[postgres.Cursor]:
        raise Transient("Postgres is away")
        yield

    monkeypatch.setattr(event_intake.postgres, "transaction", away)
    log.assign()
    with pytest.raises(Unplaced):
        reading.step(0)


def test_an_event_that_cannot_be_read_stops_the_process_and_names_its_place(
    records: list[Record], pool: postgres.Pool
) -> None:
    broken = records[3]._replace(value=b"\xc3\x01garbage")
    reading = intake(MemoryLog([*records[:3], broken]), pool)
    reading.step(0)
    with pytest.raises(CorruptHistory, match=r"billing\.events\[0\]@9"):
        reading.step(0)
