"""Usage that comes after its period was closed: rated again cumulatively, billed as the difference (SEMANTICS 16)."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest

from billing.catalog import Plan, PublishPriceBook
from billing.invoicing import BillingRun, LatePeriod, LineKind, Need, PartitionPosition, RatedLine, lines, needs
from billing.metering import Measured
from billing.price import Charge, Graduated, Tier
from billing.run import LATE_PERIODS
from billing.subscription import CloseBillingPeriod, CreateSubscription
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
    BASE_FEE,
    C1,
    CALLS,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    REGISTER,
    S1,
    Life,
    close,
    until,
)

STAIRS = Graduated(tiers=(Tier(up_to=Decimal(100), unit=Decimal("0.10")), Tier(unit=Decimal("0.05"))))
CALLS_BY_TIER = Charge(key="calls", name="Calls", model=STAIRS, meter="calls")
COMMITTED = Plan(
    key="committed",
    name="Committed",
    currency="USD",
    charges=(BASE_FEE, CALLS_BY_TIER),
    minimum_commitment=Decimal(40),
)
FIRST, SECOND = (PartitionPosition(partition=0, offset=10),), (PartitionPosition(partition=0, offset=20),)


def february_closes() -> tuple[Life, BillingRun]:
    """January closed at position 10, February at position 20."""
    life = Life().given(
        REGISTER,
        PublishPriceBook(meters=(CALLS,), plans=(COMMITTED,)),
        CREATE_C1,
        CreateSubscription(subscription_id=S1, customer_id=C1, plan="committed"),
        ACTIVATE,
        until(FEBRUARY),
        CloseBillingPeriod(subscription_id=S1, period_end=FEBRUARY, positions=FIRST),
        until(MARCH),
        CloseBillingPeriod(subscription_id=S1, period_end=MARCH, positions=SECOND),
    )
    return life, life.decided[0].run


def rated(on_time: int, by_now: int) -> list[RatedLine]:
    """The late lines of February's invoice: January had `on_time` calls at its cut and has `by_now` at the next."""
    life, run = february_closes()
    books = {book.version: book for book in life.state.catalog.books}
    calls = {(JANUARY, FIRST): on_time, (JANUARY, SECOND): by_now, (FEBRUARY, SECOND): 0}

    def measured(need: Need) -> Measured:
        return Measured(Decimal(calls[need.period.start, need.positions]))

    quantities = {need: measured(need) for need in needs(run, books, run.late)}
    return [line for line in lines(run, books, run.late, quantities) if line.kind is LineKind.LATE_USAGE]


def shown(made: list[RatedLine]) -> list[tuple[str, datetime, str, str]]:
    return [(line.charge, line.period.start, str(line.quantity), str(line.amount)) for line in made]


def test_late_usage_is_a_line_of_its_own_with_the_original_period() -> None:
    assert shown(rated(90, 95)) == [("calls", JANUARY, "5", "0.50")]


def test_late_usage_is_rated_with_the_units_before_it() -> None:
    """90 calls were billed; of 20 more, 10 fill the first tier and 10 fall into the second."""
    assert shown(rated(90, 110)) == [("calls", JANUARY, "20", "1.50")]


def test_a_voided_event_gives_back_what_it_cost() -> None:
    assert shown(rated(110, 90)) == [("calls", JANUARY, "-20", "-1.50")]


def test_late_usage_takes_back_a_shortfall_that_it_fills() -> None:
    """31.00 base fee and no usage left 9.00 to the commitment of 40.00; 50 late calls cost 5.00 of it."""
    made = rated(0, 50)
    assert [(line.charge, str(line.amount)) for line in made] == [("calls", "5.00"), ("minimum_commitment", "-5.00")]
    assert sum(line.amount.minor for line in made) == 0


def test_nothing_late_makes_no_line() -> None:
    assert rated(90, 90) == []


def test_a_period_is_billed_up_to_the_latest_cut() -> None:
    _, run = february_closes()
    assert [(each.period.start, each.since) for each in run.late] == [(JANUARY, FIRST)]


def test_late_usage_is_looked_for_in_the_latest_periods_only() -> None:
    life, _ = february_closes()
    month = 3
    for _ in range(LATE_PERIODS + 2):
        month += 1
        end = datetime(2026 + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=APRIL.tzinfo)
        life.given(until(end), close(end))
    late: tuple[LatePeriod, ...] = life.decided[0].run.late
    assert len(late) == LATE_PERIODS
    assert late[-1].period.end == life.decided[0].span.period.start


@pytest.mark.parametrize("calls", [0, 100, 101])
def test_late_usage_adds_up_to_what_usage_in_time_would_have_cost(calls: int) -> None:
    late = sum(line.amount.minor for line in rated(0, calls))
    alone = max(0, 900 - min(calls, 100) * 10 - max(0, calls - 100) * 5)
    assert late == min(calls, 100) * 10 + max(0, calls - 100) * 5 + alone - 900
