"""Tax: per rate and jurisdiction, over the sum of the rounded, discounted lines, rounded once (SEMANTICS 4, 23)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import floor

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


class TaxRounding(StrEnum):
    """Where tax is rounded."""

    PER_RATE = "per_rate"
    PER_LINE = "per_line"


@dataclass(frozen=True, slots=True)
class TaxedLine:
    """A discounted line and the taxes that are levied on it."""

    net: Money
    """What is taxed; with inclusive rates it contains their tax."""
    rates: tuple[TaxRate, ...]
    """Its rates: its own, or those of the customer's jurisdiction."""


@dataclass(frozen=True, slots=True)
class TaxedLines:
    """The taxes of an invoice whose lines have rates of their own."""

    amounts: tuple[TaxAmount, ...]
    """Per set of rates and rate, in the order in which they appear."""
    per_line: tuple[Money, ...]
    """Tax of each line; these add up to the taxes."""

    @property
    def total(self) -> Money:
        """All taxes."""
        return sum(self.per_line[1:], self.per_line[0])


def tax_lines(lines: Sequence[TaxedLine], *, rounding: TaxRounding = TaxRounding.PER_RATE) -> TaxedLines:
    """The taxes of lines with rates of their own: lines with the same rates are taxed as one sum.

    A line's part of a tax that is rounded once is allocated by largest remainder. A tenant may have each line rounded
    by itself instead, as some do that print tax on every line.
    """
    if rounding is TaxRounding.PER_LINE:
        each = [taxes(line.rates, [line.net], line.net.currency) for line in lines]
        parts = [_total(amounts, line.net.currency) for amounts, line in zip(each, lines, strict=True)]
        return TaxedLines(tuple(amount for amounts in each for amount in amounts), tuple(parts))
    per_line = [Money.zero(line.net.currency) for line in lines]
    made: list[TaxAmount] = []
    for rates in dict.fromkeys(line.rates for line in lines):
        members = [i for i, line in enumerate(lines) if line.rates == rates]
        nets = [lines[i].net for i in members]
        group = taxes(rates, nets, nets[0].currency)
        made += group
        for tax in group:
            for i, part in zip(members, _shared(tax.amount, nets), strict=True):
                per_line[i] += part
    return TaxedLines(tuple(made), tuple(per_line))


@dataclass(frozen=True, slots=True, kw_only=True)
class Jurisdiction:
    """Where a customer is taxed, and by which rates."""

    code: str
    """Such as `US-NY`; it holds for `US-NY-NYC`, too, unless that stands in the table itself."""
    taxes: tuple[TaxRate, ...] = ()
    """Its rates, in the order in which compound ones build on each other; none for exempt."""


def rates_of(
    customer: str, jurisdictions: Sequence[Jurisdiction], fallback: tuple[TaxRate, ...]
) -> tuple[TaxRate, ...]:
    """The rates of a customer's jurisdiction, each with the jurisdiction that has it; else those of the tenant."""
    table = {each.code: tuple(_named(rate, each.code) for rate in each.taxes) for each in jurisdictions}
    return rates_for(customer, {"": fallback, **table})


def _named(rate: TaxRate, jurisdiction: str) -> TaxRate:
    return rate if rate.jurisdiction else replace(rate, jurisdiction=jurisdiction)


def charged_taxes(
    rates: Sequence[TaxRate], net: Sequence[Money], currency: str, rounding: TaxRounding
) -> tuple[TaxAmount, ...]:
    """The tax of each of `rates` on an invoice: rounded once, or the sum of what each line was rounded to."""
    if rounding is TaxRounding.PER_RATE or not net:
        return taxes(rates, net, currency)
    per_line = [taxes(rates, [line], currency) for line in net]
    return tuple(
        TaxAmount(
            rate=column[0].rate,
            base=sum((each.base for each in column), Money.zero(currency)),
            amount=_total(column, currency),
        )
        for column in zip(*per_line, strict=True)
    )


def rates_for(jurisdiction: str, table: Mapping[str, tuple[TaxRate, ...]]) -> tuple[TaxRate, ...]:
    """The rates of the most specific jurisdiction that the table knows: `US-CA`, else `US`, else the fallback `""`."""
    while jurisdiction not in table and jurisdiction:
        jurisdiction = jurisdiction.rpartition("-")[0]
    return table.get(jurisdiction, ())


_JURISDICTION = re.compile(r"[A-Z0-9]{1,20}(-[A-Z0-9]{1,20}){0,4}\Z", re.ASCII)


def check_jurisdiction(code: str, path: str) -> None:
    """Refuse what is no code of a jurisdiction.

    Raises:
        Rejected: naming `path`.
    """
    if not _JURISDICTION.match(code):
        said = f"{code[:60]!r}: allowed are capital letters and digits, joined by '-', such as DE or US-NY"
        raise Rejected("invalid_jurisdiction", said, field=path)


def check_taxes(rates: Sequence[TaxRate], jurisdictions: Sequence[Jurisdiction]) -> None:
    """Refuse a table of taxes that could not be charged.

    Raises:
        Rejected: naming the field, such as `jurisdictions[2].taxes[0].percent`.
    """
    for index, rate in enumerate(rates):
        check_rate(rate, f"taxes[{index}]")
    for index, each in enumerate(jurisdictions):
        where = f"jurisdictions[{index}]"
        check_jurisdiction(each.code, f"{where}.code")
        if each.code in [one.code for one in jurisdictions[:index]]:
            raise Rejected("duplicate", f"{each.code!r} stands there twice", field=f"{where}.code")
        for place, rate in enumerate(each.taxes):
            check_rate(rate, f"{where}.taxes[{place}]")


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


def _total(amounts: Sequence[TaxAmount], currency: str) -> Money:
    return sum((each.amount for each in amounts), Money.zero(currency))


def _shared(amount: Money, nets: Sequence[Money]) -> Sequence[Money]:
    """`amount` allocated over lines, credits among them, so that a credit takes its tax back."""
    weights = [abs(net.minor) for net in nets]
    mixed = any(net.minor < 0 for net in nets) and any(net.minor > 0 for net in nets)
    if not any(weights):
        return [amount, *(Money.zero(amount.currency) for _ in nets[1:])]
    if not mixed:
        return amount.allocate(weights)
    total = sum(net.minor for net in nets)
    exact = [Fraction(amount.minor * net.minor, total) if total else Fraction(0) for net in nets]
    parts = [floor(each) for each in exact]
    order = sorted(range(len(nets)), key=lambda i: (parts[i] - exact[i], i))[: amount.minor - sum(parts)]
    return [Money(part + (i in order), amount.currency) for i, part in enumerate(parts)]


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
