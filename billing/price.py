"""Prices: how a charge turns what was measured into an amount. Plain data; `check` refuses what cannot be rated.

    measured -> convert -> round -> free units -> model (tiers, cells, ...) -> commitment -> discount, maximum, minimum

Every price is exact, in major units of the plan's currency (SEMANTICS 1, 14, 18, 19).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

ZERO = Decimal(0)


class QuantityRounding(StrEnum):
    """How a quantity is brought to a number of decimals."""

    NONE = "none"
    UP = "up"
    DOWN = "down"
    HALF_UP = "half_up"


class ConversionOperation(StrEnum):
    """What a unit conversion does with its factor."""

    MULTIPLY = "multiply"
    DIVIDE = "divide"


@dataclass(frozen=True, slots=True)
class Tier:
    """A price for the units in `(from, up_to]`; `from` is the bound of the tier before it, or zero."""

    up_to: Decimal | None = None
    """Inclusive upper bound; null for the last tier, which is open."""
    unit: Decimal = ZERO
    """Price per unit, in major units."""
    flat: Decimal = ZERO
    """Charged once when the tier is entered, in major units."""
    cap: Decimal | None = None
    """Most that the tier costs, flat fee included, in major units; null for no limit."""


@dataclass(frozen=True, slots=True)
class PercentageTier:
    """A percentage of the part of an amount in `(from, up_to]`."""

    up_to: Decimal | None = None
    """Inclusive upper bound in major units; null for the last tier, which is open."""
    percent: Decimal = ZERO
    """Percent of the part that falls into the tier."""
    flat: Decimal = ZERO
    """Charged once when the tier is entered, in major units."""


@dataclass(frozen=True, slots=True)
class BlockTier:
    """Blocks of equal size and price."""

    size: Decimal
    """Units in a block."""
    count: int | None = None
    """Blocks in the tier; null for the last tier, which is open."""
    price: Decimal = ZERO
    """Price of a started block, in major units."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The price of one combination of dimension values."""

    values: tuple[str, ...]
    """One value per dimension, in their order."""
    unit: Decimal
    """Price per unit, in major units."""


@dataclass(frozen=True, slots=True)
class CapacityLimit:
    """The most that one kind of unit may reach in a capacity tier."""

    value: str
    """Value of the meter's dimension."""
    up_to: Decimal
    """Inclusive upper bound."""


@dataclass(frozen=True, slots=True)
class CapacityTier:
    """A flat price for a capacity that no kind of unit exceeds."""

    limits: tuple[CapacityLimit, ...] = ()
    """One per kind of unit that is limited; a kind that is not named may reach anything."""
    price: Decimal = ZERO
    """Flat price, in major units."""


@dataclass(frozen=True, slots=True)
class Flat:
    """A fixed amount, whatever is used."""

    amount: Decimal
    """Price per full period, in major units."""


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Every unit costs the same."""

    unit: Decimal
    """Price per unit, in major units."""


@dataclass(frozen=True, slots=True)
class Graduated:
    """Each unit costs the price of the tier it falls into."""

    tiers: tuple[Tier, ...]
    """Ascending; the last one is open."""


@dataclass(frozen=True, slots=True)
class Volume:
    """All units cost the price of the tier that the total reaches."""

    tiers: tuple[Tier, ...]
    """Ascending; the last one is open."""


@dataclass(frozen=True, slots=True)
class Stairstep:
    """The flat fee of the tier that the total reaches."""

    tiers: tuple[Tier, ...]
    """Ascending, without unit prices; the last one is open."""


@dataclass(frozen=True, slots=True)
class Package:
    """Units are sold in packages."""

    size: Decimal
    """Units in a package."""
    price: Decimal
    """Price of a package, in major units."""
    rounding: QuantityRounding = QuantityRounding.UP
    """Up charges a started package in full; down charges only full ones."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tiers of blocks, each started block charged in full; above the last tier its blocks go on."""

    tiers: tuple[BlockTier, ...]
    """Filled in turn."""
    top: bool = False
    """Whether all blocks cost the price of the tier reached, instead of each tier its own."""


@dataclass(frozen=True, slots=True)
class Percentage:
    """A share of the amount of each transaction, with what payment processors add to it."""

    percent: Decimal
    """Percent of the amount that is not free."""
    fixed: Decimal = ZERO
    """Fee per transaction that is not free, in major units."""
    free_transactions: int | None = None
    """How many transactions are free, from the period's first one on; null for no such allowance."""
    free_amount: Decimal | None = None
    """How much of the summed amount is free, in major units; null for no such allowance."""
    minimum: Decimal | None = None
    """Least fee for a transaction that is not free, in major units."""
    maximum: Decimal | None = None
    """Largest fee for a transaction, in major units; it wins over the least one."""


@dataclass(frozen=True, slots=True)
class GraduatedPercentage:
    """Each part of an amount costs the percentage of the tier it falls into."""

    tiers: tuple[PercentageTier, ...]
    """Ascending; the last one is open."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A unit price by the values of one or more dimensions."""

    dimensions: tuple[str, ...]
    """Dimensions of the meter, in the order of the cells' values."""
    cells: tuple[Cell, ...]
    """The priced combinations."""
    default: Decimal | None = None
    """Price per unit of every other combination; null refuses to rate them."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """The events carry the price: their sum is the amount."""

    multiplier: Decimal = Decimal(1)
    """Applied to the sum, such as 0.01 for events in cents or 1.2 for a markup of 20 %."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A capacity that is paid whether used or not, and units above it one by one."""

    included: Decimal
    """Units that the fee covers."""
    fee: Decimal
    """Price of the capacity per full period, in major units."""
    overage: Decimal
    """Price per unit above it, in major units."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The flat price of the first tier whose limits hold for every kind of unit at its peak."""

    dimensions: tuple[str, ...]
    """The one dimension of the meter that tells kinds of unit apart."""
    tiers: tuple[CapacityTier, ...]
    """Ascending; usage above the last one costs its price."""


PriceModel = (
    Flat
    | PerUnit
    | Graduated
    | Volume
    | Stairstep
    | Package
    | Blocks
    | Percentage
    | GraduatedPercentage
    | Matrix
    | Dynamic
    | Committed
    | Capacity
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """From the meter's unit to the unit that is priced, such as bytes to started gigabytes."""

    factor: Decimal
    """Above zero."""
    operation: ConversionOperation = ConversionOperation.DIVIDE
    """Whether the quantity is divided by the factor or multiplied."""
    rounding: QuantityRounding = QuantityRounding.NONE
    """How the result is rounded; a quotient that does not end is kept to 12 decimals, half up."""
    precision: int = 0
    """Decimals that are kept by rounding."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A quantity or an amount that is paid at least, with another price for what lies above."""

    quantity: Decimal | None = None
    """Units committed to; null if an amount is."""
    amount: Decimal | None = None
    """Amount committed to, in major units; null if a quantity is."""
    overage_factor: Decimal = Decimal(1)
    """Multiplies the price of what lies above the commitment."""
    true_up: bool = True
    """Whether what is missing to the commitment is charged."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One thing that a plan charges for."""

    key: str
    """Unique in the plan."""
    name: str
    """For people, shown on the invoice line."""
    model: PriceModel
    """How the quantity becomes an amount."""
    meter: str | None = None
    """Key of the meter that measures it; null for a fee."""
    in_advance: bool = False
    """Whether a fee is charged at the period's start instead of its end."""
    prorate: bool = True
    """Whether a part of a period costs a part of the fee, promises a part, and prices held units by how long."""
    conversion: Conversion | None = None
    """From the meter's unit to the priced one; null for the same."""
    free_units: Decimal = ZERO
    """Priced units that cost nothing, the first ones of each period."""
    split_by: tuple[str, ...] = ()
    """Dimensions whose combinations are rated each on its own, with its own tiers; empty rates the total."""
    commitment: Commitment | None = None
    """What is paid at least, with its own price above; null for none."""
    discount_percent: Decimal = ZERO
    """Taken off the amount, 0 to 100, before maximum and minimum."""
    maximum: Decimal | None = None
    """Most that the charge costs per full period, in major units; null for no limit."""
    minimum: Decimal | None = None
    """Least that the charge costs per full period, in major units; null for no limit."""
    flat_at_zero: bool = True
    """Whether a period without usage owes the flat fee of the first tier."""
    interval: str | None = None
    """Length of its own periods, an ISO 8601 duration that is a multiple of the plan's; null for that of the plan."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The meter's dimensions by which the charge needs the quantity split."""
        if isinstance(self.model, Matrix | Capacity):
            return self.model.dimensions
        return self.split_by
