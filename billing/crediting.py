"""Credit notes as arithmetic: what a line of an issued invoice is worth with its discount and its tax, and who gets it.

Parts of the invoice's discount and tax are allocated over its lines by largest remainder, so notes over all lines add
up to exactly the invoice (SEMANTICS 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from billing.errors import Rejected
from billing.money import Money


@dataclass(frozen=True, slots=True)
class CreditableLine:
    """A line of an issued invoice with its parts of what was settled for the whole invoice."""

    net: Money
    """Before discounts."""
    discount: Money
    """Its part of the discounts."""
    tax: Money
    """Its part of the tax."""

    @property
    def total(self) -> Money:
        """What it cost."""
        return self.net - self.discount + self.tax


def creditable(lines: Sequence[Money], discount: Money, tax: Money) -> tuple[CreditableLine, ...]:
    """The lines with their parts of the invoice's discount and tax."""
    weights = [max(line.minor, 0) for line in lines]
    if not any(weights):
        raise Rejected("nothing_to_credit", "the invoice has no line above zero", field="lines")
    discounts = discount.allocate(weights)
    nets = [max((line - off).minor, 0) for line, off in zip(lines, discounts, strict=True)]
    parts = tax.allocate(nets if any(nets) else weights)
    return tuple(CreditableLine(*each) for each in zip(lines, discounts, parts, strict=True))


def credited(line: CreditableLine, amount: Money | None = None, before: Money | None = None) -> CreditableLine:
    """The part of `line` that a note over `amount` of its net gives back; all of it if none is named.

    `before` is what earlier notes gave back of its net: the parts of all notes add up to the line.

    Raises:
        Rejected: the amount is not above zero, or more than is left of the line.
    """
    already = before or Money.zero(line.net.currency)
    wanted = amount if amount is not None else line.net - already
    if wanted.minor <= 0 or already + wanted > line.net:
        raise Rejected("out_of_range", f"allowed is above 0 up to {line.net - already}", field="amount")

    def upto(part: Money, net: Money) -> Money:
        return part.times(Fraction(net.minor, line.net.minor))

    after = already + wanted
    return CreditableLine(
        wanted,
        upto(line.discount, after) - upto(line.discount, already),
        upto(line.tax, after) - upto(line.tax, already),
    )


@dataclass(frozen=True, slots=True)
class Refund:
    """Where the money of a credit note goes."""

    to_balance: Money
    """Restored to the customer's credit."""
    refunded: Money
    """Returned by the payment provider."""


def refund(total: Money, paid_from_balance: Money) -> Refund:
    """A refund returns only what was really paid: what came from the customer's credit goes back there first."""
    restored = min(total, paid_from_balance)
    return Refund(restored, total - restored)


def unused_credit(billed: Money, unused: Fraction, tax_percent: Fraction) -> CreditableLine:
    """The note for the unused share of a prepaid fee: net and tax are each rounded once, and the total is their sum."""
    exact = billed.minor * unused
    zero = Money.zero(billed.currency)
    base = Money(1, billed.currency)
    return CreditableLine(base.times(exact), zero, base.times(exact * tax_percent / 100))
