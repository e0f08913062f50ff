"""Charge models (interim)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from billing.errors import Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier."""

    up_to: Decimal | None = None
    """Inclusive upper bound; null for the last."""
    unit: Decimal = Decimal(0)
    """Price of a unit."""
    flat: Decimal = Decimal(0)
    """Price of entering it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A fixed fee."""

    amount: Decimal
    """Per full period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerUnit:
    """A price per unit."""

    unit: Decimal
    """Price of a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graduated:
    """Each unit at the price of its own tier."""

    tiers: tuple[Tier, ...]
    """Ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """All units at the price of the tier of the total."""

    tiers: tuple[Tier, ...]
    """Ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Started packages."""

    size: Decimal
    """Units in a package."""
    price: Decimal
    """Price of a package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a matrix."""

    values: tuple[str, ...]
    """Values of the dimensions."""
    unit: Decimal
    """Price of a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A price by dimension."""

    dimensions: tuple[str, ...]
    """Names of the dimensions."""
    cells: tuple[Cell, ...]
    """Prices."""
    default: Decimal | None = None
    """Price of every other cell."""


PriceModel = Flat | PerUnit | Graduated | Volume | Package | Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Something that is charged."""

    key: str
    """Unique in the plan."""
    name: str
    """For people."""
    model: PriceModel
    """How."""
    meter: str | None = None
    """What it measures."""
    in_advance: bool = False
    """Billed at the start."""
    prorate: bool = True
    """By seconds."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.model.dimensions if isinstance(self.model, Matrix) else ()


def check(charge: Charge, path: str) -> None:
    if isinstance(charge.model, Graduated | Volume):
        tiers = charge.model.tiers
        for i, t in enumerate(tiers):
            if (t.up_to is None) != (i == len(tiers) - 1):
                raise Rejected("open_tier", "the last tier, and only it, is open", field=f"{path}.model.tiers[{i}].up_to")
            if i and t.up_to is not None and t.up_to <= (tiers[i - 1].up_to or 0):
                raise Rejected("tiers_descend", "tiers must ascend", field=f"{path}.model.tiers[{i}].up_to")
