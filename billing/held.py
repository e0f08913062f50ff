"""Rating units that are held over time: full units choose the tiers, prorated units are priced (see `recurring`).

Amounts are summed as fractions and exact: one whose decimals do not end is kept to 100 of them, far more than could
turn the rounding of its line (SEMANTICS 4, 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.errors import Rejected
from billing.metering import Change, Meter
from billing.money import EXACT, half_up
from billing.price import ZERO, Charge, Graduated, Matrix, PerUnit, PriceModel, Tier, Volume
from billing.rated import Rated, Row
from billing.recurring import parts_by_tier, prorated_units

DECIMALS = 100
PRICED_HELD = PerUnit | Graduated | Volume | Matrix
SAID_HELD = "allowed are a price per unit, graduated, volume and matrix; `prorate: false` prices the level at the end"

Convert = Callable[[Decimal], Decimal] | None


@dataclass(frozen=True, slots=True)
class Table:
    """Prices of held units."""

    tiers: tuple[Tier, ...]
    by_highest: bool = False
    """Whether all units cost the price of the tier that the highest level reaches."""
    flat_at_zero: bool = False
    """Whether the flat fee of the first tier is owed though nothing was held."""


def is_held(charge: Charge, meter: Meter) -> bool:
    """Whether `charge` prices units of `meter` by how long they are held."""
    return charge.prorate and meter.is_level


def table(model: PriceModel, flat_at_zero: bool) -> Table:
    """The prices of `model`.

    Raises:
        Rejected: it has no price for the time that a unit is held.
    """
    match model:
        case PerUnit(unit=unit):
            return Table((Tier(unit=unit),))
        case Graduated(tiers=tiers):
            return Table(tiers, flat_at_zero=flat_at_zero)
        case Volume(tiers=tiers):
            return Table(tiers, by_highest=True, flat_at_zero=flat_at_zero)
        case _:
            raise Rejected("not_prorated", SAID_HELD, field="prorate")


def rate_changes(parts: Iterable[tuple[str, Sequence[Change], Table]], convert: Convert) -> Rated:
    """What the levels of `parts` cost, each with its label and prices."""
    rows: list[Row] = []
    amount = units = Fraction(0)
    for label, changes, prices in parts:
        level = priced_level(changes, convert)
        units += prorated_units(level)
        for number, held, tier in _tiers(level, prices):
            cost = held * Fraction(tier.unit) + Fraction(tier.flat)
            if tier.cap is not None:
                cost = min(cost, Fraction(tier.cap))
            amount += cost
            names = [label] if label else []
            names += [f"tier {number}"] if len(prices.tiers) > 1 else []
            shown = to_decimal(held)
            row_amount = EXACT.fma(shown, tier.unit, tier.flat)
            row_amount = row_amount if tier.cap is None else min(row_amount, tier.cap)
            rows.append((": ".join(names), shown, tier.unit, tier.flat, row_amount, False))
    return Rated(to_decimal(amount), to_decimal(units), rows)


def priced_level(changes: Sequence[Change], convert: Convert) -> tuple[Change, ...]:
    """The changes of the level that is priced: converted, less free units, never below zero."""
    made: list[Change] = []
    level = before = ZERO
    for change in changes:
        if not change.units:
            continue
        level = EXACT.add(level, change.units)
        after = convert(level) if convert else max(level, ZERO)
        units = EXACT.subtract(after, before)
        if units:
            made.append(Change(units, change.prorated / Fraction(change.units) * Fraction(units)))
        before = after
    return tuple(made)


def to_decimal(number: Fraction) -> Decimal:
    """`number` as a decimal: exact if its decimals end, else 100 of them."""
    scaled = number * 10**DECIMALS
    return EXACT.scaleb(Decimal(half_up(scaled)), -DECIMALS).normalize(EXACT)


def _tiers(changes: Sequence[Change], prices: Table) -> list[tuple[int, Fraction, Tier]]:
    """Number, prorated units and prices of each tier that was reached."""
    tiers = prices.tiers
    parts, highest = parts_by_tier(tiers, changes)
    if highest <= 0 and not (prices.flat_at_zero and tiers[0].flat):
        return []
    reached = next(i for i, tier in enumerate(tiers) if tier.up_to is None or highest <= tier.up_to)
    if prices.by_highest:
        return [(reached + 1, sum(parts, Fraction(0)), tiers[reached])]
    return [(i + 1, parts[i], tiers[i]) for i in range(reached + 1)]
