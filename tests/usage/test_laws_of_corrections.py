"""Voided and amended usage is what the rules measure of the events that are left: any meter, any cut, any batching."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.aggregation import Point
from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.metering import GONE, Aggregation, Meter, UsageAmended, UsageBatch, UsageEvent, UsageVoided, read
from billing.period import Period
from infra import migrate, postgres
from projections import generation, usage, usage_query, usage_read
from schemas.codec import decode_usage
from tests.usage.conftest import ACME, C1, Bench
from tests.usage.making import NOON, TENANT, Log, amendment, batch, control, event, void
from tests.usage.test_laws_of_quantities import LEVEL, SEATS, VARIANTS, some_events

PLAIN = Meter(key="plain", event_type="api", dimensions=("region",))
APPENDED = NOON.replace(month=11, day=4)


class Model:
    """By the book: every event as it stands at each offset of one partition."""

    def __init__(self) -> None:
        self.events: dict[str, tuple[UsageEvent, str]] = {}
        self.first: dict[str, UsageEvent] = {}
        self.voided: set[str] = set()
        self.fates = {"counted": 0, "duplicate": 0, "conflict": 0, "voided": 0, "amended": 0, "repeated": 0}
        self.refused: list[tuple[str, str]] = []

    def apply(self, offset: int, content: Any) -> None:
        if isinstance(content, UsageBatch):
            for index, each in enumerate(content.events):
                if each.id not in self.first:
                    self.first[each.id] = each
                    self.events[each.id] = (each, f"{offset:08}{index:04}")
                    self.fates["counted"] += 1
                elif self.first[each.id] == each:
                    self.fates["duplicate"] += 1
                else:
                    self.fates["conflict"] += 1
                    self.refused.append(("id_conflict", each.id))
        elif isinstance(content, UsageVoided):
            self._correct(offset, content.id, None)
        elif isinstance(content, UsageAmended):
            self._correct(offset, content.event.id, content.event)

    def _correct(self, offset: int, id: str, amended: UsageEvent | None) -> None:
        if id not in self.first:
            self.refused.append(("unknown_event", id))
        elif (amended is None and id in self.voided) or (amended is not None and self._stands(id) == amended):
            self.fates["repeated"] += 1
        elif id in self.voided:
            self.refused.append(("event_voided", id))
        elif amended is None:
            self.voided.add(id)
            del self.events[id]
            self.fates["voided"] += 1
        else:
            self.events[id] = (amended, f"{offset:08}0000")
            self.fates["amended"] += 1

    def _stands(self, id: str) -> UsageEvent | None:
        return self.events[id][0] if id in self.events else None

    def points(self, meter: Meter) -> list[Point]:
        recorded = SEATS if meter.aggregation is Aggregation.UNIQUE else LEVEL
        made = []
        for each, place in self.events.values():
            reading = read(recorded, each)
            if each.customer != "c1" or (reading.number is None and reading.text is None):
                continue
            known = dict(zip(recorded.dimensions, reading.dimensions, strict=True))
            made.append(
                Point(
                    each.time,
                    Decimal(1) if reading.text else reading.number or Decimal(0),
                    reading.text or "",
                    bool(reading.text) and reading.number == GONE,
                    place,
                    tuple(known[name] for name in meter.dimensions),
                )
            )
        return made


def some_log(chance: random.Random) -> Log:
    log = Log()
    log.append(control(meters=(LEVEL, SEATS, PLAIN)), at=NOON)
    sent: list[UsageEvent] = []
    for number in range(40):
        known = chance.choice(sent) if sent else some_events(chance, 0)[0]
        fresh = some_events(chance, number * 100)[: chance.randint(1, 6)]
        match chance.choice(["events", "events", "again", "void", "void", "amend", "amend", "many", "unknown"]):
            case "events":
                sent += fresh
                log.append(batch(*fresh), at=APPENDED)
            case "again":
                log.append(batch(known, *fresh, replace(known, customer="c3")), at=APPENDED)
                sent += fresh
            case "void":
                log.append(void(known.id), at=APPENDED)
            case "amend":
                other = chance.choice([known, replace(fresh[0], id=known.id), replace(fresh[0], id=known.id)])
                log.append(amendment(other), at=APPENDED)
            case "many":
                for _ in range(chance.randint(3, 8)):
                    id = chance.choice([known.id, known.id, chance.choice(sent or [known]).id])
                    other = replace(chance.choice([known, *fresh]), id=id)
                    log.append(chance.choice([amendment(other), amendment(other), void(id)]), at=APPENDED)
            case "unknown":
                log.append(chance.choice([void("nobody"), amendment(replace(fresh[0], id="nobody"))]), at=APPENDED)
    return log


def apply_in_batches(bench: Bench, log: Log, chance: random.Random, store: Any = None) -> None:
    at = 0
    while at < len(log.records):
        size = chance.choice([1, 2, 5, 40])
        bench.apply(log.records[at : at + size], store=store)
        if chance.random() < 0.2:  # redelivered, to a worker that knows nothing
            bench.apply(log.records[: at + size], follows=0, store=bench.another() if store is None else store)
        at += size


def model(log: Log, below: int) -> Model:
    made = Model()
    for record in log.records:
        if record.offset < below:
            made.apply(record.offset, decode_usage(record.value))
    return made


def some_period(chance: random.Random) -> Period:
    start = NOON.replace(month=chance.choice([10, 11]), day=1) + timedelta(minutes=chance.choice([-600, 0, 7, 61]))
    return Period(start, start + timedelta(minutes=chance.choice([5, 60, 1441, 4000, 45_000])))


@pytest.mark.parametrize("seed", range(6))
def test_postgres_reads_what_the_rules_measure_of_what_is_left(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    for meter, held in VARIANTS:
        for _ in range(3):
            period = some_period(chance)
            below = chance.randint(0, len(log.records))
            cut = (PartitionPosition(partition=0, offset=below),)
            need = Need(meter, period, cut, None, held)
            alone = meter.aggregation is Aggregation.SUM and not held
            expected = measured(need, model(log, below).points(meter), one_by_one=alone)
            assert bench.quantities([need])[need] == expected, need
    everything = model(log, len(log.records))
    assert sorted((each.usage.reason, each.usage.id or "") for each in bench.refused) == sorted(everything.refused)
    fates = bench.fates()
    assert {name: getattr(fates, name) for name in everything.fates} == everything.fates
    assert fates.received == fates.counted + fates.duplicate + fates.conflict


@pytest.mark.parametrize("seed", range(6))
def test_another_batching_leaves_the_same_rows(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    apply_in_batches(bench, log, chance, bench.another(into=number))
    for table, statement in usage.COMPARED.items():
        here = sorted(map(repr, bench.rows(statement)))
        with postgres.transaction(bench.pool) as tx:
            generation.enter(tx, usage.SET, number)
            there = sorted(map(repr, tx.execute(statement).fetchall()))
        assert here == there, table


@pytest.mark.parametrize("seed", range(4))
def test_late_is_what_stands_otherwise_than_at_the_last_cut(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    for _ in range(40):
        period = some_period(chance)
        since, until = sorted(chance.choices(range(len(log.records) + 1), k=2))

        def standing(below: int, period: Period = period) -> set[tuple[datetime, str]]:
            events = model(log, below).events.values()
            return {
                (each.time, place)
                for each, place in events
                if each.customer == "c1" and period.start <= each.time < period.end
            }

        assert _has_late(bench, period, since, until) == (standing(since) != standing(until)), (since, until)


def _has_late(bench: Bench, period: Period, since: int, until: int) -> bool:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        before, after = (PartitionPosition(partition=0, offset=each) for each in (since, until))
        return usage_read.has_late(tx, ACME, C1, period, [before], [after])


@pytest.mark.parametrize("seed", range(4))
def test_a_question_is_answered_of_what_is_left(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    left = [each for each, _ in model(log, len(log.records)).events.values() if each.customer == "c1"]
    for _ in range(10):
        period = some_period(chance)
        question = usage_query.Question(meter=PLAIN, period=period, customer="c1", window=chance.choice([None, "hour"]))
        with postgres.transaction(bench.pool) as tx:
            generation.enter(tx, usage.SET)
            found = usage_query.answers(tx, TENANT, question)
        inside = [each for each in left if period.start <= each.time < period.end]
        assert all(each.events for each in found), "where nothing is left there is no row"
        assert [sum(each.quantity for each in found), sum(each.events for each in found)] == [len(inside)] * 2


def test_a_generation_from_before_can_be_corrected_too(bench: Bench) -> None:
    log = Log()
    log.append(control(meters=(PLAIN,)), at=NOON)
    log.append(batch(event("1"), event("2", NOON + timedelta(hours=1))), at=NOON)
    bench.apply(log.records)
    migration = Path(migrate.__file__).parent / "migrations" / "0060_usage_corrections.sql"
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        generation.enter(tx, usage.SET)
        tx.execute("ALTER TABLE usage_value DROP COLUMN voided_offset")
        tx.execute("ALTER TABLE usage_identity DROP amended_content, DROP amended_at, DROP voided_offset")
        tx.execute("ALTER TABLE usage_fate DROP COLUMN voided, DROP COLUMN amended, DROP COLUMN repeated")
        tx.execute("ALTER TABLE usage_window DROP CONSTRAINT usage_window_events_check, ADD CHECK (events > 0)")
        for _ in range(2):
            tx.execute(migration.read_bytes())
    log.append(void("1"), at=NOON)
    log.append(void("nobody"), at=NOON)
    bench.apply(log.records[2:])
    assert bench.measured(PLAIN).total == 1
    assert [each.usage.reason for each in bench.refused] == ["unknown_event"]
