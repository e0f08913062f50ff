"""Laws of rating: nothing is free between tiers, parts add up to the whole, a batch is rated like its lines."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing.metering import Measured
from billing.money import Money
from billing.price import Cell, Committed, Graduated, Matrix, Package, PerUnit, PriceModel, Tier, Volume
from billing.rating import bill_so_far, rate, rate_all
from billing.tiers import graduated_between
from tests.billing.charges import charge

D = Decimal


prices = st.decimals(0, 100, places=6)
used = st.decimals(0, 10_000, places=3)
bounds = st.lists(st.decimals(D("0.001"), 10_000, places=3), max_size=6, unique=True).map(sorted)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tier, ...]:
    """Tiers with any bounds, prices and flat fees."""
    up_to = [*draw(bounds), None]
    return tuple(Tier(each, draw(prices), draw(prices)) for each in up_to)


models = st.one_of(
    st.builds(PerUnit, prices),
    st.builds(Graduated, tables()),
    st.builds(Volume, tables()),
    st.builds(lambda size, price: Package(size, price), st.decimals(D("0.1"), 100, places=1), prices),
    st.builds(Committed, used, prices, prices),
)


@given(models, used)
def test_an_amount_is_the_sum_of_its_steps(model: PriceModel, quantity: Decimal) -> None:
    rated = rate(charge(model), Measured(quantity))
    assert Fraction(rated.amount) == sum(Fraction(step.amount) for step in rated.steps)
    assert rated.usage == rated.amount
    assert rated.text


@given(tables(), used)
def test_no_unit_between_two_tiers_is_free(table: tuple[Tier, ...], quantity: Decimal) -> None:
    steps = rate(charge(Graduated(table)), Measured(quantity)).steps
    assert sum(step.quantity for step in steps) == quantity


@given(tables(), used, used)
def test_more_units_never_cost_less_by_graduated_tiers(table: tuple[Tier, ...], a: Decimal, b: Decimal) -> None:
    made = charge(Graduated(table))
    assert rate(made, Measured(min(a, b))).amount <= rate(made, Measured(max(a, b))).amount


@given(tables(), used, used)
def test_what_lies_between_two_quantities_is_their_difference(table: tuple[Tier, ...], a: Decimal, b: Decimal) -> None:
    low, high = min(a, b), max(a, b)
    made = charge(Graduated(table), flat_at_zero=False)
    between = sum((Fraction(row[4]) for row in graduated_between(table, low, high)), Fraction(0))
    assert between == Fraction(rate(made, Measured(high)).amount) - Fraction(rate(made, Measured(low)).amount)


@given(models, st.lists(used, min_size=1, max_size=5), st.none() | prices, st.none() | prices)
def test_partial_invoices_add_up_to_the_one_they_stand_for(
    model: PriceModel, parts: list[Decimal], minimum: Decimal | None, maximum: Decimal | None
) -> None:
    if minimum is not None and maximum is not None:
        minimum, maximum = min(minimum, maximum), max(minimum, maximum)
    made = charge(model, minimum=minimum, maximum=maximum)
    billed, so_far = Money.zero("USD"), D(0)
    for i, part in enumerate(parts):
        so_far += part
        billed += bill_so_far(made, Measured(so_far), billed, final=i == len(parts) - 1)
    assert billed == Money.from_major(rate(made, Measured(so_far)).amount, "USD")


@given(models, st.lists(used, max_size=5), st.sampled_from(["USD", "JPY", "KWD"]))
def test_a_batch_is_rated_like_its_quantities(model: PriceModel, quantities: list[Decimal], currency: str) -> None:
    made = charge(model)
    for quantity, (minor, rated) in zip(quantities, rate_all(made, map(Measured, quantities), currency), strict=True):
        alone = rate(made, Measured(quantity))
        assert rated == alone
        assert Money(minor, currency) == Money.from_major(alone.amount, currency)


@given(st.lists(st.tuples(st.sampled_from("abcd"), used), max_size=4, unique_by=lambda cell: cell[0]), prices, prices)
def test_a_matrix_costs_the_sum_of_its_cells(cells: list[tuple[str, Decimal]], price: Decimal, other: Decimal) -> None:
    made = charge(Matrix(("d",), (Cell(("a",), price),), default=other))
    rated = rate(made, Measured(D(0), tuple(((name,), units) for name, units in cells)))
    expected = sum((Fraction(units) * Fraction(price if name == "a" else other) for name, units in cells), Fraction(0))
    assert Fraction(rated.amount) == expected
    assert Fraction(rated.usage) == expected
