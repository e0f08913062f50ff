"""Coupons, then tax: each rounded once, allocated without a cent lost (SEMANTICS 4, 23)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.crediting import creditable, credited, refund, unused_credit
from billing.discount import Coupon, CouponOrder, discounts, in_order
from billing.errors import CurrencyMismatch, Rejected
from billing.fx import FxRate, convert
from billing.fx import check_rate as check_fx
from billing.money import Money
from billing.tax import TaxedLine, TaxRate, TaxRounding, check_rate, rates_for, tax_lines, taxes

D = Decimal
lines_of_money = st.lists(st.integers(-(10**7), 10**7).map(lambda minor: Money(minor, "USD")), min_size=1, max_size=12)
positive_lines = st.lists(st.integers(1, 10**7).map(lambda minor: Money(minor, "USD")), min_size=1, max_size=12)
percents = st.decimals(D("0.001"), 100, places=3)
coupon_lists = st.lists(
    st.one_of(
        st.builds(lambda p: Coupon(code="percent", percent=p), percents),
        st.builds(lambda a: Coupon(code="fixed", amount=a, currency="USD"), st.decimals(D("0.01"), 10**6, places=2)),
        st.builds(lambda p: Coupon(code="scoped", percent=p, charges=("0",)), percents),
    ),
    max_size=5,
)


def usd(*minors: int) -> list[Money]:
    return [Money(minor, "USD") for minor in minors]


def ten_off(**fields: object) -> Coupon:
    return replace(Coupon(code="ten", amount=D(10), currency="USD"), **fields)


def percent_off(percent: str, **fields: object) -> Coupon:
    return replace(Coupon(code=f"{percent}%", percent=D(percent)), **fields)


def test_scoped_coupons_come_first_then_percentages_then_fixed_amounts() -> None:
    scoped, percent, fixed = ten_off(code="scoped", charges=("a",)), percent_off("20"), ten_off()
    assert in_order([fixed, percent, scoped]) == [scoped, percent, fixed]
    assert in_order([fixed, percent, scoped], CouponOrder.OLDEST_FIRST) == [scoped, fixed, percent]


def test_each_coupon_counts_on_what_is_left() -> None:
    made = discounts([ten_off(), percent_off("15"), percent_off("20")], usd(10000))
    assert [(each.coupon.code, each.total.minor) for each in made] == [("15%", 1500), ("20%", 1700), ("ten", 1000)]


def test_a_coupon_is_rounded_once_and_allocated() -> None:
    [made] = discounts([percent_off("10")], usd(333, 333, 333))
    assert [part.minor for part in made.amounts] == [34, 33, 33]


def test_credits_and_other_charges_are_not_discounted() -> None:
    [made] = discounts([percent_off("50", charges=("a",))], usd(1000, -400, 600), ["a", "a", "b"])
    assert [part.minor for part in made.amounts] == [500, 0, 0]


def test_a_fixed_amount_stops_at_zero_and_keeps_its_rest() -> None:
    carrying = ten_off(carry_over=True)
    [first] = discounts([carrying], usd(400, 200))
    assert first.total == Money(600, "USD")
    [second] = discounts([carrying], usd(1000), left={"ten": Money(400, "USD")})
    assert second.total == Money(400, "USD")


def test_a_fixed_amount_of_another_currency_gives_nothing() -> None:
    assert discounts([ten_off(currency="NOK")], usd(5000)) == ()


@given(coupon_lists, lines_of_money)
def test_a_discount_never_takes_a_line_below_zero(coupons: list[Coupon], lines: list[Money]) -> None:
    made = discounts(coupons, lines, [str(i) for i in range(len(lines))])
    for i, line in enumerate(lines):
        off = sum((each.amounts[i] for each in made), Money.zero("USD"))
        assert Money.zero("USD") <= off <= max(line, Money.zero("USD"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (percent_off("300"), "percent"),
        (percent_off("0"), "percent"),
        (percent_off("NaN"), "percent"),
        (Coupon(code="none"), "percent"),
        (ten_off(percent=D(5)), "percent"),
        (ten_off(amount=D(-1)), "amount"),
        (ten_off(currency=None), "currency"),
        (ten_off(currency="XXQ"), "currency"),
        (ten_off(invoices=0), "invoices"),
        (percent_off("5", carry_over=True), "carry_over"),
    ],
)
def test_a_coupon_that_cannot_be_applied_is_refused(wrong: Coupon, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        wrong.check("coupons[0]")
    assert refused.value.field == f"coupons[0].{field}"


def test_a_coupon_lasts_for_so_many_invoices() -> None:
    assert [percent_off("5", invoices=2).lasts(n) for n in (0, 1, 2)] == [True, True, False]
    assert percent_off("5").lasts(10_000)


def rate(percent: str, **fields: object) -> TaxRate:
    return replace(TaxRate(code=percent, percent=D(percent)), **fields)


def test_tax_is_rounded_once_over_the_sum_of_the_lines() -> None:
    [tax] = taxes([rate("8.875")], usd(105, 105, 105), "USD")
    assert tax.amount == Money(28, "USD")  # three lines rounded by themselves would make 27
    [back] = taxes([rate("8.875")], usd(-105, -105, -105), "USD")
    assert back.amount == Money(-28, "USD")


def test_a_tax_inside_the_price_leaves_the_gross_unchanged() -> None:
    [tax] = taxes([rate("19", inclusive=True)], usd(11900), "USD")
    assert (tax.base, tax.amount) == (Money(10000, "USD"), Money(1900, "USD"))


@given(st.lists(st.tuples(percents, st.booleans()), min_size=1, max_size=4), lines_of_money)
def test_net_and_contained_taxes_add_up_to_the_gross(rates: list[tuple[Decimal, bool]], lines: list[Money]) -> None:
    made = taxes([TaxRate(code="t", percent=p, inclusive=inside) for p, inside in rates], lines, "USD")
    contained = sum((each.amount for each in made if each.rate.inclusive), Money.zero("USD"))
    assert made[0].base + contained == sum(lines, Money.zero("USD"))


def test_a_compound_tax_is_levied_on_the_taxes_before_it() -> None:
    made = taxes([rate("5"), rate("9.5", compound=True)], usd(10000), "USD")
    assert [each.amount.minor for each in made] == [500, 998]


def test_lines_with_the_same_rates_are_taxed_as_one_sum() -> None:
    reduced, full = (rate("5"),), (rate("21"),)
    lines = [TaxedLine(Money(minor, "USD"), rates) for minor, rates in ((997, full), (50, reduced), (997, full))]
    made = tax_lines(lines)
    assert [each.amount.minor for each in made.amounts] == [419, 3]
    assert [each.minor for each in made.per_line] == [210, 3, 209]
    apart = tax_lines(lines, rounding=TaxRounding.PER_LINE)
    assert [each.minor for each in apart.per_line] == [209, 3, 209]
    assert (made.total, apart.total) == (Money(422, "USD"), Money(421, "USD"))


@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.sampled_from(["5", "21"])), min_size=1, max_size=8))
def test_the_taxes_of_lines_add_up(lines: list[tuple[int, str]]) -> None:
    made = tax_lines([TaxedLine(Money(minor, "USD"), (rate(percent),)) for minor, percent in lines])
    assert made.total == sum((each.amount for each in made.amounts), Money.zero("USD"))


def test_the_nearest_known_jurisdiction_levies_the_tax() -> None:
    table = {"US-CA": (rate("7.25"),), "US": (), "": (rate("20"),)}
    assert rates_for("US-CA-SF", table) == table["US-CA"]
    assert rates_for("US-NV", table) == ()
    assert rates_for("DE", table) == table[""]
    assert rates_for("DE", {}) == ()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (rate("101"), "percent"),
        (rate("-1"), "percent"),
        (rate("NaN"), "percent"),
        (rate("5", code=""), "code"),
        (rate("5", compound=True, inclusive=True), "compound"),
    ],
)
def test_a_tax_that_cannot_be_charged_is_refused(wrong: TaxRate, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_rate(wrong, "taxes[1]")
    assert refused.value.field == f"taxes[1].{field}"


@given(positive_lines, percents, percents)
def test_credit_notes_over_all_lines_add_up_to_the_invoice(lines: list[Money], off: Decimal, percent: Decimal) -> None:
    [discount, *_] = [each.total for each in discounts([Coupon(code="c", percent=off)], lines)] or [Money.zero("USD")]
    net = sum(lines, Money.zero("USD")) - discount
    tax = taxes([TaxRate(code="t", percent=percent)], [net], "USD")[0].amount
    notes = [credited(line) for line in creditable(lines, discount, tax)]
    assert sum((note.total for note in notes), Money.zero("USD")) == net + tax


@given(st.integers(2, 10**6), st.integers(1, 10**6))
def test_parts_of_a_line_add_up_to_it(net: int, first: int) -> None:
    [line] = creditable(usd(net), Money(net // 7, "USD"), Money(net // 5, "USD"))
    part = credited(line, Money(min(first, net - 1), "USD"))
    rest = credited(line, before=part.net)
    assert (part.net + rest.net, part.discount + rest.discount, part.tax + rest.tax) == (
        line.net,
        line.discount,
        line.tax,
    )


def test_no_more_is_credited_than_was_billed() -> None:
    [line] = creditable(usd(1000), Money(0, "USD"), Money(0, "USD"))
    for wrong in (Money(1001, "USD"), Money(0, "USD"), Money(-1, "USD")):
        with pytest.raises(Rejected):
            credited(line, wrong)
    with pytest.raises(Rejected):
        creditable(usd(0), Money(0, "USD"), Money(0, "USD"))


def test_a_refund_returns_only_what_was_really_paid() -> None:
    made = refund(Money(10000, "USD"), Money(2000, "USD"))
    assert (made.to_balance, made.refunded) == (Money(2000, "USD"), Money(8000, "USD"))
    note = unused_credit(Money(20000, "USD"), Fraction(29, 30), Fraction(25))
    assert (note.net, note.tax, note.total) == (Money(19333, "USD"), Money(4833, "USD"), Money(24166, "USD"))


PINNED = FxRate(base="USD", quote="JPY", rate=D("151.235"), source="ECB", at=datetime(2026, 1, 2, tzinfo=UTC))


def test_a_pinned_rate_converts_and_rounds_once() -> None:
    assert convert(Money(1000, "USD"), PINNED) == Money(1512, "JPY")
    with pytest.raises(CurrencyMismatch):
        convert(Money(1000, "EUR"), PINNED)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate": D(0)}, "rate"),
        ({"rate": D("NaN")}, "rate"),
        ({"base": "XXQ"}, "base"),
        ({"quote": ""}, "quote"),
        ({"source": ""}, "source"),
        ({"at": datetime(2026, 1, 2)}, "at"),  # noqa: DTZ001  # the mistake
    ],
)
def test_a_rate_that_cannot_convert_is_refused(changes: dict[str, object], field: str) -> None:
    check_fx(PINNED, "fx")
    with pytest.raises(Rejected) as refused:
        check_fx(replace(PINNED, **changes), "fx")
    assert refused.value.field == f"fx.{field}"
