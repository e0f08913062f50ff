"""Customers: how they pay, which coupons they hold, what credit they have."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from billing.customer import (
    AttachPaymentMethod,
    CouponRedeemed,
    CreateCustomer,
    CustomerCreated,
    PaymentMethod,
    PaymentMethodAttached,
    Provider,
    RedeemCoupon,
)
from billing.discount import Coupon
from billing.ids import CustomerId
from billing.money import Money
from tests.billing.tenants import (
    ACTIVATE,
    BOOK,
    C1,
    CARD,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    OTHER_CARD,
    REGISTER,
    SUBSCRIBE,
    TENTH_OFF,
    Life,
    a_subscriber,
    a_tenant,
    close,
    issue,
    line,
    until,
)

REDEEM = RedeemCoupon(customer_id=C1, coupon="TENTH")


def test_a_customer_is_created_with_a_way_to_pay() -> None:
    Life().given(REGISTER).when(CREATE_C1).then(CustomerCreated(customer_id=C1, payment_method=CARD))


def test_creating_the_same_customer_again_changes_nothing() -> None:
    a_tenant().when(CREATE_C1).then()


def test_a_customer_of_that_id_with_another_card_is_refused() -> None:
    a_tenant().when(replace(CREATE_C1, payment_method=OTHER_CARD)).then_rejected("customer_exists")


@pytest.mark.parametrize("name", ["", "a" * 129, "a\nb", "\x00"])
def test_an_id_that_cannot_be_shown_is_refused(name: str) -> None:
    a_tenant().when(CreateCustomer(customer_id=CustomerId(name))).then_rejected("invalid_id", "customer_id")


def test_a_card_needs_its_token() -> None:
    method = PaymentMethod(provider=Provider.STRIPE)
    a_tenant().when(CreateCustomer(customer_id=CustomerId("c2"), payment_method=method)).then_rejected(
        "missing", "payment_method.token"
    )


def test_another_card_can_be_attached() -> None:
    a_tenant().when(AttachPaymentMethod(customer_id=C1, payment_method=OTHER_CARD)).then(
        PaymentMethodAttached(customer_id=C1, payment_method=OTHER_CARD)
    )


def test_attaching_the_same_card_changes_nothing() -> None:
    a_tenant().when(AttachPaymentMethod(customer_id=C1, payment_method=CARD)).then()


def test_a_card_needs_a_customer() -> None:
    attach = AttachPaymentMethod(customer_id=CustomerId("c9"), payment_method=CARD)
    a_tenant().when(attach).then_rejected("unknown_customer", "customer_id")


def test_a_coupon_is_redeemed_as_the_price_book_has_it() -> None:
    a_tenant().when(REDEEM).then(CouponRedeemed(customer_id=C1, coupon=TENTH_OFF, redeemed_at=JANUARY))


def test_redeeming_a_coupon_twice_gives_it_once() -> None:
    a_tenant().given(REDEEM).when(REDEEM).then()


def test_an_unknown_coupon_is_refused() -> None:
    a_tenant().when(RedeemCoupon(customer_id=C1, coupon="HALF")).then_rejected("unknown_coupon", "coupon")


def a_payer_with(coupon: Coupon) -> Life:
    book = replace(BOOK, coupons=(coupon,))
    redeem = RedeemCoupon(customer_id=C1, coupon=coupon.code)
    return Life().given(REGISTER, book, CREATE_C1, redeem, SUBSCRIBE, ACTIVATE)


def next_month(life: Life, end: object) -> None:
    life.given(until(end), close(end))  # type: ignore[arg-type]


def test_a_coupon_for_one_invoice_discounts_one() -> None:
    life = a_payer_with(TENTH_OFF)
    life.given(issue(life, line("31.00")))
    assert life.last_invoice.discount == Money(310, "USD")
    next_month(life, FEBRUARY)
    life.given(issue(life, line("31.00")))
    assert life.last_invoice.discount == Money(0, "USD")


def test_an_invoice_that_got_no_discount_does_not_use_up_a_coupon() -> None:
    life = a_payer_with(TENTH_OFF)
    life.given(issue(life, line("0.00")))
    next_month(life, FEBRUARY)
    life.given(issue(life, line("31.00")))
    assert life.last_invoice.discount == Money(310, "USD")


def test_a_fixed_amount_that_carries_over_is_given_once_in_all() -> None:
    life = a_payer_with(Coupon(code="FIFTY", amount=Decimal(50), currency="USD", carry_over=True))
    taken = []
    for end in (FEBRUARY, MARCH, None):
        life.given(issue(life, line("31.00")))
        taken.append(life.last_invoice.discount.minor)
        if end is not None:
            next_month(life, end)
    assert taken == [3100, 1900, 0]


def test_a_fixed_amount_that_does_not_carry_over_is_given_on_each_invoice() -> None:
    life = a_payer_with(Coupon(code="FIVE", amount=Decimal(5), currency="USD", invoices=2))
    taken = []
    for end in (FEBRUARY, MARCH, None):
        life.given(issue(life, line("31.00")))
        taken.append(life.last_invoice.discount.minor)
        if end is not None:
            next_month(life, end)
    assert taken == [500, 500, 0]


def test_a_negative_invoice_becomes_credit_that_the_next_one_uses_up() -> None:
    life = a_subscriber()
    life.given(issue(life, line("-20.00")))
    assert life.names[-3:] == ["InvoiceFinalized", "CustomerCredited", "InvoicePaid"]
    next_month(life, FEBRUARY)
    life.given(issue(life, line("15.00")))
    assert (life.last_invoice.credit_applied, life.last_invoice.amount_due) == (Money(1500, "USD"), Money(0, "USD"))
    next_month(life, MARCH)
    life.given(issue(life, line("15.00")))
    assert (life.last_invoice.credit_applied, life.last_invoice.amount_due) == (Money(500, "USD"), Money(1000, "USD"))
