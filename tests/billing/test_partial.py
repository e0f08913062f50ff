"""A part of a period: by seconds, by days or in full, and what a usage charge promises for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.catalog import Plan
from billing.invoicing import RATING_ENGINE, LineKind, RatedLine, lines, needs
from billing.metering import Measured
from billing.partial import WHOLE, Part
from billing.plan_change import ChangePlan, MigrateSubscription
from billing.price import Charge, Commitment, Committed, Flat, PerUnit
from billing.proration import Proration
from billing.rating import rate
from billing.subscription import Active, CancelSubscription
from tests.billing.tenants import (
    ACTIVATE,
    BOOK,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    issue,
    until,
)

FEE = Charge(key="fee", name="Fee", model=Flat(Decimal("31.00")), in_advance=True)
CALLS = Charge(key="calls", name="Calls", model=PerUnit(Decimal("0.10")), meter="calls")
NOON_OF_THE_15TH = datetime(2026, 1, 15, 12, tzinfo=UTC)
HALF = Part(Fraction(1, 2), "half")


def usage(quantity: str) -> Measured:
    return Measured(total=Decimal(quantity), cells=(((), Decimal(quantity)),))


def begun(*plans: Plan, start: datetime = JANUARY, zone: str = "UTC") -> Life:
    """On the first of `plans` from `start` on, its first fees invoiced."""
    register = replace(REGISTER, zone=zone, test_clock=start)
    life = Life().given(register, replace(BOOK, plans=plans), CREATE_C1, replace(SUBSCRIBE, plan=plans[0].key))
    life.given(ACTIVATE)
    if life.event.run is not None:
        life.given(issue(life, *rated(life.event.run, life)))
    return life


def rated(run: Any, life: Life, quantity: str = "100") -> tuple[RatedLine, ...]:
    books = life.state.catalog.by_version
    return lines(run, books, (), {each: usage(quantity) for each in needs(run, books, ())})


def closed(life: Life, quantity: str = "100", engine: str = RATING_ENGINE) -> tuple[RatedLine, ...]:
    """The lines of the current period, closed at its end."""
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    life.given(until(active.boundary), close(active.boundary))
    return rated(replace(life.decided[0].run, rating_engine=engine), life, quantity)


def a_plan(*charges: Charge, key: str = "pro", rule: Proration = Proration.DAY, **more: Any) -> Plan:
    return Plan(key=key, name=key.title(), currency="USD", charges=charges, proration=rule, **more)


def test_by_day_a_first_part_costs_its_days_and_says_so() -> None:
    life = begun(a_plan(FEE), start=NOON_OF_THE_15TH)
    (fee,) = life.last_invoice.lines
    assert (fee.rated.amount.minor, fee.rated.explanation) == (1700, "31.00 x 17 of 31 days")


def test_days_are_those_of_the_zone_of_the_subscription() -> None:
    evening = datetime(2026, 1, 16, 3, tzinfo=UTC)  # still the 15th in New York
    life = begun(a_plan(FEE), start=evening, zone="America/New_York")
    assert life.last_invoice.lines[0].rated.explanation == "31.00 x 17 of 31 days"


def test_usage_is_promised_by_the_days_of_the_zone() -> None:
    evening = datetime(2026, 1, 16, 3, tzinfo=UTC)  # still the 15th in New York
    life = begun(a_plan(replace(CALLS, minimum=Decimal(31))), start=evening, zone="America/New_York")
    assert closed(life, "0")[0].amount.minor == 1700


def test_a_plan_that_prorates_nothing_has_one_commitment_a_stay() -> None:
    plan = a_plan(FEE, rule=Proration.NONE, minimum_commitment=Decimal("100.00"))
    life = begun(plan).given(until(NOON_OF_THE_15TH))
    life.given(replace(BOOK, plans=(replace(plan, minimum_commitment=Decimal("120.00")),)))
    life.given(MigrateSubscription(subscription_id=S1, at_period_end=False))
    (shortfall,) = [each for each in closed(life) if each.kind is LineKind.COMMITMENT]
    assert (shortfall.amount.minor, shortfall.explanation) == (8900, "120.00 - 31.00 charged")


def test_by_day_the_day_of_a_change_is_charged_once_to_the_new_plan() -> None:
    dear = a_plan(replace(FEE, model=Flat(Decimal("62.00"))), key="max")
    life = begun(a_plan(FEE), dear).given(until(NOON_OF_THE_15TH))
    life.given(ChangePlan(subscription_id=S1, plan="max", at_period_end=False))
    made = {(each.kind, each.period.end): each for each in closed(life)}
    back, charged = made[LineKind.UNUSED_FEE, FEBRUARY], made[LineKind.FEE, FEBRUARY]
    assert (back.amount.minor, back.explanation) == (-1700, "-31.00 x 17 of 31 days")
    assert (charged.amount.minor, charged.explanation) == (3400, "62.00 x 17 of 31 days")


def test_a_plan_that_prorates_nothing_charges_in_full_and_gives_nothing_back() -> None:
    plan = a_plan(FEE, rule=Proration.NONE, minimum_commitment=Decimal("100.00"))
    life = begun(plan, start=NOON_OF_THE_15TH)
    assert life.last_invoice.total.minor == 3100
    life.given(until(datetime(2026, 1, 20, tzinfo=UTC)), CancelSubscription(subscription_id=S1, at_period_end=False))
    (shortfall,) = closed(life)
    assert (shortfall.kind, shortfall.amount.minor) == (LineKind.COMMITMENT, 6900)
    assert shortfall.explanation == "100.00 - 31.00 charged"


def test_a_commitment_of_the_plan_is_prorated_by_its_rule() -> None:
    life = begun(a_plan(CALLS, minimum_commitment=Decimal("31.00")), start=NOON_OF_THE_15TH)
    _, shortfall = closed(life)
    assert (shortfall.amount.minor, shortfall.explanation) == (700, "31.00 x 17 of 31 days - 10.00 charged")


@pytest.mark.parametrize(
    ("charge", "amount", "explanation"),
    [
        (replace(CALLS, minimum=Decimal(31)), 1700, "100 x 0.10 + 7.00 up to the minimum of 31.00 x 17 of 31 days"),
        (replace(CALLS, maximum=Decimal(10)), 548, "100 x 0.10 - 4.516129 above the maximum of 10.00 x 17 of 31 days"),
        (
            replace(CALLS, commitment=Commitment(amount=Decimal(31))),
            1700,
            "100 x 0.10 + 7.00 up to the commitment of 31.00 x 17 of 31 days",
        ),
        (
            replace(CALLS, commitment=Commitment(quantity=Decimal(310))),
            1700,
            "100 x 0.10 + 7.00 up to the commitment of 310 x 17 of 31 days",
        ),
        (
            replace(CALLS, model=Committed(Decimal(62), Decimal("31.00"), Decimal("0.50"))),
            5000,
            "17.00 + 66 x 0.50, capacity x 17 of 31 days",
        ),
        (replace(CALLS, minimum=Decimal(31), prorate=False), 3100, "100 x 0.10 + 21.00 up to the minimum of 31.00"),
        (replace(CALLS, free_units=Decimal(90)), 100, "10 x 0.10"),
    ],
    ids=["minimum", "maximum", "commitment", "units", "capacity", "not prorated", "free units stay whole"],
)
def test_promises_for_a_full_period_hold_by_the_share_of_the_span(
    charge: Charge, amount: int, explanation: str
) -> None:
    (line,) = closed(begun(a_plan(charge), start=NOON_OF_THE_15TH))
    assert (line.amount.minor, line.explanation) == (amount, explanation)


def test_each_span_of_a_charge_has_its_own_part_of_the_promise() -> None:
    """A change of plan: what each plan promises holds for its own days."""
    charge = replace(CALLS, minimum=Decimal(31))
    life = begun(a_plan(charge), a_plan(charge, key="max")).given(until(NOON_OF_THE_15TH))
    life.given(ChangePlan(subscription_id=S1, plan="max", at_period_end=False))
    assert [each.amount.minor for each in closed(life, "0")] == [1400, 1700]


def test_a_run_for_the_first_engine_keeps_its_amounts() -> None:
    charge = replace(CALLS, minimum=Decimal(31))
    (line,) = closed(begun(a_plan(charge), start=NOON_OF_THE_15TH), engine="1")
    assert (line.amount.minor, line.explanation) == (3100, "100 x 0.10 + 21.00 up to the minimum of 31.00")
    assert line.plan == ""  # it did not say which plan charges a line


def test_late_usage_is_rated_by_the_engine_of_its_period() -> None:
    charge = replace(CALLS, minimum=Decimal(31))
    life = begun(a_plan(charge), start=NOON_OF_THE_15TH)
    closed(life)
    life.given(issue(life), until(MARCH), close(MARCH))
    (late,) = life.decided[0].run.late
    assert late.rating_engine == RATING_ENGINE
    run, books = life.decided[0].run, life.state.catalog.by_version

    def rerated(engine: str) -> list[int]:
        old = replace(late, rating_engine=engine)
        wanted = needs(run, books, (old,))
        quantities = {each: usage("0") for each in wanted}
        now = next(each for each in wanted if each.period == late.period and each.positions == run.cut.positions)
        made = lines(run, books, (old,), {**quantities, now: usage("200")} if old.since != run.cut.positions else {})
        return [each.amount.minor for each in made if each.kind is LineKind.LATE_USAGE]

    run = replace(run, cut=replace(run.cut, positions=(replace(run.cut.positions[0], offset=101),)))
    assert rerated("1") == []  # both below the whole minimum
    assert rerated("2") == [300]  # 20.00 less the 17.00 that half of January promises


def test_a_part_without_a_day_keeps_its_maximum() -> None:
    """Two changes on one day: the plan in between has no day, and its usage is not free."""
    assert rate(replace(CALLS, maximum=Decimal(5)), usage("30"), part=Part(Fraction(0), "0 of 31 days")).amount == 3


@given(st.decimals(0, 9999, places=2), st.integers(1, 31).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_parts_of_a_promise_never_exceed_it(promise: Decimal, share: tuple[int, int]) -> None:
    part = Part(Fraction(*share), "part")
    rest = Part(1 - part.share, "rest")
    assert 0 <= part.of(promise) <= promise
    assert abs(part.of(promise) + rest.of(promise) - promise) <= Decimal("1e-12")
    assert WHOLE.of(promise) == promise
    assert HALF.of(promise) * 2 == promise
