"""Levels on an invoice: partial periods, changes of plan, and what is carried over between them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from billing.aggregation import Point
from billing.catalog import PriceBookPublished
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.invoicing import RATING_ENGINE, BillingRun, RatedLine, carries_over, lines, needs
from billing.measuring import measured
from billing.metering import Aggregation, Meter
from billing.period import Period
from billing.plan import Plan
from billing.price import Charge, PerUnit
from billing.pricing import Pricing
from billing.run import Cut, LatePeriod
from billing.segments import BilledSpan, Segment

D = Decimal
JUNE, SIXTEENTH, JULY = (
    datetime(2026, 6, 1, tzinfo=UTC),
    datetime(2026, 6, 16, tzinfo=UTC),
    datetime(2026, 7, 1, tzinfo=UTC),
)
WHOLE = Period(JUNE, JULY)
DISK = Meter(key="disk", event_type="disk", aggregation=Aggregation.WEIGHTED_SUM, value="gb", carries_over=True)
SEATS = Meter(key="seats", event_type="seat", aggregation=Aggregation.SUM, value="n", carries_over=True)
POINTS = {
    "disk": [Point(datetime(2026, 5, 1, tzinfo=UTC), D(10)), Point(datetime(2026, 6, 6, tzinfo=UTC), D(30))],
    "seats": [Point(datetime(2026, 5, 1, tzinfo=UTC), D(4)), Point(datetime(2026, 6, 26, tzinfo=UTC), D(2))],
}


def plan(key: str, unit: str, prorate: bool = True) -> Plan:
    charges = tuple(
        Charge(key=each, name=each, meter=each, model=PerUnit(D(unit)), prorate=prorate) for each in ("disk", "seats")
    )
    return Plan(key=key, name=key, currency="USD", charges=charges)


BOOK = PriceBookPublished(
    version=1,
    effective_at=JUNE,
    meters=(DISK, SEATS),
    plans=(plan("cheap", "1"), plan("dear", "3"), plan("whole", "1", prorate=False)),
)
BOOKS = {1: BOOK}


def segment(plan: str, start: datetime, end: datetime) -> Segment:
    pricing = Pricing(plan=plan, price_book_version=1, currency="USD")
    return Segment(span=BilledSpan(period=Period(start, end), whole=WHOLE), pricing=pricing)


def billed(*segments: Segment) -> list[RatedLine]:
    run = BillingRun(
        invoice_id=InvoiceId("i"),
        subscription_id=SubscriptionId("s"),
        customer_id=CustomerId("c"),
        currency="USD",
        rating_engine=RATING_ENGINE,
        segments=segments,
        cut=Cut(until=JULY, positions=()),
    )
    found = {need: measured(need, POINTS[need.meter.key]) for need in needs(run, BOOKS, ())}
    return list(lines(run, BOOKS, (), found))


def figures(made: list[RatedLine]) -> list[tuple[str, str]]:
    return [(f"{each.quantity:.3f}", str(each.amount)) for each in made]


def test_a_level_is_carried_over_and_counts_for_its_time() -> None:
    assert figures(billed(segment("cheap", JUNE, JULY))) == [("35.000", "35.00"), ("4.333", "4.33")]


def test_a_change_of_plan_prices_each_part_of_the_level_by_its_own_plan() -> None:
    made = billed(segment("cheap", JUNE, SIXTEENTH), segment("dear", SIXTEENTH, JULY))
    # 10 x 15/30 + 30 x 10/30 and 40 x 15/30; 4 x 15/30 and 4 x 15/30 + 2 x 5/30
    assert figures(made) == [
        ("15.000", "15.00"),
        ("2.000", "2.00"),
        ("20.000", "60.00"),
        ("2.333", "7.00"),
    ]


def test_a_partial_period_costs_its_part_unless_nothing_is_prorated() -> None:
    assert figures(billed(segment("cheap", SIXTEENTH, JULY))) == [("20.000", "20.00"), ("2.333", "2.33")]
    assert figures(billed(segment("whole", SIXTEENTH, JULY))) == [("40.000", "40.00"), ("6.000", "6.00")]


def test_a_closed_period_that_measures_a_level_is_corrected_by_what_came_before_it() -> None:
    assert carries_over(LatePeriod(segments=(segment("cheap", JUNE, JULY),), since=()), BOOKS)
