"""What Postgres reads is what the rules measure: any meter, any period, any cut, in any order of arrival."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.aggregation import Point
from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.meter import WINDOWED, Band, TimeOfDay, WindowUnit, check_meter
from billing.metering import GONE, Aggregation, Filter, Meter, UsageBatch, read
from billing.period import Period
from schemas.codec import decode_usage
from tests.usage.conftest import Bench
from tests.usage.making import NOON, Log, batch, control, event

TARIFF = TimeOfDay(dimension="tariff", bands=(Band(begins=6, name="day"), Band(begins=22, name="night")))
LEVEL = Meter(
    key="level",
    event_type="api",
    aggregation=Aggregation.WEIGHTED_SUM,
    value="bytes",
    dimensions=("region", "tariff"),
    zone="Europe/Berlin",
    time_of_day=TARIFF,
)
SEATS = Meter(
    key="seats",
    event_type="api",
    aggregation=Aggregation.UNIQUE,
    value="user",
    dimensions=("region",),
    removal=Filter(property="operation", values=("remove", "leave")),
)
ZONES = ("UTC", "Asia/Kolkata", "Australia/Lord_Howe", "America/New_York")
NUMBERS = [each for each in Aggregation if each is not Aggregation.UNIQUE]


def variants() -> Iterator[tuple[Meter, bool]]:
    """Every way to read the recorded values, and whether the changes of the level are asked for."""
    for made in (replace(LEVEL, aggregation=each) for each in NUMBERS):
        if made.aggregation is Aggregation.COUNT:
            yield replace(made, value=None), False
            continue
        percents = [Decimal("33.3"), Decimal(100)] if made.aggregation is Aggregation.PERCENTILE else [None]
        for percent in percents:
            yield replace(made, percent=percent), False
            yield replace(made, percent=percent, dimensions=("tariff",)), False
            if made.aggregation in WINDOWED:
                for unit in WindowUnit:
                    for zone in ZONES:
                        yield replace(made, percent=percent, window=unit, zone=zone), False
    for made in (replace(LEVEL, aggregation=each) for each in (Aggregation.SUM, Aggregation.LATEST)):
        yield replace(made, carries_over=True), False
        yield replace(made, carries_over=True), True
    yield replace(LEVEL, carries_over=True), False
    for removal in (SEATS.removal, None):
        for carries in (True, False):
            yield replace(SEATS, removal=removal, carries_over=carries), False
        yield replace(SEATS, removal=removal, carries_over=True), True
    for unit in WindowUnit:
        yield replace(SEATS, removal=None, window=unit, zone="America/New_York"), False


VARIANTS = list(variants())


def points(logs: Sequence[Log], meter: Meter, cut: Sequence[PartitionPosition]) -> list[Point]:
    """By the book: what the recorded events below the cut say, split as `meter` does."""
    recorded = SEATS if meter.aggregation is Aggregation.UNIQUE else LEVEL
    below = {each.partition: each.offset for each in cut}
    made = []
    for log in logs:
        for record in log.records:
            content = decode_usage(record.value)
            if not isinstance(content, UsageBatch) or record.offset >= below.get(log.partition, 0):
                continue
            for index, each in enumerate(content.events):
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
                        f"{log.partition:04}{record.offset:08}{index:04}",
                        tuple(known[name] for name in meter.dimensions),
                    )
                )
    return made


def some_events(chance: random.Random, first: int) -> list[Any]:
    return [
        event(
            str(first + number),
            # A day around the end of summer time in New York and Berlin, and around that of Lord Howe.
            NOON.replace(month=chance.choice([10, 11]), day=chance.choice([1, 2]))
            + timedelta(minutes=15 * chance.randrange(200), microseconds=chance.choice([0, 0, 1])),
            customer=chance.choice(["c1", "c1", "c2"]),
            region=chance.choice(["eu", "us", ""]),
            user=chance.choice(["ann", "bob", "cy", ""]),
            operation=chance.choice(["add", "remove", "add", "leave"]),
            bytes=str(chance.choice([0, 1, "2.5", "-3.333333333333", "-1", "9"])),
        )
        for number in range(12)
    ]


def test_the_variants_could_all_be_published() -> None:
    for meter, _ in VARIANTS:
        check_meter(meter, "meter")


@pytest.mark.parametrize("seed", range(4))
def test_postgres_reads_what_the_rules_measure(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    logs = [Log(0), Log(1)]
    for log in logs:
        log.append(control(meters=(LEVEL, SEATS)), at=NOON)
    appended = NOON.replace(month=11, day=4)
    for number in range(16):
        log = chance.choice(logs)
        log.append(batch(*some_events(chance, number * 100)), at=appended)
    for log in logs:
        at = 0
        store = bench.another(home=log.partition)
        while at < len(log.records):
            size = chance.randint(1, 4)
            bench.apply(log.records[at : at + size], store=store)
            at += size
    for meter, held in VARIANTS:
        for _ in range(3):
            start = NOON.replace(month=chance.choice([10, 11]), day=1) + timedelta(
                minutes=chance.choice([-600, 0, 7, 61])
            )
            period = Period(start, start + timedelta(minutes=chance.choice([5, 60, 1441, 4000, 45_000])))
            whole = Period(period.start - timedelta(hours=chance.choice([0, 5])), period.end + timedelta(hours=3))
            cut = tuple(
                PartitionPosition(partition=log.partition, offset=chance.randint(0, len(log.records))) for log in logs
            )
            need = Need(meter, period, cut, chance.choice([whole, None]), held)
            alone = meter.aggregation is Aggregation.SUM and not held
            expected = measured(need, points(logs, meter, cut), one_by_one=alone)
            assert bench.quantities([need])[need] == expected, need
            if not held:
                both = {each: bench.quantities([need], each)[need].total for each in ("c1", "c2")}
                assert bench.totals(need, ("c1", "c2", "c3")) == {each: total for each, total in both.items() if total}
