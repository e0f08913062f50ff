"""Prepaid credit as arithmetic: which credits pay for what, and in which order.

    priority (low first), then what expires first, then granted before purchased, then the oldest, then by id

A credit that expires at a period's end still pays that period's invoice (SEMANTICS 28).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.money import Money

FIRST = datetime.min.replace(tzinfo=UTC)
NEVER = datetime.max.replace(tzinfo=UTC)


class CreditKind(StrEnum):
    """Where a credit comes from."""

    GRANTED = "granted"
    PURCHASED = "purchased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """An amount that a customer can still spend."""

    id: str
    """Unique in the wallet."""
    left: Money
    """What is left of it."""
    priority: int = 50
    """Lower numbers are spent first."""
    kind: CreditKind = CreditKind.GRANTED
    """Granted credit is spent before purchased credit."""
    created_at: datetime = FIRST
    """When it was given or bought (UTC)."""
    expires_at: datetime | None = None
    """From when it can no longer be spent (UTC); null for never."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What paying an amount did to a customer's credits."""

    consumed: tuple[tuple[str, Money], ...]
    """Credit and amount, in the order of spending; those that paid nothing are left out."""
    credits: tuple[Credit, ...]
    """All credits, with what is left of them."""
    unpaid: Money
    """What no credit paid."""


def burn_order(credits: Iterable[Credit]) -> list[Credit]:
    """The order in which credits are spent."""
    return sorted(
        credits,
        key=lambda each: (
            each.priority,
            each.expires_at or NEVER,
            each.kind is CreditKind.PURCHASED,
            each.created_at,
            each.id,
        ),
    )


def spend(credits: Sequence[Credit], amount: Money, *, covers_until: datetime | None = None) -> Spending:
    """Pay `amount` from `credits` of its currency.

    `covers_until` is the end of the period that is paid for: a credit counts unless it expired before (SEMANTICS 28).
    """
    consumed: list[tuple[str, Money]] = []
    taken: dict[str, Money] = {}
    unpaid = amount
    for credit in burn_order(credits):
        expired = covers_until is not None and credit.expires_at is not None and credit.expires_at < covers_until
        if credit.left.currency != amount.currency or expired or unpaid.minor <= 0:
            continue
        part = min(credit.left, unpaid)
        if part.minor > 0:
            consumed.append((credit.id, part))
            taken[credit.id] = part
            unpaid -= part
    left = tuple(replace(each, left=each.left - taken[each.id]) if each.id in taken else each for each in credits)
    return Spending(tuple(consumed), left, unpaid)


def top_up(units: Decimal, rate: Decimal, currency: str) -> Money:
    """What `units` of credit are worth at `rate` major units each, rounded once."""
    return Money.from_major(Fraction(units) * Fraction(rate), currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """A balance that pays invoices of one currency, or only some of their lines."""

    id: str
    """Unique for the customer."""
    balance: Money
    """What it holds."""
    priority: int = 50
    """Lower numbers pay first."""
    limited_to: tuple[str, ...] = ()
    """Kinds of lines that it pays; empty for all."""


def pay_from_wallets(wallets: Sequence[Wallet], lines: Sequence[tuple[str, Money]]) -> Mapping[str, Money]:
    """What each of `wallets` (oldest first) pays of the lines, given as kind and amount with tax.

    By priority; a wallet pays the lines that it may in their order. Those that pay nothing are left out.
    """
    open_lines = [amount for _, amount in lines]
    paid: dict[str, Money] = {}
    for wallet in sorted(wallets, key=lambda each: each.priority):
        left = wallet.balance
        for i, (kind, amount) in enumerate(lines):
            if amount.currency != left.currency or (wallet.limited_to and kind not in wallet.limited_to):
                continue
            part = max(min(left, open_lines[i]), Money.zero(left.currency))
            left -= part
            open_lines[i] -= part
        if left != wallet.balance:
            paid[wallet.id] = wallet.balance - left
    return paid
