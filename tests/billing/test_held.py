"""Units that are held over time, priced by a charge (docs/rules/rating.md)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.aggregation import Point
from billing.catalog_check import check_charge
from billing.errors import Rejected
from billing.held import DECIMALS, to_decimal
from billing.measuring import Need, measured
from billing.metering import Aggregation, Measured, Meter
from billing.money import Money
from billing.period import Period
from billing.price import (
    Cell,
    Charge,
    Commitment,
    Conversion,
    Graduated,
    Matrix,
    Package,
    Percentage,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Tier,
    Volume,
)
from billing.rating import rate
from billing.recurring import rate_held

D = Decimal
START = datetime(2026, 6, 1, tzinfo=UTC)
JUNE = Period(START, datetime(2026, 7, 1, tzinfo=UTC))
SEATS = Meter(key="seats", event_type="seat", aggregation=Aggregation.SUM, value="n", carries_over=True)
BY_REGION = replace(SEATS, dimensions=("region", "kind"))
TIERS = (Tier(D(5), D(10), D(100)), Tier(unit=D(6), flat=D(50)))


def charge(model: PriceModel, **fields: Any) -> Charge:
    return Charge(key="seats", name="Seats", model=model, meter="seats", **fields)


def seats(*changes: tuple[int, str], meter: Meter = SEATS, cell: tuple[str, ...] = ()) -> Measured:
    """Changes by day of June; day 0 and before are carried over."""
    points = [
        Point(START + timedelta(days=day - 1), D(units), key=f"{place:03}", dimensions=cell)
        for place, (day, units) in enumerate(changes)
    ]
    return measured(Need(meter, JUNE, (), None, True), points)


def test_what_is_carried_over_is_held_for_the_whole_period() -> None:
    rated = rate(charge(PerUnit(D(10))), seats((0, "3"), (16, "2")))
    assert (rated.amount, rated.quantity, rated.text) == (D(40), D(4), "4 x 10.00")


def test_full_units_choose_the_tiers_and_flat_fees_are_owed_once() -> None:
    rated = rate(charge(Graduated(TIERS)), seats((0, "5"), (11, "1"), (21, "-1")))
    assert rated.amount == 5 * 10 + 100 + 50 + D(6) * 20 / 30 - D(6) * 10 / 30
    assert rated.text == "5 x 10.00 + 100.00 + 0.333333333333 x 6.00 + 50.00"
    assert [step.label for step in rated.steps] == ["tier 1", "tier 2"]


def test_the_highest_level_chooses_the_tier_of_a_volume() -> None:
    rated = rate(charge(Volume((Tier(D(5), D(10)), Tier(unit=D(6))))), seats((0, "5"), (16, "5"), (16, "-5")))
    assert (rated.amount, rated.text) == (D(30), "5 x 6.00")


def test_free_units_and_conversions_are_taken_from_the_level() -> None:
    assert rate(charge(PerUnit(D(10)), free_units=D(3)), seats((0, "2"), (16, "3"))).amount == 10
    pairs = Conversion(D(2), rounding=QuantityRounding.UP)
    held = rate(charge(PerUnit(D(10)), conversion=pairs), seats((0, "1"), (16, "1"), (28, "1")))
    assert (held.amount, held.quantity) == (D(11), D("1.1"))  # one pair, and a second one for three days


def test_a_level_below_zero_costs_nothing() -> None:
    assert rate(charge(PerUnit(D(10))), seats((0, "-5"), (16, "3"))).amount == 0
    assert rate(charge(PerUnit(D(10))), seats((0, "-5"), (16, "7"))).amount == 10


@pytest.mark.parametrize(("flat_at_zero", "amount"), [(True, 100), (False, 0)])
def test_where_nothing_is_held_the_first_flat_fee_is_owed_unless_waived(flat_at_zero: bool, amount: int) -> None:
    assert rate(charge(Graduated(TIERS), flat_at_zero=flat_at_zero), seats((0, "0"))).amount == amount


def test_a_tier_has_a_cap_and_a_charge_its_bounds() -> None:
    capped = Graduated((Tier(unit=D(10), cap=D(25)),))
    assert rate(charge(capped), seats((0, "3"))).amount == 25
    bounded = charge(PerUnit(D(10)), discount_percent=D(50), maximum=D(12), minimum=D(5))
    assert rate(bounded, seats((0, "3"))).amount == 12
    assert rate(bounded, seats((30, "1"))).amount == 5


def test_each_cell_has_its_own_level() -> None:
    eu, us = ("eu", "a"), ("us", "a")
    points = [
        Point(START - timedelta(days=1), D(2), dimensions=eu),
        Point(START + timedelta(days=15), D(4), dimensions=us),
    ]
    held = measured(Need(BY_REGION, JUNE, (), None, True), points)
    model = Matrix(("region", "kind"), (Cell(eu, D(10)), Cell(us, D(20))))
    rated = rate(charge(model), held)
    assert (rated.amount, rated.quantity, rated.text) == (D(60), D(4), "2 x 10.00 + 2 x 20.00")
    split = rate(charge(Graduated((Tier(D(2), D(10)), Tier(unit=D(1)))), split_by=("region", "kind")), held)
    assert split.amount == 2 * 10 + D(2) * 10 / 2 + D(2) / 2


def test_a_share_of_time_is_exact_to_the_half_cent() -> None:
    """A third of 0.015 is half a cent, which a quantity rounded to 12 decimals would lose."""
    rated = rate(charge(PerUnit(D("0.015"))), seats((21, "1")))
    assert rated.amount == D("0.005")
    assert Money.from_major(rated.amount, "USD").minor == 1


@given(st.lists(st.tuples(st.integers(-1, 30), st.integers(-5, 9)), max_size=8))
def test_a_charge_costs_what_held_units_cost(steps: list[tuple[int, int]]) -> None:
    level = 0
    steps = sorted(steps, key=lambda step: step[0])
    for place, (day, units) in enumerate(steps):  # never below zero
        steps[place] = (day, max(units, -level))
        level += steps[place][1]
    if not steps:
        return
    made = seats(*[(day, str(units)) for day, units in steps])
    assert made.held is not None
    exact = rate_held(TIERS, made.held)
    assert abs(Fraction(rate(charge(Graduated(TIERS), flat_at_zero=False), made).amount) - exact) <= Fraction(
        1, 10**DECIMALS
    )


def test_a_fraction_that_ends_is_a_decimal_as_it_is() -> None:
    assert to_decimal(Fraction(1, 8)) == D("0.125")
    assert to_decimal(Fraction(-1, 3)) == D("-0." + "3" * DECIMALS)


@pytest.mark.parametrize(
    ("made", "meter", "field"),
    [
        (charge(Package(D(5), D(1))), SEATS, "prorate"),
        (charge(PerUnit(D(1)), commitment=Commitment(quantity=D(5))), SEATS, "commitment"),
        (charge(Percentage(D(1)), prorate=False), SEATS, "model"),
        (charge(PerUnit(D(1)), split_by=("region",)), BY_REGION, "model.dimensions"),
    ],
)
def test_what_has_no_price_for_time_is_refused(made: Charge, meter: Meter, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_charge(made, {"seats": meter}, "charge")
    assert refused.value.field == f"charge.{field}"


def test_a_charge_that_is_not_prorated_may_have_any_price() -> None:
    check_charge(charge(Package(D(5), D(1)), prorate=False), {"seats": SEATS}, "charge")
    check_charge(charge(PerUnit(D(1)), split_by=("region",), prorate=False), {"seats": BY_REGION}, "charge")
