"""Customers told apart come in pages: together they are the whole answer, and each reads its own series only."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from billing.errors import Rejected
from billing.metering import Meter, UsageEvent
from billing.period import Period
from infra import postgres
from projections import generation, usage, usage_query
from projections.usage_query import Answer, CustomerPage, Question
from tests.usage.conftest import Bench, Explained
from tests.usage.making import (
    BYTES,
    CALLS,
    LAST,
    MEAN,
    MEDIAN,
    METERS,
    NOON,
    PEAK,
    TENANT,
    USERS,
    batch,
    control,
    event,
    hours,
    opened,
)
from tests.usage.test_usage_rollup import by_the_book

CUSTOMERS = ("c1", "c10", "c2", "C1", "_c", "a-b", "ab", "b", "é", "z", "Z")
"""Told apart by every collation, and sorted by each in another way."""
PLAIN = (CALLS, BYTES, PEAK, USERS)
STOCK = replace(BYTES, key="stock", carries_over=True)
ONE_BY_ONE = (STOCK, MEAN, MEDIAN)
SPAN = Period(NOON - hours(30), NOON + hours(30.5))


def told(bench: Bench, question: Question, after: str, limit: int, tenant: str = TENANT) -> CustomerPage:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        return usage_query.page(tx, tenant, question, after=after, limit=limit)


def whole(bench: Bench, question: Question, tenant: str = TENANT) -> list[Answer]:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        return usage_query.answers(tx, tenant, question)


def followed(bench: Bench, question: Question, chance: random.Random) -> list[CustomerPage]:
    """Page by page until the end, each of another size."""
    found: list[CustomerPage] = []
    after: str | None = ""
    while after is not None:
        limit = chance.choice([1, 1, 2, 3, 5, len(CUSTOMERS), 200])
        found.append(told(bench, question, after, limit))
        assert len({each.customer for each in found[-1].rows}) <= limit
        after = found[-1].following
    return found


def fill(bench: Bench, chance: random.Random) -> list[UsageEvent]:
    """Usage of all but the last customer within `SPAN`, of that one before it."""
    log = opened(meters=(*METERS, STOCK))
    log.append(control(tenant="other"), key=b"other")
    events = [
        event(
            f"{number}",
            NOON + timedelta(minutes=chance.randrange(-2_000, 1_800)),
            customer=chance.choice(CUSTOMERS[:-1]),
            region=chance.choice(["eu", "us", ""]),
            kind=chance.choice(["a", "b"]),
            user=chance.choice(["ann", "bob", ""]),
            bytes=chance.choice(["0", "1", "2.5", "3.333333333333"]),
        )
        for number in range(200)
    ] + [event("early", NOON - timedelta(days=9), customer=CUSTOMERS[-1], user="ann")]
    at = NOON + timedelta(days=2)
    log.append(batch(*events), at=at)
    theirs = [replace(each, customer=f"other {each.customer}") for each in events]
    log.append(batch(*theirs, tenant="other"), key=b"other", at=at)
    bench.apply(log.records)
    return events


def some_question(meter: Meter, chance: random.Random) -> Question:
    dimensions = tuple(chance.sample(meter.dimensions, chance.randint(0, len(meter.dimensions))))
    if meter in ONE_BY_ONE:
        dimensions = chance.choice([(), meter.dimensions])
    return Question(
        meter=meter,
        period=SPAN,
        window=chance.choice([None, "hour", "day"]),
        zone=chance.choice(["UTC", "Asia/Kathmandu"]),
        by_customer=True,
        by=dimensions,
        where={"region": "eu"} if meter in PLAIN and meter.dimensions and chance.random() < 0.4 else {},
    )


@pytest.mark.parametrize("seed", range(3))
def test_pages_of_any_size_are_the_whole_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    events = fill(bench, chance)
    for meter in (*PLAIN * 2, *ONE_BY_ONE):
        question = some_question(meter, chance)
        all_at_once = whole(bench, question)
        if meter in PLAIN:
            assert sorted(all_at_once, key=_plainly) == by_the_book(question, events)
        pages = followed(bench, question, chance)
        rows = [row for page in pages for row in page.rows]
        assert sorted(rows, key=lambda row: row.period.start) == all_at_once, "the order of Postgres, page after page"
        for page in pages:
            assert page.rows == sorted(page.rows, key=lambda row: row.period.start)
            assert {row.customer for row in page.rows} <= set(CUSTOMERS)
        with monkeypatch.context() as changed:
            changed.setattr(usage_query, "PAGE", 2)
            assert whole(bench, question) == all_at_once


def _plainly(row: Answer) -> tuple[Any, ...]:
    return row.period.start, row.customer, row.dimensions


def test_a_page_goes_on_after_any_text_and_may_be_empty(bench: Bench) -> None:
    fill(bench, random.Random(3))
    question = Question(meter=CALLS, period=SPAN, by_customer=True)
    in_order = [row.customer for row in whole(bench, question)]
    assert set(in_order) == set(CUSTOMERS[:-1])
    for text in ("c1", "c1 is no customer", "%", "'; --", "\U0001f600", "zzz", in_order[-1]):
        rows = [row.customer for row in told(bench, question, text, 200).rows]
        assert rows == in_order[len(in_order) - len(rows) :], text
        if text in in_order:
            assert rows == in_order[in_order.index(text) + 1 :]
    ever = replace(question, period=Period(NOON - timedelta(days=20), SPAN.end))
    everybody = [row.customer for row in whole(bench, ever)]
    assert everybody[-1] is not None
    assert told(bench, ever, everybody[-1], 5) == CustomerPage([], None)
    early = replace(question, period=Period(NOON - timedelta(days=90), NOON - timedelta(days=80)))
    empty = told(bench, early, "", 3)
    assert (empty.rows, empty.following is None) == ([], False), "there are others, who may have usage"
    assert told(bench, replace(question, customer="c1"), "", 1).following is None
    alone = told(bench, replace(question, by_customer=False), "", 1)
    assert (alone.following, alone.rows) == (None, whole(bench, replace(question, by_customer=False)))


def test_another_tenants_customers_are_on_no_page(bench: Bench) -> None:
    fill(bench, random.Random(4))
    for meter in (CALLS, MEAN):
        question = Question(meter=meter, period=SPAN, by_customer=True)
        mine, theirs = whole(bench, question), whole(bench, question, "other")
        assert [f"other {row.customer}" for row in mine] == [row.customer for row in theirs]
        first = told(bench, question, "", 1, "other")
        assert first.following is not None
        assert first.following.startswith("other ")
        assert told(bench, question, "", 1, "nobody") == CustomerPage([], None)
        ends = [page.following for page in followed(bench, question, random.Random(4))]
        assert set(ends) <= {*CUSTOMERS, None}


def test_windows_make_a_page_shorter_and_too_much_is_divided(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench, random.Random(5))
    chance = random.Random(5)
    split = Question(meter=BYTES, period=SPAN, window="day", by_customer=True, by=BYTES.dimensions)
    mean = Question(meter=MEAN, period=SPAN, window="day", by_customer=True)
    expected = {each.meter.key: whole(bench, each) for each in (split, mean)}
    windows = len(usage_query._starts(split))
    monkeypatch.setattr(usage_query, "ROWS_MAX", 8 * windows)  # enough for one customer, who has up to 6 a day
    monkeypatch.setattr(usage_query, "ONE_BY_ONE_MAX", 2 * windows + 1)
    for question in (split, mean):
        assert whole(bench, question) == expected[question.meter.key]
    with pytest.raises(Rejected, match="fewer customers") as refused:
        told(bench, split, "", 8)
    assert refused.value.code == "too_many_rows"
    rows = [row for page in followed(bench, mean, chance) for row in page.rows]
    assert sorted(rows, key=lambda row: row.period.start) == expected["mean"]
    assert told(bench, mean, "", 200) == told(bench, mean, "", 2)
    monkeypatch.setattr(usage_query, "ONE_BY_ONE_MAX", windows - 1)
    with pytest.raises(Rejected, match="customers times windows"):
        whole(bench, mean)
    monkeypatch.setattr(usage_query, "ROWS_MAX", 1)
    with pytest.raises(Rejected, match="more than 1 rows"):
        whole(bench, split)


def test_what_would_be_read_is_checked_for_the_customers_of_a_page(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, random.Random(6))
    peaks = Question(meter=PEAK, period=SPAN, by_customer=True)
    users = replace(peaks, meter=USERS)
    expected = {each.meter.key: whole(bench, each) for each in (peaks, users)}
    monkeypatch.setattr(usage_query, "HOURS_MAX", 3 * 60)
    monkeypatch.setattr(usage_query, "EVENTS_MAX", 60)
    for question in (peaks, users):
        with pytest.raises(Rejected, match="fewer customers") as refused:
            told(bench, question, "", 200)
        assert refused.value.code == "too_much_to_read"
        assert told(bench, question, "", 1).following is not None
        assert whole(bench, question) == expected[question.meter.key], "divided until it is allowed"


@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize("meter", [CALLS, LAST, MEAN], ids=lambda meter: meter.key)
def test_a_page_reads_only_the_series_of_its_customers(bench: Bench, meter: Meter, analyzed: bool) -> None:
    """Of 3,000 customers with 20 series each."""
    bench.apply(opened().records)
    with postgres.transaction(bench.pool) as tx:
        schema = generation.schema(usage.SET, generation.enter(tx, usage.SET))
        tx.execute("SELECT usage_month('2026-03-01'::date)")
        tx.execute(_SERIES, (meter.key,))
    if analyzed:
        with postgres.connect(bench.owner, autocommit=True) as owner:
            for table in ("usage_series", "usage_value", "usage_window"):
                owner.execute(f"VACUUM (ANALYZE) {schema}.{table}")
    question = Question(meter=meter, period=SPAN, window="day", by_customer=True)
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        explained = Explained(tx, "usage_series")
        page = usage_query.page(explained, TENANT, question, after="c01500", limit=25)  # type: ignore[arg-type]
        assert (len(page.rows), {row.events for row in page.rows}, page.following) == (25, {20}, "c01525")
        assert 25 + 25 * 20 <= explained.rows <= 26 + 3 * 25 * 20, explained.plans


_SERIES = """
  WITH made AS (
INSERT INTO usage_series (tenant_id, customer_id, meter, dimension_names, dimension_values)
SELECT 'acme', 'c' || lpad(c::text, 5, '0'), %s, '{region}', ARRAY['r' || r]
  FROM generate_series(0, 2999) AS c, generate_series(1, 20) AS r
RETURNING series),
       put AS (
INSERT INTO usage_value (tenant_id, series, event_time, number, partition, record_offset, batch_index)
SELECT 'acme', series, timestamptz '2026-03-10 12:30+00', 1, 0, 0, 0
  FROM made)
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT 'acme', series, timestamptz '2026-03-10 12:00+00', 0, 1, 1, 1, 1, 0, 0
  FROM made
"""
