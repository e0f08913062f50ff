"""Whatever comes between and whoever does it when: what counts is what the definitions say at each offset."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.aggregation import Point
from billing.backfilling import Backfill
from billing.errors import Rejected
from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.metering import (
    Aggregation,
    Filter,
    Meter,
    UsageAmended,
    UsageBatch,
    UsageControl,
    UsageEvent,
    UsageVoided,
    readings,
)
from billing.period import Period
from infra import postgres
from projections import generation, usage, usage_query
from schemas.codec import decode_usage
from services.usage_backfilling import Backfilling
from tests.usage.conftest import Bench
from tests.usage.making import NOON, TENANT, Log, amendment, batch, control, event, void
from tests.usage.test_backfilling import EVER, NEW, OLD, OTHER, backfill, reading, store

DEFINITIONS = (
    OLD,
    NEW,
    replace(OLD, filters=(Filter(property="region", values=("eu", "ch")),)),
    replace(NEW, dimensions=("region", "kind")),
    Meter(key="volume", event_type="api", dimensions=("kind",)),
    Meter(key="volume", event_type="other", aggregation=Aggregation.SUM, value="weight"),
)
READ_BY = (
    NEW,
    replace(OLD, aggregation=Aggregation.MAX, dimensions=("region",)),
    replace(OLD, aggregation=Aggregation.LATEST),
    replace(OLD, aggregation=Aggregation.AVERAGE),
    Meter(key="volume", event_type="api"),
)


@dataclass
class Standing:
    """An event as it counts by now."""

    event: UsageEvent
    place: str
    point: Point | None


class Model:
    """By the book: what every event counts for `volume` at each offset of one partition."""

    def __init__(self) -> None:
        self.first: dict[str, UsageEvent] = {}
        self.standing: dict[str, Standing] = {}
        self.meters: tuple[Meter, ...] = ()

    def apply(self, offset: int, content: Any) -> None:
        match content:
            case UsageControl():
                self.meters = content.meters
                if content.backfill is not None:
                    self._backfill(content.backfill)
            case UsageBatch():
                for index, each in enumerate(content.events):
                    if each.id not in self.first and self._is_accepted(each):
                        self.first[each.id] = each
                        self._stand(each, f"{offset:08}{index:04}")
            case UsageVoided():
                self.standing.pop(content.id, None)
            case UsageAmended(event=amended):
                known = self.standing.get(amended.id)
                if known is not None and known.event != amended and self._is_accepted(amended):
                    self._stand(amended, f"{offset:08}0000")

    def _is_accepted(self, each: UsageEvent) -> bool:
        try:
            readings(each, self.meters)
        except Rejected:
            return False
        return True

    def _stand(self, each: UsageEvent, place: str) -> None:
        self.standing[each.id] = Standing(each, place, self._point(each, place))

    def _point(self, each: UsageEvent, place: str) -> Point | None:
        (meter,) = [meter for meter in self.meters if meter.key == "volume"]
        try:
            found = readings(each, [meter])
        except Rejected:
            return None
        if not found or each.customer != "c1":
            return None
        named = tuple(zip(meter.dimensions, found[0].dimensions, strict=True))
        return Point(each.time, found[0].number or Decimal(0), "", False, place, named)  # type: ignore[arg-type]

    def _backfill(self, asked: Backfill) -> None:
        for each in self.standing.values():
            if asked.from_time <= each.event.time and (asked.to_time is None or each.event.time < asked.to_time):
                each.point = self._point(each.event, each.place)

    def points(self, meter: Meter) -> list[Point]:
        made = []
        for each in self.standing.values():
            if each.point is not None:
                known: dict[str, str] = dict(each.point.dimensions)  # type: ignore[arg-type]
                made.append(replace(each.point, dimensions=tuple(known.get(name, "") for name in meter.dimensions)))
        return made


def some_log(chance: random.Random) -> Log:
    log = Log()
    log.append(control(meters=(OLD, OTHER)))
    ids, version = 0, 1

    def fresh(id: str) -> UsageEvent:
        at = NOON - timedelta(minutes=chance.choice([0, 1, 59, 60, 61, 300, 3000]))
        properties = {"region": chance.choice(["eu", "us", ""]), "kind": chance.choice(["a", "b"])}
        if chance.random() < 0.8:
            properties["weight"] = str(chance.randint(1, 5))
        more = {"customer": "c2"} if chance.random() < 0.2 else {}
        return event(
            id, at, bytes=str(chance.randint(1, 9)), type=chance.choice(["api", "api", "other"]), **more, **properties
        )

    for _ in range(40):
        known = str(chance.randint(0, max(ids, 1)))
        match chance.choice(["events", "events", "events", "void", "amend", "meter", "backfill", "backfill"]):
            case "events":
                made = [fresh(str(ids + each)) for each in range(chance.randint(1, 5))]
                ids += len(made)
                log.append(batch(*made, *([fresh(known)] if chance.random() < 0.3 else [])))
            case "void":
                log.append(void(known))
            case "amend":
                log.append(amendment(fresh(known)))
            case "meter":
                version += 1
                log.append(control(version, meters=(chance.choice(DEFINITIONS), OTHER)))
            case "backfill":
                version += 1
                begins = NOON - timedelta(minutes=chance.choice([61, 600, 4000]))
                ends = chance.choice([None, NOON, NOON - timedelta(minutes=60)])
                asked = backfill(version, begins=begins, ends=ends)
                log.append(control(meters=(chance.choice(DEFINITIONS), OTHER), **asked))
    return log


def apply_in_batches(bench: Bench, log: Log, chance: random.Random, into: int | None = None) -> None:
    """With the backfills done now and then, by whoever comes to it."""
    at, beside = 0, Backfilling(bench.pool, reading(log), into=into)
    own = store(bench, log, into=into)
    while at < len(log.records):
        size = chance.choice([1, 2, 5, 40])
        bench.apply(log.records[at : at + size], store=own)
        at += size
        if chance.random() < 0.3:
            beside.finish()
    beside.finish()


def model(log: Log, below: int) -> Model:
    made = Model()
    for record in log.records:
        if record.offset < below:
            made.apply(record.offset, decode_usage(record.value))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_what_is_counted_is_what_the_definitions_say_at_each_offset(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    for meter in READ_BY:
        for below in [*(chance.randint(0, len(log.records)) for _ in range(6)), len(log.records)]:
            start = NOON - timedelta(minutes=chance.choice([1, 60, 90, 5000]))
            period = Period(start, chance.choice([NOON, NOON + timedelta(minutes=7)]))
            need = Need(meter, period, (PartitionPosition(partition=0, offset=below),))
            alone = meter.aggregation is Aggregation.SUM
            assert bench.quantities([need])[need] == measured(need, model(log, below).points(meter), one_by_one=alone)
    question = usage_query.Question(meter=NEW, period=EVER, customer="c1", window=chance.choice([None, "hour"]))
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET)
        found = usage_query.answers(tx, TENANT, question)
    left = model(log, len(log.records)).points(NEW)
    assert sum(each.quantity for each in found) == sum(each.value for each in left)


@pytest.mark.parametrize("seed", range(8))
def test_a_rebuild_leaves_the_same_rows(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = some_log(chance)
    apply_in_batches(bench, log, chance)
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    apply_in_batches(bench, log, chance, into=number)
    for table, statement in {**usage.COMPARED, "usage_backfill_value": "SELECT * FROM usage_backfill_value"}.items():
        here = sorted(map(repr, bench.rows(statement)))
        with postgres.transaction(bench.pool) as tx:
            generation.enter(tx, usage.SET, number)
            there = sorted(map(repr, tx.execute(statement).fetchall()))
        assert here == there, table
