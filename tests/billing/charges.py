"""Charges and what was measured for them, as tests write them: only what matters to the test is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

from billing.metering import Measured
from billing.price import Charge, Flat, PriceModel
from billing.rating import Rated, rate


def charge(model: PriceModel, **options: object) -> Charge:
    """A charge of `model`, of a meter unless it is a fee."""
    return replace(Charge("charge", "Charge", model, None if isinstance(model, Flat) else "meter"), **options)


def explained(model: PriceModel, used: str | Decimal, **options: object) -> Rated:
    """What a charge of `model` costs for a quantity, with its parts and words."""
    return rate(charge(model, **options), Measured(Decimal(used)))


def amount(model: PriceModel, used: str | Decimal, **options: object) -> Decimal:
    """Its amount alone."""
    return explained(model, used, **options).amount


def by_cell(cells: Mapping[str, str | int]) -> Measured:
    """Quantities per combination of dimension values, written as `eu, big`."""
    made = tuple((tuple(name.split(", ")), Decimal(units)) for name, units in cells.items())
    return Measured(sum((units for _, units in made), Decimal(0)), made)
