"""Quantities on real Postgres against the book, at every cut."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.invoicing import PartitionPosition
from billing.metering import Aggregation, Meter, UsageBatch, UsageEvent
from billing.period import Period
from infra import postgres
from projections import generation, usage_read, usage_statements
from schemas.codec import decode_usage
from tests.usage.conftest import ACME, C1, Bench
from tests.usage.making import CALLS, METERS, NOON, Log, batch, event, opened


def brute_force(log: Log, meter: Meter, period: Period, below: int) -> Decimal:
    """The quantity by the book: every event below the cut, the first of each id."""
    first: dict[str, tuple[int, int, UsageEvent]] = {}
    for record in log.records:
        content = decode_usage(record.value)
        if isinstance(content, UsageBatch):
            for index, each in enumerate(content.events):
                first.setdefault(each.id, (record.offset, index, each))
    seen = [
        (each.time, offset, index, each)
        for offset, index, each in first.values()
        if offset < below and each.time in period and each.customer == "c1"
    ]
    numbers = [Decimal(each.properties["bytes"]) for *_, each in sorted(seen, key=lambda row: row[:3])]
    match meter.aggregation:
        case Aggregation.COUNT:
            return Decimal(len(seen))
        case Aggregation.SUM:
            return sum(numbers, Decimal(0))
        case Aggregation.UNIQUE:
            return Decimal(len({each.properties["user"] for *_, each in seen if each.properties.get("user")}))
        case Aggregation.MAX:
            return max(numbers, default=Decimal(0))
        case Aggregation.MIN:
            return min(numbers, default=Decimal(0))
        case _:
            return numbers[-1] if numbers else Decimal(0)


@pytest.mark.parametrize("seed", range(3))
def test_windows_and_rows_agree_with_the_book_at_every_cut(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = opened()
    for _ in range(12):
        log.append(
            batch(
                *(
                    event(
                        str(chance.randrange(150)),
                        NOON + timedelta(minutes=chance.randrange(-600, 600), microseconds=chance.randrange(3)),
                        customer=chance.choice(["c1", "c1", "c2"]),
                        region=chance.choice(["eu", "us", ""]),
                        user=chance.choice(["ann", "bob", "cy", ""]),
                        bytes=str(chance.choice([0, 1, "2.5", "3.333333333333"])),
                    )
                    for _ in range(20)
                )
            )
        )
    at = 0
    while at < len(log.records):
        size = chance.randint(1, 4)
        bench.apply(log.records[at : at + size])
        at += size
    for _ in range(12):
        start = NOON + timedelta(minutes=chance.choice([-600, -60, -90, 0, 7]))
        period = Period(start, start + timedelta(minutes=chance.choice([5, 60, 240, 601])))
        below = chance.randint(0, 14)
        for meter in METERS[:6]:
            assert bench.measured(meter, period, below).total == brute_force(log, meter, period, below), meter.key
        since = chance.randint(0, 13)
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            late = usage_read.has_late(
                tx,
                ACME,
                C1,
                period,
                [PartitionPosition(partition=0, offset=since)],
                [PartitionPosition(partition=0, offset=below)],
            )
        expected = brute_force(log, CALLS, period, max(below, since)) - brute_force(log, CALLS, period, since)
        assert late == (expected > 0)


def test_a_cut_is_passed_when_all_its_partitions_are(bench: Bench) -> None:
    log = opened()
    bench.apply(log.records)
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        assert usage_read.passed(tx, ACME, [])
        assert usage_read.passed(tx, ACME, [PartitionPosition(partition=0, offset=1)])
        assert usage_read.passed(tx, ACME, [PartitionPosition(partition=5, offset=0)])
        assert not usage_read.passed(tx, ACME, [PartitionPosition(partition=0, offset=2)])
        assert not usage_read.passed(
            tx, ACME, [PartitionPosition(partition=0, offset=1), PartitionPosition(partition=1, offset=1)]
        )


STATEMENTS = {
    name: found
    for name, found in {
        **{name: getattr(usage_statements, name) for name in dir(usage_statements)},
        **{str(each): of for each, of in usage_statements.BY_WINDOW.items()},
        **{
            f"{each} of local windows, {by}": of.replace("{bucket}", bucket)
            for each, of in usage_statements.BY_LOCAL_WINDOW.items()
            for by, bucket in usage_statements.BUCKETS.items()
        },
        "late": usage_read._LATE,
    }.items()
    if isinstance(found, str) and not name.startswith("_") and "usage_value" in found
}


def scans(plan: Any) -> Iterator[Any]:
    """The nodes that read a table of values or windows, and their conditions."""
    if plan.get("Relation Name", "").startswith(("usage_value", "usage_window")):
        yield plan
    for each in plan.get("Plans", ()):
        yield from scans(each)


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_more_is_read_than_series_and_time_ask_for(bench: Bench, name: str) -> None:
    """Also by a plan that was made when the tables were new, and is kept until somebody tells of their size."""
    log = opened()
    log.append(batch(event("1")))
    bench.apply(log.records)
    places: dict[str, int] = {}
    numbered = re.sub(
        r"%\((\w+)\)s", lambda found: f"${places.setdefault(found[1], len(places) + 1)}", STATEMENTS[name]
    )
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        tx.execute("SET LOCAL enable_seqscan = off")
        tx.execute("SET LOCAL enable_bitmapscan = off")
        ((told,),) = tx.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered}").fetchall()
    found = list(scans(told[0]["Plan"]))
    assert found
    for each in found:
        assert "(series = " in each["Index Cond"], each
        assert re.search(r"\((event_time|hour) >=? ", each["Index Cond"]), each
