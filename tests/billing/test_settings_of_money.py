"""What a tenant chooses about coupons and taxes, and where a customer is taxed: frozen with the run, then applied."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.customer import CreateCustomer, JurisdictionSet, RedeemCoupon, SetJurisdiction
from billing.discount import Coupon, CouponOrder, discounts, in_order
from billing.money import Money
from billing.tax import Jurisdiction, TaxRate, TaxRounding, charged_taxes, rates_of, taxes
from billing.tenant import ChangeTenantSettings, Policies, TenantSettingsChanged
from tests.billing.tenants import (
    BOOK,
    C1,
    CREATE_C1,
    FEBRUARY,
    MARCH,
    PRO,
    REGISTER,
    Life,
    a_subscriber,
    a_tenant,
    close,
    issue,
    line,
    taxed,
    until,
)

STATE = TaxRate(code="state", percent=Decimal(4))
SURCHARGE = TaxRate(code="surcharge", percent=Decimal("4.5"), compound=True)
NEW_YORK = Jurisdiction(code="US-NY", taxes=(STATE, SURCHARGE))
OREGON = Jurisdiction(code="US-OR")
TAXED = {"taxes": taxed("10"), "jurisdictions": (NEW_YORK, OREGON)}
OLDEST = Policies(coupon_order=CouponOrder.OLDEST_FIRST)
PER_LINE = Policies(tax_rounding=TaxRounding.PER_LINE)
FIVE_OFF = Coupon(code="FIVE", amount=Decimal("5.00"), currency="USD")
FIFTH_OFF = Coupon(code="FIFTH", percent=Decimal(20))

percents = st.decimals(0, 30, places=2)
amounts = st.lists(st.integers(-(10**6), 10**6).map(lambda minor: Money(minor, "USD")), min_size=1, max_size=8)


def closed(life: Life) -> Life:
    """Issue what waits, then close January with one fee of 100.00 and one of 10.10 twice."""
    life.given(issue(life, line("31.00")), until(FEBRUARY), close(FEBRUARY))
    return life.given(issue(life, line("100.00"), line("10.10"), line("10.10")))


@pytest.mark.parametrize(
    ("where", "expected"),
    [("US-NY-NYC", [("US-NY", 481), ("US-NY", 563)]), ("US-OR", []), ("", [("", 1202)]), ("CH", [("", 1202)])],
)
def test_a_customer_pays_the_taxes_of_its_jurisdiction(where: str, expected: list[tuple[str, int]]) -> None:
    life = a_subscriber(**TAXED).given(SetJurisdiction(customer_id=C1, jurisdiction=where))
    made = closed(life).last_invoice
    assert [(each.rate.jurisdiction, each.amount.minor) for each in made.taxes] == expected
    assert all(each.base.minor == 12020 for each in made.taxes)
    assert made.tax.minor == sum(minor for _, minor in expected)


def test_the_rates_are_those_of_when_the_run_was_fixed() -> None:
    life = a_subscriber(**TAXED).given(SetJurisdiction(customer_id=C1, jurisdiction="US-OR"))
    life.given(issue(life, line("31.00")), until(FEBRUARY), close(FEBRUARY))
    life.given(SetJurisdiction(customer_id=C1, jurisdiction="US-NY"), ChangeTenantSettings(taxes=taxed("99")))
    life.given(issue(life, line("100.00")))
    assert life.last_invoice.tax.minor == 0


def test_a_jurisdiction_is_set_once_and_can_be_taken_back() -> None:
    life = a_tenant(**TAXED).given(SetJurisdiction(customer_id=C1, jurisdiction="US-NY"))
    life.when(SetJurisdiction(customer_id=C1, jurisdiction="US-NY")).then()
    life.when(SetJurisdiction(customer_id=C1, jurisdiction="")).then(JurisdictionSet(customer_id=C1, jurisdiction=""))


def test_a_customer_may_be_created_where_it_is_taxed() -> None:
    there = replace(CREATE_C1, jurisdiction="DE")
    life = Life().given(REGISTER, BOOK, there)
    life.when(there).then()
    life.when(CREATE_C1).then_rejected("customer_exists")


@pytest.mark.parametrize("where", ["us-ny", "US NY", "-", "US-", "Zürich", "X" * 21, "A-B-C-D-E-F"])
def test_what_is_no_jurisdiction_is_refused(where: str) -> None:
    life = a_tenant()
    life.when(SetJurisdiction(customer_id=C1, jurisdiction=where)).then_rejected("invalid_jurisdiction", "jurisdiction")
    made = CreateCustomer(customer_id=C1, jurisdiction=where)
    Life().given(REGISTER).when(made).then_rejected("invalid_jurisdiction", "jurisdiction")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"jurisdictions": (NEW_YORK, NEW_YORK)}, "duplicate", "jurisdictions[1].code"),
        ({"jurisdictions": (replace(NEW_YORK, code="ny"),)}, "invalid_jurisdiction", "jurisdictions[0].code"),
        (
            {"jurisdictions": (OREGON, replace(NEW_YORK, taxes=(replace(STATE, percent=Decimal(101)),)))},
            "out_of_range",
            "jurisdictions[1].taxes[0].percent",
        ),
    ],
)
def test_a_table_of_taxes_that_cannot_be_charged_is_refused(change: dict[str, Any], code: str, field: str) -> None:
    Life().when(replace(REGISTER, **change)).then_rejected(code, field)
    Life().given(REGISTER).when(ChangeTenantSettings(**change)).then_rejected(code, field)


def test_coupons_apply_by_age_if_the_tenant_says_so() -> None:
    book = replace(BOOK, coupons=(FIVE_OFF, FIFTH_OFF))
    for policies, expected in ((Policies(), [2404, 500]), (OLDEST, [500, 2304])):
        life = a_subscriber(policies=policies).given(book)
        life.given(*(RedeemCoupon(customer_id=C1, coupon=code) for code in ("FIVE", "FIFTH")))
        assert [each.amount.minor for each in closed(life).last_invoice.discounts] == expected


def test_tax_is_rounded_on_each_line_if_the_tenant_says_so() -> None:
    for policies, expected in ((Policies(), 601), (PER_LINE, 602)):
        made = closed(a_subscriber(taxes=taxed("5"), policies=policies)).last_invoice
        assert (made.tax.minor, made.taxes[0].base.minor) == (expected, 12020)


def test_settings_change_for_the_next_run_and_stay_on_the_fixed_one() -> None:
    life = a_subscriber(taxes=taxed("5"))
    life.given(issue(life, line("31.00")), until(FEBRUARY), close(FEBRUARY))
    changed = ChangeTenantSettings(taxes=taxed("5"), policies=PER_LINE)
    life.when(changed).then(TenantSettingsChanged(taxes=taxed("5"), policies=PER_LINE)).when(changed).then()
    life.given(issue(life, line("10.10"), line("10.10")))
    assert life.last_invoice.tax.minor == 101
    life.given(until(MARCH), close(MARCH))
    life.given(issue(life, line("10.10"), line("10.10")))
    assert life.last_invoice.tax.minor == 102
    assert life.folded().tenant == life.state.tenant


def test_registering_with_other_taxes_says_that_they_can_be_changed() -> None:
    Life().given(REGISTER).when(replace(REGISTER, taxes=taxed("5"))).then_rejected("tenant_settings_differ")
    Life().given(REGISTER).when(replace(REGISTER, taxes=taxed("5"), zone="Asia/Tokyo")).then_rejected("tenant_exists")


def test_a_coupon_for_a_plan_counts_on_its_lines_only() -> None:
    coupon = Coupon(code="HALF", percent=Decimal(50), plans=("pro",))
    made = discounts([coupon], [Money(100, "USD"), Money(100, "USD")], ["a", "a"], plans=["pro", "basic"])
    assert [each.amounts for each in made] == [(Money(50, "USD"), Money(0, "USD"))]


def test_a_coupon_for_a_plan_comes_before_those_for_all() -> None:
    half = Coupon(code="HALF", percent=Decimal(50), plans=("pro",))
    assert in_order([FIVE_OFF, FIFTH_OFF, half]) == [half, FIFTH_OFF, FIVE_OFF]
    assert in_order([FIVE_OFF, FIFTH_OFF, half], CouponOrder.OLDEST_FIRST) == [half, FIVE_OFF, FIFTH_OFF]


def test_a_coupon_for_a_plan_that_is_not_sold_is_refused() -> None:
    book = replace(BOOK, plans=(PRO,), coupons=(replace(FIFTH_OFF, plans=("pro", "gone")),))
    Life().given(REGISTER).when(book).then_rejected("unknown_plan", "coupons[0].plans[1]")


coupons = st.lists(
    st.builds(
        Coupon,
        code=st.uuids().map(str),
        percent=st.decimals(Decimal("0.01"), 100, places=2),
        charges=st.sampled_from([(), ("a",), ("b",)]),
        plans=st.sampled_from([(), ("p",), ("q",)]),
    )
    | st.builds(
        Coupon,
        code=st.uuids().map(str),
        amount=st.decimals(Decimal("0.01"), 9999, places=2),
        currency=st.just("USD"),
        plans=st.sampled_from([(), ("p",), ("q",)]),
    ),
    max_size=5,
)


@given(coupons, amounts, st.sampled_from(CouponOrder), st.data())
def test_no_order_and_no_scope_takes_a_line_below_zero(
    given_coupons: list[Coupon], lines: list[Money], order: CouponOrder, data: st.DataObject
) -> None:
    charges = [data.draw(st.sampled_from("abc")) for _ in lines]
    plans = [data.draw(st.sampled_from("pqr")) for _ in lines]
    made = discounts(given_coupons, lines, charges, plans=plans, order=order)
    for index, amount in enumerate(lines):
        off = sum(each.amounts[index].minor for each in made)
        assert 0 <= off <= max(amount.minor, 0)
        for each in made:
            assert each.amounts[index].minor == 0 or each.coupon.takes(charges[index], plans[index])


@given(st.lists(st.tuples(percents, st.booleans()), min_size=1, max_size=4), amounts, st.sampled_from(TaxRounding))
def test_the_base_of_a_tax_is_the_net_and_its_amount_within_half_a_cent_a_line(
    rates: list[tuple[Decimal, bool]], net: list[Money], rounding: TaxRounding
) -> None:
    exclusive = [TaxRate(code=f"t{i}", percent=percent, compound=over) for i, (percent, over) in enumerate(rates)]
    made = charged_taxes(exclusive, net, "USD", rounding)
    assert [each.rate for each in made] == exclusive
    assert {each.base for each in made} == {sum(net, Money.zero("USD"))}
    once = taxes(exclusive, net, "USD")
    for one, other in zip(made, once, strict=True):
        assert abs(one.amount.minor - other.amount.minor) <= (len(net) + 1) / 2


@given(percents, st.lists(st.integers(0, 10**6).map(lambda minor: Money(minor, "USD")), min_size=1, max_size=8))
def test_prices_with_tax_inside_keep_their_gross_line_by_line(percent: Decimal, gross: list[Money]) -> None:
    contained = [TaxRate(code="vat", percent=percent, inclusive=True)]
    (tax,) = charged_taxes(contained, gross, "USD", TaxRounding.PER_LINE)
    assert tax.base + tax.amount == sum(gross, Money.zero("USD"))


def test_rates_without_a_name_are_those_of_the_jurisdiction_that_has_them() -> None:
    own = replace(STATE, jurisdiction="New York State")
    made = rates_of("US-NY-NYC", [replace(NEW_YORK, taxes=(own, SURCHARGE))], taxed("10"))
    assert [each.jurisdiction for each in made] == ["New York State", "US-NY"]
