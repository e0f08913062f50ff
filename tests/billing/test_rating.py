"""Rating: exact at every edge, explained, and the same in parts as in one (SEMANTICS 4, 14, 18 to 21)."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from billing.errors import Rejected
from billing.metering import Change, Measured
from billing.money import Money
from billing.price import (
    Blocks,
    BlockTier,
    Capacity,
    CapacityLimit,
    CapacityTier,
    Cell,
    Commitment,
    Committed,
    Conversion,
    ConversionOperation,
    Dynamic,
    Flat,
    Graduated,
    GraduatedPercentage,
    Matrix,
    Package,
    Percentage,
    PercentageTier,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Stairstep,
    Tier,
    Volume,
)
from billing.quantity import after_free_units, convert, regrouped, rounded
from billing.rating import bill_so_far, rate
from tests.billing.charges import amount, by_cell, charge, explained

D = Decimal
DEPARTURES = (Tier(D(1000), D("12.00")), Tier(D(3000), D("9.50")), Tier(unit=D("7.25")))
WITH_FLATS = (Tier(D(5), flat=D(100)), Tier(D(10), D(1), D(50)), Tier(unit=D("0.5"), flat=D(20)))


@pytest.mark.parametrize(
    ("departures", "expected"),
    [
        ("0", "0"),
        ("1000", "12000"),
        ("1000.5", "12004.75"),  # half a unit above the edge is in the second tier, and not free
        ("1407", "15866.50"),
        ("3000", "31000"),
        ("3000.000000000001", "31000.00000000000725"),
        ("5000", "45500"),
        ("-3", "0"),
    ],
)
def test_each_unit_costs_the_price_of_its_own_tier(departures: str, expected: str) -> None:
    assert amount(Graduated(DEPARTURES), departures) == D(expected)


@pytest.mark.parametrize(
    ("miles", "expected"),
    [("1000000", "11000"), ("1000000.5", "9500.00475"), ("3000000", "28500"), ("3000001", "24000.008"), ("0", "0")],
)
def test_all_units_cost_the_price_of_the_tier_reached(miles: str, expected: str) -> None:
    table = (Tier(D(1000000), D("0.0110")), Tier(D(3000000), D("0.0095")), Tier(unit=D("0.0080")))
    assert amount(Volume(table), miles) == D(expected)


@pytest.mark.parametrize(
    ("used", "expected"), [("0", "100"), ("5", "100"), ("5.1", "150.1"), ("10", "155"), ("11", "175.5")]
)
def test_a_tiers_flat_fee_is_owed_once_when_the_tier_is_entered(used: str, expected: str) -> None:
    assert amount(Graduated(WITH_FLATS), used) == D(expected)


@pytest.mark.parametrize("model", [Graduated(WITH_FLATS), Volume(WITH_FLATS)])
def test_zero_usage_owes_the_first_tiers_flat_fee_unless_the_charge_says_otherwise(model: PriceModel) -> None:
    assert amount(model, "0") == 100
    assert amount(model, "0", flat_at_zero=False) == 0
    assert amount(model, "0.1", flat_at_zero=False) == 100


def test_a_percentage_by_tiers_may_waive_its_first_flat_fee() -> None:
    model = GraduatedPercentage((PercentageTier(None, D(5), D(3)),))
    assert (amount(model, "0"), amount(model, "0", flat_at_zero=False)) == (3, 0)


@pytest.mark.parametrize(("used", "expected"), [("0", "10"), ("100", "10"), ("100.01", "18"), ("501", "40")])
def test_a_stair_costs_its_flat_fee(used: str, expected: str) -> None:
    assert amount(Stairstep((Tier(D(100), flat=D(10)), Tier(D(500), flat=D(18)), Tier(flat=D(40)))), used) == D(
        expected
    )


@pytest.mark.parametrize(
    ("used", "up", "down"), [("0", 0, 0), ("1", 25, 0), ("10", 25, 25), ("10.001", 50, 25), ("121", 325, 300)]
)
def test_a_started_package_is_charged_in_full_or_not_at_all(used: str, up: int, down: int) -> None:
    assert amount(Package(D(10), D(25)), used) == up
    assert amount(Package(D(10), D(25), QuantityRounding.DOWN), used) == down


def test_blocks_fill_their_tiers_in_turn_or_all_cost_the_top_one() -> None:
    table = (BlockTier(D(1), 10, D("1.5")), BlockTier(D(1), 100, D(1)), BlockTier(D(1), 1000, D("0.5")))
    assert amount(Blocks(table), "111") == D("115.5")
    assert amount(Blocks(table, top=True), "111") == D("55.5")
    assert amount(Blocks(table), "5000") == D("15") + 100 + D("2445")


def test_a_tier_may_have_a_cap() -> None:
    table = (Tier(D(100), D(1), D(5), cap=D(50)), Tier(unit=D("0.5"), cap=D(20)))
    assert [amount(Graduated(table), used) for used in ("40", "45", "100", "110", "200")] == [45, 50, 50, 55, 70]
    assert [amount(Volume(table), used) for used in ("40", "60", "110")] == [45, 50, 20]
    assert explained(Graduated(table), "110").text == "(100 x 1.00 + 5.00, at most 50.00) + 10 x 0.50"


def test_a_capacity_is_paid_whether_used_or_not() -> None:
    model = Committed(included=D(100), fee=D(500), overage=D("6.5"))
    assert [amount(model, used) for used in ("0", "100", "100.5", "102")] == [500, 500, D("503.25"), 513]


def test_a_capacity_tier_must_hold_for_every_kind_of_unit() -> None:
    tiers = (
        CapacityTier((CapacityLimit("seats", D(10)), CapacityLimit("disks", D(100))), D(1)),
        CapacityTier((CapacityLimit("seats", D(50)),), D(10)),
        CapacityTier(price=D(100)),
    )
    made = charge(Capacity(("kind",), tiers))

    def price(seats: int, disks: int) -> Decimal:
        return rate(made, by_cell({"disks": disks, "seats": seats})).amount

    assert [price(10, 100), price(11, 100), price(5, 101), price(51, 1)] == [1, 10, 10, 100]


def test_cells_cost_their_own_price_and_others_the_default() -> None:
    gates = Matrix(("origin",), (Cell(("EWR",), D("3.10")), Cell(("JFK",), D("4.25"))), default=D(1))
    measured = by_cell({"EWR": 5, "JFK": 3, "LGA": 2})
    rated = rate(charge(gates), measured)
    assert rated.amount == D("30.25")
    assert [(step.label, step.amount) for step in rated.steps] == [
        ("EWR", D("15.50")),
        ("JFK", D("12.75")),
        ("LGA", D(2)),
    ]
    assert rated.text == "5 x 3.10 + 3 x 4.25 + 2 x 1.00"


def test_a_price_by_some_of_the_meters_dimensions_adds_up_the_others() -> None:
    measured = by_cell({"us, big": 1, "us, small": 2, "eu, big": 3})
    by_size = regrouped(measured, ("region", "size"), ("size",))
    assert by_size.cells == ((("big",), D(4)), (("small",), D(2)))
    turned = regrouped(measured, ("region", "size"), ("size", "region"))
    assert turned.cells[0] == (("big", "eu"), D(3))
    assert regrouped(measured, ("region", "size"), ()) is measured


def test_levels_by_combination_follow_the_order_of_the_dimensions() -> None:
    arrived, left = (Change(D(3), Fraction(2)),), (Change(D(-1), Fraction(-1, 2)),)
    levels = Measured(D(2), held_cells=((("eu", "small"), arrived), (("us", "big"), left)))
    turned = regrouped(levels, ("region", "size"), ("size", "region"))
    assert turned.held_cells == ((("big", "us"), left), (("small", "eu"), arrived))


def test_units_that_are_held_are_named_by_their_combination() -> None:
    whole = (Change(D(3), Fraction(3)),)
    seats = rate(charge(PerUnit(D(2))), Measured(D(3), held=whole))
    assert (seats.amount, seats.text) == (6, "3 x 2.00")
    split = charge(PerUnit(D(2)), split_by=("region", "size"))
    levels = Measured(D(3), held=whole, held_cells=((("eu", "big"), whole),))
    assert [step.label for step in rate(split, levels).steps] == ["eu, big"]


def test_a_combination_without_price_is_refused_by_name() -> None:
    gates = Matrix(("origin", "size"), (Cell(("EWR", "big"), D(3)),))
    with pytest.raises(Rejected, match="origin='LGA', size='big'"):
        rate(charge(gates), by_cell({"LGA, big": 1}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "316.40"),
        ({"free_transactions": 2}, "314.20"),
        ({"free_amount": D(300)}, "310.20"),
        ({"minimum": D(5)}, "324.20"),
        ({"maximum": D(100)}, "116.30"),
        ({"minimum": D(5), "maximum": D(4)}, "16"),  # the largest fee wins
        ({"free_transactions": 1, "minimum": D(5)}, "319.20"),
    ],
)
def test_a_percentage_per_transaction(options: dict[str, object], expected: str) -> None:
    amounts = (D(100), D(0), D(700), D(15000))
    model = replace(Percentage(D(2), D("0.1")), **options)
    assert rate(charge(model), Measured(sum(amounts, D(0)), transactions=amounts, events=4)).amount == D(expected)


def test_a_percentage_of_a_sum_without_its_transactions() -> None:
    model = Percentage(D(2), D("0.1"), free_transactions=1, free_amount=D(50))
    assert rate(charge(model), Measured(D(250), events=3)).amount == D("4.2")


def test_each_part_of_an_amount_costs_the_percentage_of_its_tier() -> None:
    model = GraduatedPercentage((PercentageTier(D(100), D(5)), PercentageTier(None, D(2), D(10))))
    assert [amount(model, used) for used in ("50", "100", "150")] == [D("2.5"), 5, 16]


def test_events_may_carry_their_price() -> None:
    assert amount(Dynamic(D("0.01")), "901.9") == D("9.019")


@pytest.mark.parametrize(
    ("conversion", "quantity", "expected"),
    [
        (Conversion(D(1000), rounding=QuantityRounding.UP), "1400", "2"),
        (Conversion(D(1000), rounding=QuantityRounding.DOWN), "1999", "1"),
        (Conversion(D(100), rounding=QuantityRounding.HALF_UP, precision=1), "245", "2.5"),
        (Conversion(D("1.5"), ConversionOperation.MULTIPLY), "4.2", "6.30"),
        (Conversion(D(3)), "10", "3.333333333333"),  # kept to 12 decimals, half up
        (Conversion(D(3)), "20", "6.666666666667"),
        (Conversion(D(3), rounding=QuantityRounding.UP), "9.000000000001", "4"),  # not lost by rounding before
        (Conversion(D(3), rounding=QuantityRounding.DOWN), "8.999999999999", "2"),
        (Conversion(D(3), rounding=QuantityRounding.HALF_UP), "4.5", "2"),
        (Conversion(D(1024)), "1", "0.0009765625"),
        (Conversion(D(2**20)), "1", "0.00000095367431640625"),  # a quotient that ends is exact, however long
        (Conversion(D(5**13)), "1", "0.0000000008192"),
        (Conversion(D(5**26)), "1", "67108864e-26"),
        (Conversion(D(2**40)), "1", f"{5**40}e-40"),
        (Conversion(D(3 * 2**20)), "3", "0.000000953674"),
        (Conversion(D("0.08")), "1", "12.5"),
    ],
)
def test_quantities_are_converted_then_rounded(conversion: Conversion, quantity: str, expected: str) -> None:
    assert convert(D(quantity), conversion) == D(expected)


def test_the_steps_come_in_order() -> None:
    """Convert, round, free units, tiers (SEMANTICS 14): 7,400 MB are 8 started GB, 2 are free, 6 are priced."""
    conversion = Conversion(D(1000), rounding=QuantityRounding.UP)
    made = charge(Graduated((Tier(D(5), D(1)), Tier(unit=D("0.5")))), conversion=conversion, free_units=D(2))
    rated = rate(made, Measured(D(7400)))
    assert (rated.quantity, rated.amount, rated.text) == (6, D("5.5"), "5 x 1.00 + 1 x 0.50")


def test_free_units_that_earlier_lines_used_are_gone() -> None:
    assert after_free_units(D(15), D(10), D(5)) == 10
    assert after_free_units(D(15), D(10), D(20)) == 15
    assert after_free_units(D(5), D(10)) == 0
    assert amount(PerUnit(D(2)), "10.5", free_units=D(10)) == 1
    assert rounded(D("1.25"), QuantityRounding.HALF_UP) == 1
    assert rounded(D("9" * 40 + ".5"), QuantityRounding.UP) == D(10) ** 40


def test_combinations_may_be_rated_each_with_tiers_of_its_own() -> None:
    made = charge(Graduated((Tier(D(10), D(1)), Tier(unit=D("0.5")))), split_by=("region",))
    rated = rate(made, by_cell({"eu": 20, "us": 20}))
    assert rated.amount == 30
    assert [step.label for step in rated.steps] == ["eu: tier 1", "eu: tier 2", "us: tier 1", "us: tier 2"]


@pytest.mark.parametrize(
    ("options", "quantity", "expected", "text"),
    [
        ({"minimum": D(100)}, "3", "100", "3 x 10.00 + 70.00 up to the minimum of 100.00"),
        ({"maximum": D(25)}, "3", "25", "3 x 10.00 - 5.00 above the maximum of 25.00"),
        ({"discount_percent": D(50)}, "3", "15", "3 x 10.00 - 15.00 discount of 50 %"),
        ({"discount_percent": D(50), "maximum": D(12)}, "3", "12", None),
        ({"maximum": D(30), "minimum": D(30)}, "3", "30", "3 x 10.00"),
    ],
)
def test_a_charge_has_a_least_and_a_largest_amount(
    options: dict[str, object], quantity: str, expected: str, text: str | None
) -> None:
    rated = explained(PerUnit(D(10)), quantity, **options)
    assert rated.amount == D(expected)
    assert text is None or rated.text == text


@pytest.mark.parametrize(
    ("commitment", "quantity", "expected"),
    [
        (Commitment(quantity=D(10)), "4", "20"),
        (Commitment(amount=D(20), overage_factor=D(3)), "9.75", "20"),  # half a unit is missing
        (Commitment(quantity=D(10)), "12", "24"),
        (Commitment(quantity=D(10), overage_factor=D("1.5")), "12", "26"),
        (Commitment(amount=D(20), overage_factor=D(2)), "12", "28"),
        (Commitment(amount=D(20), true_up=False), "4", "8"),
        (Commitment(quantity=D(10), true_up=False, overage_factor=D(3)), "11", "26"),
    ],
)
def test_a_commitment_is_paid_at_least_and_has_its_own_price_above(
    commitment: Commitment, quantity: str, expected: str
) -> None:
    assert amount(PerUnit(D(2)), quantity, commitment=commitment) == D(expected)


def test_what_is_missing_to_a_minimum_is_due_at_the_end_only() -> None:
    made = charge(PerUnit(D(10)), minimum=D(100))
    first = bill_so_far(made, Measured(D(3)), Money(0, "USD"), final=False)
    last = bill_so_far(made, Measured(D(4)), first, final=True)
    assert (first, last) == (Money(3000, "USD"), Money(7000, "USD"))
    committed = charge(PerUnit(D(10)), commitment=Commitment(amount=D(100)))
    assert rate(committed, Measured(D(3)), final=False).amount == 30


def test_a_reached_volume_tier_re_rates_what_was_billed() -> None:
    made = charge(Volume((Tier(D(15), D(10)), Tier(unit=D(5)))))
    first = bill_so_far(made, Measured(D(15)), Money(0, "USD"), final=False)
    assert bill_so_far(made, Measured(D(16)), first, final=True) == Money(-7000, "USD")


def test_a_fee_needs_no_quantity() -> None:
    rated = explained(Flat(D("500.000000000000")), "0")
    assert (rated.amount, rated.text) == (500, "500.00")


def test_a_price_far_below_a_cent_and_a_quantity_of_forty_digits_are_exact() -> None:
    huge = D("9" * 40)
    assert amount(PerUnit(D("0.000000000001")), str(huge)) == D("9999999999999999999999999999.999999999999")
    graduated = Fraction(amount(Graduated(DEPARTURES), str(huge)))
    assert graduated == 31000 + (Fraction(huge) - 3000) * Fraction(29, 4)
