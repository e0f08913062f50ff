"""Granted credit: spent in a stated order while it lasts, written off when no invoice can use it any more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.credit import CreditKind
from billing.ids import CustomerId
from billing.invoice import InvoiceFinalized
from billing.ledger import Account, imbalance
from billing.money import Money
from billing.prepaid import CreditExpired, CreditGranted, ExpireCredit, GrantCredit
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
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
    until,
)

BUDGET = timedelta(days=1)
NOBODY = CustomerId("nobody")


def usd(minor: int) -> Money:
    return Money(minor, "USD")


def grant(id: str, minor: int, **more: Any) -> GrantCredit:
    return GrantCredit(customer_id=C1, grant_id=id, amount=usd(minor), **more)


def a_debtor(*grants: GrantCredit) -> Life:
    """A subscriber with credit, whose first fees were invoiced before."""
    life = a_subscriber()
    life.given(issue(life, line("31.00")))
    return life.given(*grants)


def january(life: Life, amount: str) -> Life:
    life.given(until(FEBRUARY), close(FEBRUARY))
    return life.given(issue(life, line(amount)))


def left(life: Life) -> dict[str, int]:
    return {each.fact.grant_id: each.left.minor for each in life.state.customers[C1].grants}  # type: ignore[union-attr]


def test_granting_credit_says_how_it_is_spent_and_owes_it() -> None:
    granted = a_tenant().when(grant("g", 500, priority=3, expires_at=MARCH, reason="welcome")).event
    assert (granted.amount, granted.priority, granted.expires_at) == (usd(500), 3, MARCH)
    assert [(each.account, each.amount.minor) for each in granted.postings] == [
        (Account.CUSTOMER_CREDIT, -500),
        (Account.PROMOTION, 500),
    ]


def test_credit_that_was_paid_for_is_cash() -> None:
    granted = a_tenant().when(grant("g", 500, kind=CreditKind.PURCHASED)).event
    assert {each.account: each.amount.minor for each in granted.postings}[Account.CASH] == 500


def test_the_same_grant_is_given_once() -> None:
    life = a_tenant().given(grant("g", 500))
    life.when(grant("g", 500)).then()
    life.when(grant("g", 501)).then_rejected("grant_exists", "grant_id")


def test_a_grant_that_was_used_up_is_not_given_again() -> None:
    life = january(a_debtor(grant("g", 500)), "100.00")
    assert left(life) == {"g": 0}
    life.when(grant("g", 500)).then()


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        (grant("g", 0), "out_of_range", "amount"),
        (grant("g", -1), "out_of_range", "amount"),
        (replace(grant("g", 1), amount=Money(1, "XXQ")), "unknown_currency", "amount.currency"),
        (grant("", 1), "invalid_id", "grant_id"),
        (grant("g", 1, priority=-1), "out_of_range", "priority"),
        (grant("g", 1, priority=1001), "out_of_range", "priority"),
        (grant("g", 1, expires_at=JANUARY), "out_of_range", "expires_at"),
        (grant("g", 1, expires_at=datetime(2026, 5, 1)), "invalid_time", "expires_at"),  # noqa: DTZ001  # is refused
        (replace(grant("g", 1), customer_id=NOBODY), "unknown_customer", "customer_id"),
    ],
)
def test_what_cannot_be_spent_is_refused(wrong: GrantCredit, code: str, field: str) -> None:
    a_tenant().when(wrong).then_rejected(code, field)


def test_grants_pay_by_priority_then_expiry_and_own_money_last() -> None:
    life = a_debtor(
        grant("paid", 1000, kind=CreditKind.PURCHASED),
        grant("later", 1000, expires_at=datetime.fromisoformat("2026-06-01T00:00:00Z")),
        grant("soon", 1000, expires_at=MARCH),
        grant("first", 1000, priority=1),
    )
    made = january(life, "35.00").last_invoice
    assert [(each.grant_id, each.amount.minor) for each in made.credits] == [
        ("first", 1000),
        ("soon", 1000),
        ("later", 1000),
        ("paid", 500),
    ]
    assert (made.credit_applied.minor, made.amount_due.minor) == (3500, 0)


def test_credit_of_a_negative_invoice_is_spent_among_them() -> None:
    life = january(a_debtor(), "-10.00")
    life.given(grant("gift", 400), grant("last", 400, priority=60), until(MARCH), close(MARCH))
    made = life.given(issue(life, line("6.00"))).last_invoice
    assert [(each.grant_id, each.amount.minor) for each in made.credits] == [("gift", 400)]
    life.given(until(APRIL), close(APRIL))
    made = life.given(issue(life, line("9.00"))).last_invoice
    assert [(each.grant_id, each.amount.minor) for each in made.credits] == [("last", 100)]
    assert made.credit_applied.minor == 900
    assert life.state.customers[C1].unused() == {"USD": usd(300)}  # type: ignore[union-attr]


def test_a_grant_in_another_currency_pays_nothing() -> None:
    life = a_debtor(replace(grant("g", 500), amount=Money(500, "EUR")))
    assert january(life, "10.00").last_invoice.credits == ()


def test_a_grant_that_expires_at_the_end_of_a_period_pays_for_it_and_breaks_then() -> None:
    life = january(a_debtor(grant("g", 5000, expires_at=FEBRUARY)), "20.00")
    assert [type(each).__name__ for each in life.decided] == ["InvoiceFinalized", "InvoicePaid", "CreditExpired"]
    broken = life.last(CreditExpired)
    assert (broken.amount, broken.expired_at) == (usd(3000), FEBRUARY)
    assert [(each.account, each.amount.minor) for each in broken.postings] == [
        (Account.CUSTOMER_CREDIT, 3000),
        (Account.PROMOTION, -3000),
    ]
    assert left(life) == {"g": 0}


def test_a_grant_that_expired_within_the_period_pays_nothing_of_it() -> None:
    life = january(a_debtor(grant("g", 5000, expires_at=FEBRUARY - BUDGET)), "20.00")
    assert life.last_invoice.credit_applied.minor == 0
    assert life.last(CreditExpired).amount == usd(5000)


def test_what_was_paid_for_breaks_into_income() -> None:
    life = january(a_debtor(grant("g", 5000, kind=CreditKind.PURCHASED, expires_at=FEBRUARY)), "20.00")
    assert {each.account: each.amount.minor for each in life.last(CreditExpired).postings}[Account.BREAKAGE] == -3000


def test_breakage_waits_for_the_invoices_that_the_grant_may_pay() -> None:
    expire = ExpireCredit(customer_id=C1, grant_id="g")
    life = a_debtor(grant("g", 5000, expires_at=FEBRUARY))
    life.when(expire).then_rejected("not_yet")
    life.given(until(FEBRUARY)).when(expire).then_rejected("awaiting_invoice")  # the period is still open
    life.given(close(FEBRUARY)).when(expire).then_rejected("awaiting_invoice")  # its invoice is not issued
    life.given(issue(life, line("10.00")))
    life.when(expire).then()  # it broke with that invoice


def test_breakage_may_be_asked_for_when_no_invoice_comes() -> None:
    life = a_tenant().given(grant("g", 5000, expires_at=FEBRUARY), until(FEBRUARY))
    life.when(ExpireCredit(customer_id=C1, grant_id="g")).then_names("CreditExpired")
    life.when(ExpireCredit(customer_id=C1, grant_id="g")).then()


def test_only_what_ends_and_is_known_can_expire() -> None:
    life = a_tenant().given(grant("g", 5000))
    life.when(ExpireCredit(customer_id=C1, grant_id="g")).then_rejected("not_yet")
    life.when(ExpireCredit(customer_id=C1, grant_id="h")).then_rejected("unknown_grant", "grant_id")
    life.when(ExpireCredit(customer_id=NOBODY, grant_id="g")).then_rejected("unknown_customer", "customer_id")


def test_a_subscription_that_is_to_start_keeps_the_grant_for_its_first_invoice() -> None:
    """The customer's start waits: its invoice is fixed at an instant that the grant still covers."""
    life = a_tenant().given(grant("g", 5000, expires_at=FEBRUARY), replace(SUBSCRIBE, starts_at=FEBRUARY - BUDGET))
    life.given(until(FEBRUARY)).when(ExpireCredit(customer_id=C1, grant_id="g")).then_rejected("awaiting_invoice")
    life.given(ACTIVATE)
    life.given(issue(life, line("1.00")))
    assert life.last_invoice.credit_applied.minor == 100


grants = st.builds(
    lambda minor, priority, kind, days: (minor, priority, kind, JANUARY + timedelta(days=days) if days else None),
    st.integers(1, 5000),
    st.integers(0, 100),
    st.sampled_from(CreditKind),
    st.sampled_from([0, 10, 31, 40, 59, 300]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(grants, max_size=5), st.lists(st.integers(-3000, 9000), min_size=1, max_size=3))
def test_every_cent_that_was_granted_is_spent_broken_or_left(
    granted: list[tuple[int, int, CreditKind, datetime | None]], amounts: list[int]
) -> None:
    life = a_debtor(
        *(
            grant(f"g{i}", minor, priority=priority, kind=kind, expires_at=expires_at)
            for i, (minor, priority, kind, expires_at) in enumerate(granted)
        )
    )
    for minor, end in zip(amounts, (FEBRUARY, MARCH, datetime.fromisoformat("2026-04-01T00:00:00Z")), strict=False):
        life.given(until(end), close(end))
        life.given(issue(life, line(str(usd(minor).major()))))
    total: Counter[str] = Counter()
    for each in life.envelopes:
        match each.event:
            case CreditGranted(grant_id=id, amount=amount):
                total[id] += amount.minor
            case CreditExpired(grant_id=id, amount=amount):
                total[id] -= amount.minor
            case InvoiceFinalized(credits=credits) as e:
                assert 0 <= e.credit_applied.minor <= max(e.total.minor, 0)
                assert e.amount_due.minor == max(e.total.minor, 0) - e.credit_applied.minor
                for used in credits:
                    assert used.amount.minor > 0
                    total[used.grant_id] -= used.amount.minor
        assert not imbalance(getattr(each.event, "postings", ()))
    assert left(life) == {f"g{i}": total[f"g{i}"] for i in range(len(granted))}
    assert all(minor >= 0 for minor in left(life).values())
    assert life.folded().customers == life.state.customers
