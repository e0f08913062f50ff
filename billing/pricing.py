"""Pricing: what rates a subscription for a span of time, and the charges that this comes down to.

    Pricing (frozen on the run)  +  price book  -->  Priced: charges, their meters, the commitment

A run names its pricing in full, so that an invoice is a function of the log and never of what was sold later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from billing.catalog import PriceBookPublished
from billing.metering import Meter
from billing.price import Charge

Books = Mapping[int, PriceBookPublished]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What rates a subscription."""

    plan: str
    """Key of the plan."""
    price_book_version: int
    """Version of the price book that has the plan."""


@dataclass(frozen=True, slots=True)
class PricedCharge:
    """A charge with the meter that it is about."""

    charge: Charge
    meter: Meter | None

    @property
    def rule(self) -> PricedCharge:
        """What decides its amounts: it is the same charge as long as this stays, whatever it is called."""
        return replace(self, charge=replace(self.charge, name=""))


@dataclass(frozen=True, slots=True)
class Priced:
    """What a pricing comes down to."""

    key: str
    """Key of the plan."""
    name: str
    """Name of the plan, for people."""
    charges: tuple[PricedCharge, ...]
    """In the order of the invoice's lines."""
    minimum_commitment: Decimal | None
    """Least amount per full period in major units."""


def priced(pricing: Pricing, books: Books) -> Priced:
    """The charges of `pricing`.

    Raises:
        Rejected: the price book has no such plan.
    """
    book = books[pricing.price_book_version]
    plan = book.plan(pricing.plan)
    meters = {meter.key: meter for meter in book.meters}
    return Priced(
        key=plan.key,
        name=plan.name,
        charges=tuple(PricedCharge(each, meters[each.meter] if each.meter else None) for each in plan.charges),
        minimum_commitment=plan.minimum_commitment,
    )
