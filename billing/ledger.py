"""The ledger: balanced postings for every document that moves money.

A posting is a signed amount on an account: positive is a debit, negative a credit. The postings of one
event sum to zero per currency, always (promise 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from billing.money import Money


class Account(StrEnum):
    """The chart of accounts."""

    RECEIVABLE = "receivable"
    CASH = "cash"
    REVENUE = "revenue"
    DEFERRED_REVENUE = "deferred_revenue"
    TAX_PAYABLE = "tax_payable"
    CUSTOMER_CREDIT = "customer_credit"
    PROMOTION = "promotion"
    BREAKAGE = "breakage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One side of a journal entry."""

    account: Account = Account.RECEIVABLE
    """The account that is moved."""
    amount: Money
    """Positive for a debit, negative for a credit."""


def entry(*sides: tuple[Account, Money]) -> tuple[Posting, ...]:
    """The postings of one entry, one per account that moves, in the chart's order.

    Raises:
        AssertionError: the sides do not balance per currency; only a bug can build such an entry.
    """
    moved: dict[tuple[Account, str], int] = {}
    for account, amount in sides:
        key = (account, amount.currency)
        moved[key] = moved.get(key, 0) + amount.minor
    postings = tuple(
        Posting(account=account, amount=Money(minor, currency))
        for (account, currency), minor in sorted(
            moved.items(), key=lambda item: (list(Account).index(item[0][0]), item[0][1])
        )
        if minor
    )
    assert not imbalance(postings)
    return postings


def imbalance(postings: Iterable[Posting]) -> dict[str, int]:
    """What is left over per currency, in minor units; empty for balanced books."""
    sums: dict[str, int] = {}
    for posting in postings:
        sums[posting.amount.currency] = sums.get(posting.amount.currency, 0) + posting.amount.minor
    return {currency: minor for currency, minor in sums.items() if minor}
