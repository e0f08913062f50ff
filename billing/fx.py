"""Foreign exchange with a pinned rate: stored on the document as a decimal and never looked up again (SEMANTICS 6)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.errors import CurrencyMismatch, Rejected
from billing.money import Money, exponent


@dataclass(frozen=True, slots=True, kw_only=True)
class FxRate:
    """One unit of a currency in another, as a source stated it at an instant."""

    base: str
    """ISO 4217 code of the currency that is converted."""
    quote: str
    """ISO 4217 code of the currency it becomes."""
    rate: Decimal
    """Major units of `quote` for one major unit of `base`; above zero."""
    source: str
    """Who stated it, such as ECB."""
    at: datetime
    """For which instant (UTC)."""


def convert(amount: Money, pinned: FxRate) -> Money:
    """`amount` in the quoted currency, rounded once, half up.

    Raises:
        CurrencyMismatch: the rate is for another currency than that of `amount`.
    """
    if amount.currency != pinned.base:
        raise CurrencyMismatch(f"{amount.currency} by a rate for {pinned.base}")
    return Money.from_major(Fraction(amount.major()) * Fraction(pinned.rate), pinned.quote)


def check_rate(pinned: FxRate, path: str) -> None:
    """Refuse a rate that could not convert.

    Raises:
        Rejected: naming the field under `path`.
    """
    exponent(pinned.base, f"{path}.base")
    exponent(pinned.quote, f"{path}.quote")
    if not (pinned.rate.is_finite() and pinned.rate > 0):
        raise Rejected("out_of_range", f"{pinned.rate} is not above 0", field=f"{path}.rate")
    if not pinned.source:
        raise Rejected("missing", "a rate needs its source", field=f"{path}.source")
    if pinned.at.tzinfo is None:
        raise Rejected("invalid_time", "a time needs an offset, such as 2026-02-01T00:00:00Z", field=f"{path}.at")
