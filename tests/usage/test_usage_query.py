"""Usage as a table equals what is billed: window by window, in any zone, on real Postgres."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from billing.aggregation import window_start
from billing.errors import Rejected
from billing.invoicing import Need, PartitionPosition
from billing.metering import Aggregation, Meter
from billing.period import Period
from infra import postgres
from projections import generation, usage, usage_meters, usage_query
from projections.usage import Tx
from projections.usage_query import Answer, Question, answers
from services.usage_rolling import roll
from tests.usage.conftest import C1, Bench, Explained
from tests.usage.making import BYTES, CALLS, METERS, NOON, USERS, batch, event, hours, opened

ZONES = ("UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
SPRING = datetime.fromisoformat("2026-03-29T01:00:00+00:00")  # Zurich leaves out an hour


def ask(bench: Bench, meter: Meter, period: Period, **more: Any) -> list[Answer]:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        return answers(tx, "acme", Question(meter=meter, period=period, **more))


def fill(bench: Bench, seed: int, around: datetime = NOON, spread: int = 5_000, events: int = 300) -> None:
    chance = random.Random(seed)
    log = opened()
    for _ in range(events // 20):
        log.append(
            batch(
                *(
                    event(
                        f"{chance.randrange(10**9)}",
                        around + timedelta(minutes=chance.randrange(-spread, spread), microseconds=chance.randrange(3)),
                        customer=chance.choice(["c1", "c1", "c2"]),
                        region=chance.choice(["eu", "us", ""]),
                        kind=chance.choice(["a", "b"]),
                        user=chance.choice(["ann", "bob", "cy", ""]),
                        bytes=str(chance.choice([0, 1, "2.5", "3.333333333333"])),
                    )
                    for _ in range(20)
                )
            ),
            at=around,
        )
    bench.apply(log.records)


def billed(bench: Bench, meter: Meter, period: Period, customer: str = "c1") -> Any:
    need = Need(meter, period, (PartitionPosition(partition=0, offset=10**9),))
    return bench.quantities([need], customer)[need]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("zone", ZONES)
def test_every_window_in_every_zone_is_what_an_invoice_would_bill(bench: Bench, zone: str, seed: int) -> None:
    chance = random.Random(f"{zone}{seed}")
    fill(bench, seed, around=SPRING)
    for meter in METERS:
        for unit in (None, "minute", "hour", "day", "week", "month"):
            start = SPRING + timedelta(minutes=chance.choice([-4000, -600, -60, -90, 7]))
            span = {"minute": 90, "hour": 2_000}.get(unit or "", 6_000)
            period = Period(start, start + timedelta(minutes=chance.choice([span, span - 30, span + 7])))
            found = ask(bench, meter, period, window=unit, zone=zone, customer="c1")
            assert sum(each.events for each in found) == billed(bench, meter, period).events, (meter.key, unit)
            for each in found:
                expected = billed(bench, meter, each.period)
                assert (each.quantity, each.events) == (expected.total, expected.events), (meter.key, unit, each)
                if unit is not None:
                    assert each.period.start == max(window_start(each.period.start, unit, zone), period.start)


def test_rows_by_customer_and_dimension_are_what_their_invoices_would_bill(bench: Bench) -> None:
    fill(bench, 3)
    period = Period(NOON - hours(40), NOON + hours(40.5))
    for meter in METERS:
        found = ask(bench, meter, period, by_customer=True, by=meter.dimensions)
        told: dict[str, dict[tuple[str, ...], Decimal]] = defaultdict(dict)
        for each in found:
            assert each.customer is not None
            told[each.customer][each.dimensions] = each.quantity
        for customer in ("c1", "c2"):
            expected = billed(bench, meter, period, customer)
            cells = dict(expected.cells) if meter.dimensions else {(): expected.total}
            assert told[customer] == cells, meter.key


def test_a_dimension_can_be_split_by_and_chosen(bench: Bench) -> None:
    fill(bench, 4)
    period = Period(NOON - hours(100), NOON + hours(100))
    both = ask(bench, BYTES, period, by=("region", "kind"), customer="c1")
    for region in ("eu", "us", ""):
        cells = {each.dimensions: each.quantity for each in both if each.dimensions[0] == region}
        chosen = ask(bench, BYTES, period, by=("kind",), where={"region": region}, customer="c1")
        assert {(region, *each.dimensions): each.quantity for each in chosen} == cells
    for meter in (BYTES, USERS):
        everybody = ask(bench, meter, period)
        assert len(everybody) == 1
        assert everybody[0].events == sum(billed(bench, meter, period, each).events for each in ("c1", "c2"))


def test_minutes_in_two_zones_are_the_same_minutes(bench: Bench) -> None:
    fill(bench, 5, spread=60)
    period = Period(NOON - hours(1), NOON + hours(1))
    assert ask(bench, CALLS, period, window="minute", zone="Asia/Kathmandu") == ask(
        bench, CALLS, period, window="minute"
    )


def test_a_meter_that_is_no_plain_aggregate_goes_the_way_of_invoices(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, 6)
    period = Period(NOON - hours(50), NOON + hours(50))
    quick = ask(bench, BYTES, period, window="day", by_customer=True, by=BYTES.dimensions)
    monkeypatch.setattr(usage_query, "_is_plain", lambda _: False)
    slow = ask(bench, BYTES, period, window="day", by_customer=True, by=BYTES.dimensions)
    assert [replace(each, events=0) for each in slow] == [replace(each, events=0) for each in quick]
    for more in ({"by": ("kind",), "customer": "c1"}, {"where": {"kind": "a"}, "customer": "c1"}, {"window": "day"}):
        with pytest.raises(Rejected, match="meter 'bytes'"):
            ask(bench, BYTES, period, **more)


def test_a_level_goes_on_through_windows_without_events(bench: Bench) -> None:
    level = replace(BYTES, key="level", carries_over=True)
    mean = replace(BYTES, key="mean", aggregation=Aggregation.AVERAGE)
    log = opened(meters=(level, mean))
    log.append(batch(event("1", NOON - hours(60), bytes="3"), event("2", NOON + hours(1), bytes="4.5")))
    bench.apply(log.records)
    period = Period(NOON - hours(84), NOON + hours(36))
    found = ask(bench, level, period, window="day", customer="c1")
    assert [str(each.quantity) for each in found] == ["3", "3", "7.5", "7.5"]
    for meter in (level, mean):
        for each in ask(bench, meter, period, window="day", customer="c1"):
            assert each.quantity == billed(bench, meter, each.period).total


def test_what_is_too_large_or_unknown_is_refused(bench: Bench) -> None:
    period = Period(NOON, NOON + timedelta(days=30))
    for more, code in (
        ({"window": "minute"}, "too_many_windows"),
        ({"by": ("colour",)}, "unknown_dimension"),
        ({"where": {"colour": "red"}}, "unknown_dimension"),
    ):
        with pytest.raises(Rejected) as refused:
            ask(bench, CALLS, period, **more)
        assert refused.value.code == code


def test_the_meters_are_those_of_the_newest_control(bench: Bench) -> None:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        assert usage_meters.meters(tx, "acme") == {}
    bench.apply(opened().records)
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        assert list(usage_meters.meters(tx, "acme").values()) == list(METERS)
        assert usage_meters.meter(tx, "acme", CALLS.key) == CALLS
        with pytest.raises(Rejected, match=f"no meter 'nope'; known: .*{CALLS.key}") as raised:
            usage_meters.meter(tx, "acme", "nope")
    assert (raised.value.code, raised.value.field) == ("unknown_meter", "meter")
    assert billed(bench, CALLS, Period(NOON, NOON + hours(1)), C1).total == 0


def test_odd_minutes_of_all_customers_are_read_by_their_time(bench: Bench) -> None:
    """In one or two ranges of pages for each, of more than twenty; not series by series, nor among all that is new."""
    bench.apply(opened().records)
    with postgres.transaction(bench.pool) as tx:
        schema = generation.schema(usage.SET, generation.enter(tx, usage.SET))
        tx.execute("SELECT usage_month(%s)", (NOON.date().replace(day=1),))
        tx.execute(_MANY, {"start": NOON})
    with postgres.connect(bench.owner, autocommit=True) as owner:
        owner.execute(f"ANALYZE {schema}.usage_value, {schema}.usage_series")
    period = Period(NOON + timedelta(minutes=53), NOON + timedelta(hours=9, minutes=7))
    found = []
    for _ in range(2):
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            explained = Explained(tx, "usage_value_")
            (answer,) = answers(cast(Tx, explained), "acme", Question(meter=CALLS, period=period))
            found.append((answer.events, explained.rows))
        roll(bench.pool, threading.Event(), NOON - timedelta(days=1))  # no sums yet
    (events, before), (same, values) = found
    assert events == same == 1167  # of fourteen minutes
    assert before > 100_000
    assert values < 25_000


def test_what_is_new_is_not_summarized_while_a_vacuum_is_at_it(bench: Bench) -> None:
    """Who waited for it would have it cancelled."""
    bench.apply(opened().records)
    with postgres.transaction(bench.pool) as tx:
        schema = generation.schema(usage.SET, generation.enter(tx, usage.SET))
        tx.execute("SELECT usage_month(%s)", (NOON.date().replace(day=1),))
    with postgres.connect(bench.owner) as vacuum:
        vacuum.execute(f"LOCK TABLE {schema}.usage_value_{NOON:%Y_%m} IN SHARE UPDATE EXCLUSIVE MODE")
        roll(bench.pool, threading.Event(), NOON - timedelta(days=1))


# Two thousand series, and 5,000 values an hour.
_MANY = """
  WITH made AS (
INSERT INTO usage_series (tenant_id, customer_id, meter, dimension_names, dimension_values)
SELECT 'acme', 'c' || i, 'calls', '{}', '{}' FROM generate_series(0, 1999) AS i
RETURNING series)
INSERT INTO usage_value (tenant_id, series, event_time, number, partition, record_offset, batch_index)
SELECT 'acme', (SELECT min(series) FROM made) + i %% 2000, %(start)s + i * interval '720 milliseconds', 1, 0, 0, 0
  FROM generate_series(0, 119999) AS i
"""
