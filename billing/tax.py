"""Tax (interim)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRate:
    """A tax rate."""

    code: str
    """Name of the rate."""
    percent: Decimal
    """0 to 100."""
    inclusive: bool = False
    """Whether prices contain it."""
    jurisdiction: str = ""
    """Who levies it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxAmount:
    """Tax of one group."""

    rate: TaxRate
    """The rate."""
    base: Money
    """What is taxed."""
    amount: Money
    """The tax, rounded once."""


def taxes(rates: Sequence[TaxRate], net: Sequence[Money], currency: str) -> tuple[TaxAmount, ...]:
    base = sum(net, Money.zero(currency))
    return tuple(
        TaxAmount(rate=r, base=base, amount=Money.from_major(Fraction(base.major()) * Fraction(r.percent) / 100, currency))
        for r in rates
    )
