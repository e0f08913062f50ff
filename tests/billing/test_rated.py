"""What a rated charge tells about itself: quantity, steps, adjustments and the words for them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from billing.errors import Rejected
from billing.metering import Measured
from billing.partial import Part, promises
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
from billing.rated import EXACT_DECIMALS_MAX, Adjustment, Rated, Step, figure, price_figure
from billing.rating import rate, rate_all
from billing.tiers import graduated, graduated_between, unit_pricer
from tests.billing.charges import by_cell, charge, explained

D, ZERO = Decimal, Decimal(0)
TIERS = (Tier(D(10), D("1.5"), D(3)), Tier(unit=D("0.5")))


@pytest.mark.parametrize(
    ("model", "used", "steps", "text"),
    [
        (Flat(D(5)), "9", [Step("", ZERO, ZERO, D(5), D(5))], "5.00"),
        (PerUnit(D("0.0095")), "1000.5", [Step("", D("1000.5"), D("0.0095"), ZERO, D("9.50475"))], "1,000.5 x 0.0095"),
        (
            Graduated(TIERS),
            "12",
            [Step("tier 1", D(10), D("1.5"), D(3), D(18)), Step("tier 2", D(2), D("0.5"), ZERO, D(1))],
            "10 x 1.50 + 3.00 + 2 x 0.50",
        ),
        (Volume(TIERS), "12", [Step("tier 2", D(12), D("0.5"), ZERO, D(6))], "12 x 0.50"),
        (
            Stairstep((Tier(D(5), flat=D(9)), Tier(flat=D(15)))),
            "6",
            [Step("tier 2", D(6), ZERO, D(15), D(15))],
            "15.00",
        ),
        (Package(D(10), D(25)), "11", [Step("packages", D(2), D(25), ZERO, D(50))], "2 x 25.00"),
        (
            Blocks((BlockTier(D(10), 2, D(3)), BlockTier(D(100), None, D(20)))),
            "21",
            [Step("tier 1", D(2), D(3), ZERO, D(6)), Step("tier 2", D(1), D(20), ZERO, D(20))],
            "2 x 3.00 + 1 x 20.00",
        ),
        (
            Blocks((BlockTier(D(10), 2, D(3)), BlockTier(D(100), None, D(20))), top=True),
            "21",
            [Step("tier 2", D(1), D(20), ZERO, D(20))],
            "1 x 20.00",
        ),
        (Committed(D(10), D(100), D(7)), "8", [Step("capacity", ZERO, ZERO, D(100), D(100))], "100.00"),
        (
            Committed(D(10), D(100), D(7)),
            "12",
            [Step("capacity", ZERO, ZERO, D(100), D(100)), Step("overage", D(2), D(7), ZERO, D(14))],
            "100.00 + 2 x 7.00",
        ),
        (Committed(D(10), D(100), D(7)), "10", [Step("capacity", ZERO, ZERO, D(100), D(100))], "100.00"),
        (PerUnit(ZERO), "5", [Step("", D(5), ZERO, ZERO, ZERO)], "5 x 0.00"),
        (Dynamic(D("0.01")), "150", [Step("", D(150), D("0.01"), ZERO, D("1.5"))], "150 x 0.01"),
        (Percentage(D("2.9")), "150", [Step("percentage", D(150), D("2.9"), ZERO, D("4.35"), True)], "2.9 % of 150"),
        (
            GraduatedPercentage((PercentageTier(D(100), D(5), D(1)), PercentageTier(None, D(2)))),
            "150",
            [Step("tier 1", D(100), D(5), D(1), D(6), True), Step("tier 2", D(50), D(2), ZERO, D(1), True)],
            "5 % of 100 + 1.00 + 2 % of 50",
        ),
    ],
)
def test_a_charge_explains_its_amount(model: PriceModel, used: str, steps: list[Step], text: str) -> None:
    rated = explained(model, used)
    assert list(rated.steps) == steps
    assert rated.text == text
    assert rated.usage == rated.amount == sum((step.amount for step in steps), ZERO)


@pytest.mark.parametrize(
    ("model", "used", "quantity"),
    [
        (Flat(D(5)), "9", 1),
        (PerUnit(D(1)), "9.5", D("9.5")),
        (PerUnit(D(1)), "-9.5", 0),
        (Graduated(TIERS), "-1", 0),
        (Dynamic(), "150", 150),
        (Dynamic(), "-150", -150),
        (Percentage(D(1)), "150", 150),
    ],
)
def test_the_priced_quantity_is_told(model: PriceModel, used: str, quantity: Decimal) -> None:
    assert explained(model, used).quantity == quantity


def test_a_capacity_above_its_last_tier_costs_that_tier() -> None:
    tiers = (CapacityTier((CapacityLimit("seats", D(1)),), D(3)), CapacityTier((CapacityLimit("seats", D(2)),), D(5)))
    made = charge(Capacity(("kind",), tiers), conversion=Conversion(D(10), rounding=QuantityRounding.UP))
    rated = rate(made, by_cell({"seats": 31}))
    assert (rated.amount, rated.quantity, rated.text) == (5, 1, "5.00")
    assert rated.steps == (Step("tier 2", ZERO, ZERO, D(5), D(5)),)
    assert rate(made, by_cell({"seats": 11})).amount == 5
    assert rate(made, by_cell({"seats": 10})).amount == 3


def test_cells_are_converted_one_by_one() -> None:
    model = Matrix(("zone", "size"), (Cell(("eu", "big"), D(3)), Cell(("us", "big"), D(2))))
    made = charge(model, conversion=Conversion(D(10), rounding=QuantityRounding.UP))
    rated = rate(made, by_cell({"eu, big": 21, "us, big": 19}))
    assert (rated.amount, rated.quantity) == (13, 5)
    assert [step.label for step in rated.steps] == ["eu, big", "us, big"]
    assert rated.text == "3 x 3.00 + 2 x 2.00"
    plain = rate(charge(model), by_cell({"eu, big": 5, "us, big": -2}))
    assert (plain.amount, plain.quantity) == (15, 3)
    assert [step.quantity for step in plain.steps] == [5, 0]


def test_an_unpriced_cell_has_a_code_for_programs() -> None:
    with pytest.raises(Rejected) as refused:
        rate(charge(Matrix(("zone",), ())), by_cell({"mars": 1}))
    assert refused.value.code == "unpriced_cell"


@pytest.mark.parametrize(
    ("commitment", "used", "adjustments", "text"),
    [
        (
            Commitment(quantity=D(10)),
            "4",
            (Adjustment("up to the commitment of 20.00", D(12)),),
            "4 x 2.00 + 12.00 up to the commitment of 20.00",
        ),
        (
            Commitment(amount=D(20), overage_factor=D("1.5")),
            "12",
            (Adjustment("for 4.00 above the commitment at 1.5 times the price", D(2)),),
            "12 x 2.00 + 2.00 for 4.00 above the commitment at 1.5 times the price",
        ),
        (Commitment(amount=D(20)), "10", (), "10 x 2.00"),
    ],
)
def test_a_commitment_explains_itself(
    commitment: Commitment, used: str, adjustments: tuple[Adjustment, ...], text: str
) -> None:
    rated = explained(PerUnit(D(2)), used, commitment=commitment)
    assert (rated.adjustments, rated.text, rated.quantity) == (adjustments, text, D(used))
    assert rated.amount == rated.usage + sum((each.amount for each in adjustments), ZERO)


HALF = Part(Fraction(1, 2), "15 of 30 days")


@pytest.mark.parametrize(
    ("options", "used", "amount", "text"),
    [
        (
            {"commitment": Commitment(quantity=D(10))},
            "4",
            "10",
            "4 x 2.00 + 2.00 up to the commitment of 10 x 15 of 30 days",
        ),
        (
            {"commitment": Commitment(amount=D(20))},
            "4",
            "10",
            "4 x 2.00 + 2.00 up to the commitment of 20.00 x 15 of 30 days",
        ),
        (
            {"commitment": Commitment(amount=D(20), overage_factor=D(2))},
            "6",
            "14",
            "6 x 2.00 + 2.00 for 2.00 above the commitment at 2 times the price",
        ),
        ({"minimum": D(20)}, "4", "10", "4 x 2.00 + 2.00 up to the minimum of 20.00 x 15 of 30 days"),
        ({"maximum": D(10)}, "4", "5", "4 x 2.00 - 3.00 above the maximum of 10.00 x 15 of 30 days"),
        ({"minimum": D(10), "maximum": D(20)}, "4", "8", "4 x 2.00"),
    ],
)
def test_a_part_of_a_period_says_what_it_is_a_part_of(
    options: dict[str, object], used: str, amount: str, text: str
) -> None:
    rated = rate(charge(PerUnit(D(2)), **options), Measured(D(used)), part=HALF)
    assert (rated.amount, rated.text) == (D(amount), text)


def test_a_part_without_a_day_keeps_its_whole_maximum_and_no_minimum() -> None:
    nothing = Part(Fraction(0), "0 of 30 days")
    bounded = charge(PerUnit(D(2)), minimum=D(4), maximum=D(10))
    assert [rate(bounded, Measured(D(used)), part=nothing).amount for used in (0, 1, 6)] == [0, 2, 10]


@pytest.mark.parametrize(
    ("model", "options", "promised"),
    [
        (PerUnit(D(2)), {}, False),
        (PerUnit(D(2)), {"minimum": D(0)}, True),
        (PerUnit(D(2)), {"maximum": D(5)}, True),
        (PerUnit(D(2)), {"commitment": Commitment(amount=D(1))}, True),
        (Committed(D(10), D(100), D(7)), {}, True),
    ],
)
def test_bounds_commitments_and_capacities_are_promises(
    model: PriceModel, options: dict[str, object], promised: bool
) -> None:
    assert promises(charge(model, **options)) is promised


def test_a_capacity_holds_by_the_part() -> None:
    capacity = charge(Committed(D(10), D(100), D(7)))
    assert [rate(capacity, Measured(D(used)), part=HALF).amount for used in (5, 6)] == [50, 57]


def test_each_combination_has_its_own_commitment() -> None:
    made = charge(PerUnit(D(2)), split_by=("zone",), commitment=Commitment(quantity=D(10)), free_units=D(1))
    rated = rate(made, by_cell({"eu": 5, "us": 15, "xx": -3}))
    assert (rated.amount, rated.quantity) == (20 + 28 + 20, 4 + 14)
    assert [(step.label, step.quantity) for step in rated.steps] == [("eu", 4), ("us", 14), ("xx", 0)]
    assert [each.amount for each in rated.adjustments] == [12, 20]
    plain = rate(charge(PerUnit(D(2)), split_by=("zone",)), by_cell({"eu": 5, "us": -3}))
    assert (plain.amount, plain.quantity) == (10, 5)


def test_a_commitment_counts_what_is_priced() -> None:
    conversion = Conversion(D(10), rounding=QuantityRounding.UP)
    rated = explained(PerUnit(D(2)), "35", commitment=Commitment(quantity=D(10)), conversion=conversion)
    assert (rated.amount, rated.quantity, rated.steps) == (20, 4, (Step("", D(4), D(2), ZERO, D(8)),))
    assert explained(PerUnit(D(2)), "-35", commitment=Commitment(quantity=D(10))).quantity == 0
    both = charge(PerUnit(D(2)), split_by=("zone", "size"))
    assert rate(both, by_cell({"eu, big": 5})).steps[0].label == "eu, big"


def test_a_model_that_needs_more_than_a_quantity_has_no_price_by_units() -> None:
    with pytest.raises(Rejected) as refused:
        unit_pricer(Dynamic(), True)
    assert (refused.value.code, refused.value.detail) == ("not_rated_by_units", "Dynamic needs more than a quantity")


def test_a_batch_ends_its_period_and_rounds_half_up() -> None:
    made = charge(PerUnit(D("0.005")), minimum=D("0.01"))
    quantities = [Measured(D(n)) for n in (0, 1, 3, 5)]
    assert [minor for minor, _ in rate_all(made, quantities, "USD")] == [1, 1, 2, 3]
    assert [minor for minor, _ in rate_all(made, quantities, "USD", final=False)] == [0, 1, 2, 3]
    wide = [Measured(D("123456789012345678901234567890.123456789012"))]
    assert rate_all(charge(PerUnit(D("1.000000000001"))), wide, "JPY")[0][0] == 123456789012469135690246913569
    bounded = charge(PerUnit(D(2)), maximum=D(3), discount_percent=D(10))
    assert [minor for minor, _ in rate_all(bounded, [Measured(D(1)), Measured(D(2))], "USD")] == [180, 300]


def test_a_part_of_a_period_may_still_exceed_its_commitment() -> None:
    made = charge(PerUnit(D(2)), commitment=Commitment(amount=D(10), overage_factor=D(2)))
    assert rate(made, Measured(D(6)), final=False).amount == 14
    assert rate(made, Measured(D(4)), final=False).amount == 8
    assert rate(made, Measured(D(4)), final=False).adjustments == ()


@pytest.mark.parametrize(
    ("number", "quantity", "price"),
    [
        ("1000", "1,000", "1,000.00"),
        ("1000.00", "1,000", "1,000.00"),
        ("10.50", "10.5", "10.50"),
        ("0.0095000", "0.0095", "0.0095"),
        ("0", "0", "0.00"),
        ("-1.5", "-1.5", "-1.50"),
        ("0.123456789012", "0.123456789012", "0.123456789012"),
        ("0.1234567890125", "0.1234567890125", "0.1234567890125"),
    ],
)
def test_figures_are_written_for_people(number: str, quantity: str, price: str) -> None:
    assert (figure(D(number)), price_figure(D(number))) == (quantity, price)


def test_a_share_of_time_without_an_end_is_shown_to_twelve_decimals() -> None:
    longest = "0." + "4" * EXACT_DECIMALS_MAX
    assert figure(D(longest)) == longest
    assert figure(D(longest + "4")) == "0.444444444444"
    assert price_figure(D("7.0000000000005" + "0" * EXACT_DECIMALS_MAX)) == "7.000000000001"  # half up
    assert price_figure(D("1234.00000000000049" + "9" * EXACT_DECIMALS_MAX)) == "1,234.00"


def test_less_than_one_is_added_or_taken_off_in_words() -> None:
    assert explained(PerUnit(D(2)), "0", minimum=D("0.5")).text == "0 x 2.00 + 0.50 up to the minimum of 0.50"
    assert explained(PerUnit(D(2)), "1", maximum=D("1.5")).text == "1 x 2.00 - 0.50 above the maximum of 1.50"


def test_nothing_used_and_nothing_owed_is_a_zero() -> None:
    rated = explained(Graduated(TIERS), "0", flat_at_zero=False)
    assert (rated.amount, rated.steps, rated.text) == (0, (), "0")


def test_fees_per_transaction_and_their_bounds_are_explained() -> None:
    amounts = (D(100), D(1000))
    model = Percentage(D(2), D("0.5"), minimum=D(5))
    rated = rate(charge(model), Measured(D(1100), transactions=amounts, events=2))
    assert rated.steps == (
        Step("percentage", D(1100), D(2), ZERO, D(22), True),
        Step("transactions", D(2), D("0.5"), ZERO, D(1)),
    )
    assert rated.adjustments == (Adjustment("for the least and largest fee per transaction", D("2.5")),)
    assert (rated.amount, rated.quantity) == (D("25.5"), 1100)
    assert rated.text == "2 % of 1,100 + 2 x 0.50 + 2.50 for the least and largest fee per transaction"
    plain = rate(charge(Percentage(D(2), D("0.5"))), Measured(D(1100), events=2))
    assert (plain.amount, plain.quantity, plain.adjustments) == (23, 1100, ())
    with_flat = Rated(D(3), D(1), [("tier 1", D(100), D(2), D(1), D(3), True)])
    assert with_flat.text == "2 % of 100 + 1.00"


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        (("40", "60"), "0"),  # up to the free amount nothing is paid
        (("40", "60.5"), "1.05"),  # half a unit above it: 10 % of the excess and the fee
        (("40", "61"), "1.1"),
        (("150",), "6"),
    ],
)
def test_a_transaction_within_the_free_amount_is_free(amounts: tuple[str, ...], expected: str) -> None:
    model = Percentage(D(10), D(1), free_amount=D(100))
    given = tuple(D(each) for each in amounts)
    assert rate(charge(model), Measured(sum(given, ZERO), transactions=given)).amount == D(expected)


def test_fewer_transactions_than_are_free_owe_nothing() -> None:
    model = Percentage(D(0), D(1), free_transactions=5)
    assert [rate(charge(model), Measured(D(9), events=n)).amount for n in (0, 4, 5, 6)] == [0, 0, 0, 1]


def test_a_bounded_charge_tells_what_was_priced() -> None:
    rated = explained(PerUnit(D("0.1")), "5", discount_percent=D(50))
    assert (rated.amount, rated.quantity) == (D("0.25"), 5)
    assert explained(PerUnit(D("0.1")), "0", discount_percent=D(50)).adjustments == ()
    assert explained(Dynamic(), "-10", discount_percent=D(50)).amount == -10


def test_a_quantity_of_many_digits_is_rounded_to_a_unit_exactly() -> None:
    huge = D("123456789012345678901234567890123456789.4")
    conversion = Conversion(D(1), rounding=QuantityRounding.UP)
    assert explained(PerUnit(D(1)), str(huge), conversion=conversion).amount == D(
        "123456789012345678901234567890123456790"
    )
    as_is = Conversion(D(1))
    assert explained(PerUnit(D(1)), str(huge), conversion=as_is).quantity == huge


def test_tables_of_tiers_owe_the_first_flat_fee_by_default() -> None:
    amount, rows = graduated(TIERS)(ZERO)
    assert (amount, rows) == (3, (("tier 1", ZERO, D("1.5"), D(3), D(3), False),))
    between = graduated_between(TIERS, D(8), D(12))
    assert between == (("tier 1", D(2), D("1.5"), ZERO, D(3), False), ("tier 2", D(2), D("0.5"), ZERO, D(1), False))
