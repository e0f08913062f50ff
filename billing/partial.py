"""A part of a period: what a charge promises for a full one holds there by its share.

    full period   minimum 100.00, capacity 1,000 for 50.00
    17 of 31 days minimum  54.84, capacity  ~548 for 27.42      tiers and free units stay whole

A share that does not end is kept to 12 decimals, as every quotient is; the line is rounded once, as always.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from billing.price import Charge, Committed
from billing.proration import to_decimals
from billing.rated import price_figure

_DECIMALS = 12
_SHOWN_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Part:
    """A span that is billed, as a part of the full period."""

    share: Fraction
    """Exact; 1 for a full period."""
    words: str
    """For people, such as `17 of 31 days`; empty for a full period."""

    def of(self, promise: Decimal) -> Decimal:
        """What is promised for the part."""
        return promise if self.share == 1 else to_decimals(Fraction(promise) * self.share, _DECIMALS)

    def said(self, promise: str) -> str:
        """The promise for people: `100.00 x 17 of 31 days`."""
        return f"{promise} x {self.words}" if self.words else promise

    def price(self, amount: Decimal) -> str:
        """A price for people, to six decimals where it is a part; no figure is computed from it."""
        return price_figure(amount if self.share == 1 else to_decimals(Fraction(amount), _SHOWN_DECIMALS))


WHOLE = Part(Fraction(1), "")


def promises(charge: Charge) -> bool:
    """Whether `charge` promises anything for a full period: a minimum, a maximum, a commitment or a capacity."""
    bounds = (charge.minimum, charge.maximum, charge.commitment)
    return any(each is not None for each in bounds) or isinstance(charge.model, Committed)


def in_part(model: Committed, part: Part) -> Committed:
    """The capacity that is paid for a part of a period, and what it costs."""
    return replace(model, included=part.of(model.included), fee=part.of(model.fee))
