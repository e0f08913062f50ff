"""Issuing: number, discounts, tax, credit, what is due, and balanced postings."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.customer import RedeemCoupon
from billing.ids import InvoiceId
from billing.invoice import InvoiceFinalized, InvoicePaid, IssueInvoice
from billing.invoicing import LineKind
from billing.ledger import Account, Posting, entry, imbalance
from billing.money import Money
from billing.payment import RecordManualPayment
from billing.tenant import Policies
from tests.billing.tenants import (
    ACTIVATE,
    C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    SUBSCRIBE,
    Life,
    a_subscriber,
    a_tenant,
    close,
    issue,
    line,
    taxed,
    until,
)


def usd(amount: str) -> Money:
    return Money.from_major(Decimal(amount), "USD")


def postings(*sides: tuple[Account, str]) -> tuple[Posting, ...]:
    return tuple(Posting(account=account, amount=usd(amount)) for account, amount in sides)


def test_an_invoice_to_be_paid_is_finalized_and_due() -> None:
    life = a_subscriber()
    life.when(issue(life, line("31.00"))).then_names("InvoiceFinalized", "PaymentDue")
    invoice, due = life.decided
    assert (invoice.number, invoice.serial, invoice.seller) == ("000001", 1, "Harbour Air")
    assert (invoice.subtotal, invoice.total, invoice.amount_due) == (usd("31.00"), usd("31.00"), usd("31.00"))
    assert (due.invoice_id, due.customer_id, due.amount, due.attempt) == (invoice.invoice_id, C1, usd("31.00"), 1)


def test_an_invoice_is_issued_once() -> None:
    life = a_subscriber()
    command = issue(life, line("31.00"))
    life.given(command).when(command).then()


def test_an_invoice_that_no_run_waits_for_is_refused() -> None:
    life = a_subscriber()
    life.when(IssueInvoice(invoice_id=InvoiceId("inv_x"), lines=())).then_rejected("unknown_invoice", "invoice_id")


def test_a_line_in_another_currency_is_refused() -> None:
    life = a_subscriber()
    command = issue(life, line("31.00"), line("31.00", currency="EUR"))
    life.when(command).then_rejected("currency_mismatch", "lines[1].amount")


def test_numbers_have_no_gaps_though_issues_are_refused_in_between() -> None:
    life = a_subscriber(policies=Policies(number_prefix="HA-"))
    life.when(issue(life, line("1.00", currency="EUR")))
    life.given(issue(life, line("31.00")), until(FEBRUARY), close(FEBRUARY))
    life.given(issue(life, line("31.00")))
    numbers = [each.event.number for each in life.envelopes if isinstance(each.event, InvoiceFinalized)]
    assert numbers == ["HA-000001", "HA-000002"]


def test_payment_falls_due_by_the_sellers_terms() -> None:
    life = a_subscriber(policies=Policies(payment_terms_days=14))
    life.given(issue(life, line("31.00")))
    assert (life.last_invoice.issued_at, life.last_invoice.due_at) == (JANUARY, JANUARY + timedelta(days=14))


def test_nothing_to_pay_is_paid_without_asking_a_provider() -> None:
    life = a_subscriber()
    life.when(issue(life, line("0.00"))).then_names("InvoiceFinalized", "InvoicePaid")
    assert life.decided[1].amount == usd("0")
    assert life.decided[1].postings == ()


def test_tax_is_rounded_once_over_the_sum_of_the_lines() -> None:
    life = a_subscriber(taxes=taxed("10"))
    life.given(issue(life, *(line("0.05") for _ in range(3))))
    assert (life.last_invoice.subtotal, life.last_invoice.tax, life.last_invoice.total) == (
        usd("0.15"),
        usd("0.02"),
        usd("0.17"),
    )


def test_coupons_come_before_tax() -> None:
    life = a_tenant(taxes=taxed("10")).given(RedeemCoupon(customer_id=C1, coupon="TENTH"), SUBSCRIBE, ACTIVATE)
    life.given(issue(life, line("100.00")))
    invoice = life.last_invoice
    assert (invoice.discount, invoice.taxes[0].base, invoice.tax, invoice.total) == (
        usd("10.00"),
        usd("90.00"),
        usd("9.00"),
        usd("99.00"),
    )


def test_revenue_fees_in_advance_and_tax_are_kept_apart() -> None:
    life = a_subscriber(taxes=taxed("10"))
    life.given(issue(life, line("31.00"), line("9.00", "calls", LineKind.USAGE)))
    assert life.last_invoice.postings == postings(
        (Account.RECEIVABLE, "44.00"),
        (Account.REVENUE, "-9.00"),
        (Account.DEFERRED_REVENUE, "-31.00"),
        (Account.TAX_PAYABLE, "-4.00"),
    )


def test_tax_inside_the_prices_is_no_revenue() -> None:
    life = a_subscriber(taxes=taxed("10", inclusive=True))
    life.given(issue(life, line("33.00"), line("11.00", "calls", LineKind.USAGE)))
    invoice = life.last_invoice
    assert (invoice.total, invoice.tax) == (usd("44.00"), usd("0"))
    assert invoice.postings == postings(
        (Account.RECEIVABLE, "44.00"),
        (Account.REVENUE, "-10.00"),
        (Account.DEFERRED_REVENUE, "-30.00"),
        (Account.TAX_PAYABLE, "-4.00"),
    )


def test_credit_pays_before_the_provider_does_and_is_posted() -> None:
    life = a_subscriber()
    life.given(issue(life, line("-20.00")))
    assert life.last_invoice.postings == postings(
        (Account.DEFERRED_REVENUE, "20.00"), (Account.CUSTOMER_CREDIT, "-20.00")
    )
    life.given(until(FEBRUARY), close(FEBRUARY))
    life.given(issue(life, line("31.00")))
    assert life.last_invoice.postings == postings(
        (Account.RECEIVABLE, "11.00"), (Account.REVENUE, "-31.00"), (Account.CUSTOMER_CREDIT, "20.00")
    )


def test_a_fee_is_deferred_in_advance_and_earned_in_arrears() -> None:
    life = a_subscriber()
    life.given(issue(life, line("31.00")))
    assert life.last_invoice.postings == postings((Account.RECEIVABLE, "31.00"), (Account.DEFERRED_REVENUE, "-31.00"))
    life.given(until(FEBRUARY), close(FEBRUARY))
    life.given(issue(life, line("31.00")))  # January's, at its end
    assert life.last_invoice.postings == postings((Account.RECEIVABLE, "31.00"), (Account.REVENUE, "-31.00"))


def test_a_payment_settles_the_receivable() -> None:
    life = a_subscriber()
    life.given(issue(life, line("31.00")))
    invoice = life.last_invoice.invoice_id
    life.given(RecordManualPayment(invoice_id=invoice, reference="statement 7"))
    paid = life.last(InvoicePaid)
    assert (paid.amount, paid.postings) == (
        usd("31.00"),
        postings((Account.RECEIVABLE, "-31.00"), (Account.CASH, "31.00")),
    )


cents = st.integers(-100_000, 100_000)
kinds = st.sampled_from(list(LineKind))


@given(st.lists(st.tuples(cents, kinds), min_size=1, max_size=6), st.integers(0, 2500), st.booleans(), st.booleans())
def test_the_books_balance_whatever_is_billed(
    drawn: list[tuple[int, LineKind]], per_mille: int, inclusive: bool, discounted: bool
) -> None:
    rate = taxed(str(Decimal(per_mille) / 25), inclusive=inclusive)
    life = a_tenant(taxes=rate)
    if discounted:
        life.given(RedeemCoupon(customer_id=C1, coupon="TENTH"))
    life.given(SUBSCRIBE, ACTIVATE)
    life.given(issue(life, *(line(str(Decimal(minor) / 100), "base", kind) for minor, kind in drawn)))
    invoice = life.last_invoice
    assert imbalance(invoice.postings) == {}
    assert invoice.subtotal.minor == sum(minor for minor, _ in drawn)
    assert invoice.total.minor == invoice.subtotal.minor - invoice.discount.minor + invoice.tax.minor
    assert invoice.amount_due.minor == max(0, invoice.total.minor)
    assert invoice.discount.minor == sum(each.discount.minor for each in invoice.lines)
    owed = sum(each.amount.minor for each in invoice.postings if each.account is Account.RECEIVABLE)
    assert owed == invoice.amount_due.minor


def test_an_entry_that_does_not_balance_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        entry((Account.CASH, usd("1.00")), (Account.RECEIVABLE, usd("-0.99")))


def test_currencies_never_balance_each_other() -> None:
    assert imbalance(
        [
            Posting(account=Account.CASH, amount=usd("1.00")),
            Posting(account=Account.REVENUE, amount=Money(-100, "EUR")),
        ]
    ) == {"USD": 100, "EUR": -100}


def test_the_credit_of_an_ended_period_is_taken_from_deferred_revenue() -> None:
    life: Life = a_subscriber()
    life.given(issue(life, line("31.00")), until(MARCH), close(FEBRUARY))
    life.given(issue(life, line("-15.50", kind=LineKind.UNUSED_FEE)))
    assert life.last_invoice.postings == postings(
        (Account.DEFERRED_REVENUE, "15.50"), (Account.CUSTOMER_CREDIT, "-15.50")
    )
