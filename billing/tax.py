"""Tax: per rate and jurisdiction, over the sum of the rounded, discounted lines, rounded once (SEMANTICS 4, 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.errors import Rejected
from billing.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRate:
    """A tax rate of a jurisdiction."""

    code: str
    """Name of the rate, unique in its jurisdiction."""
    percent: Decimal
    """Percent of the net amount, 0 to 100."""
    inclusive: bool = False
    """Whether prices contain it already."""
    jurisdiction: str = ""
    """Who levies it, such as US-NY; empty for one that needs no name."""
    compound: bool = False
    """Whether the taxes before it belong to its base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxAmount:
    """The tax of one rate on one invoice."""

    rate: TaxRate
    """The rate."""
    base: Money
    """Net amount that is taxed."""
    amount: Money
    """The tax, rounded once, half up."""


def taxes(rates: Sequence[TaxRate], net: Sequence[Money], currency: str) -> tuple[TaxAmount, ...]:
    """The tax of each of `rates` on the discounted lines `net`, in the order of `rates`.

    Prices that contain taxes are first freed of all of them at once, `net = gross * 100 / (100 + r)`, and the parts
    of the difference are allocated, so that net and taxes add up to the gross. A credit gives back its tax.
    """
    gross = sum(net, Money.zero(currency))
    shares = _shares(rates)
    inclusive = [share for rate, share in zip(rates, shares, strict=True) if rate.inclusive]
    base = Money.from_major(Fraction(gross.major()) / (1 + sum(inclusive, Fraction(0))), currency)
    contained = iter(_parts(gross - base, inclusive))
    return tuple(
        TaxAmount(
            rate=rate,
            base=base,
            amount=next(contained) if rate.inclusive else Money.from_major(Fraction(base.major()) * share, currency),
        )
        for rate, share in zip(rates, shares, strict=True)
    )


def check_rate(rate: TaxRate, path: str) -> None:
    """Refuse a tax rate that could not be charged.

    Raises:
        Rejected: naming the field under `path`.
    """
    if not rate.code:
        raise Rejected("missing", "a tax rate needs a code", field=f"{path}.code")
    if not (rate.percent.is_finite() and 0 <= rate.percent <= 100):
        raise Rejected("out_of_range", f"{rate.percent} % is no tax; allowed is 0 to 100", field=f"{path}.percent")
    if rate.compound and rate.inclusive:
        raise Rejected("unexpected", "a tax inside the price cannot be compound", field=f"{path}.compound")


def _shares(rates: Sequence[TaxRate]) -> list[Fraction]:
    """Each tax as an exact share of the net amount; a compound one is also levied on the taxes before it."""
    made: list[Fraction] = []
    for rate in rates:
        base = 1 + sum(made, Fraction(0)) if rate.compound else Fraction(1)
        made.append(base * Fraction(rate.percent) / 100)
    return made


def _parts(contained: Money, shares: Sequence[Fraction]) -> Sequence[Money]:
    if not any(shares):
        return [Money.zero(contained.currency) for _ in shares]
    return contained.allocate(shares)
