"""Tiers, packages and blocks: from one quantity to an amount and the parts that it is made of.

Tiers are `(from, to]` over decimals and the last one is open, so no unit between two tiers is free (SEMANTICS 18).
Each maker prepares a table once; rating then looks up the tier and multiplies once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from decimal import Decimal

from billing.errors import Rejected
from billing.money import EXACT
from billing.price import (
    ZERO,
    Blocks,
    BlockTier,
    Committed,
    Graduated,
    GraduatedPercentage,
    Package,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Stairstep,
    Tier,
    Volume,
)
from billing.rated import Row

Priced = tuple[Decimal, Sequence[Row]]
UnitPricer = Callable[[Decimal], Priced]
_PERCENT = Decimal("0.01")
_NOTHING: Priced = (ZERO, ())


def unit_pricer(model: PriceModel, flat_at_zero: bool) -> UnitPricer:
    """The pricer of a model that needs nothing but one quantity of 0 or more."""
    match model:
        case PerUnit(unit=unit):
            return _per_unit(unit)
        case Graduated(tiers=tiers):
            return graduated(tiers, flat_at_zero=flat_at_zero)
        case GraduatedPercentage(tiers=parts):
            tiers = tuple(Tier(each.up_to, each.percent, each.flat) for each in parts)
            return graduated(tiers, flat_at_zero=flat_at_zero, percent=True)
        case Volume(tiers=tiers) | Stairstep(tiers=tiers):
            return _volume(tiers, flat_at_zero)
        case Package():
            return _package(model)
        case Blocks(tiers=blocks, top=True):
            return _top_block(blocks)
        case Blocks(tiers=blocks):
            return _blocks(blocks)
        case Committed():
            return _committed(model)
        case _:
            raise Rejected("not_rated_by_units", f"{type(model).__name__} needs more than a quantity")


def _per_unit(unit: Decimal) -> UnitPricer:
    multiply = EXACT.multiply

    def price(quantity: Decimal) -> Priced:
        amount = multiply(quantity, unit)
        return amount, (("", quantity, unit, ZERO, amount, False),)

    return price


def graduated(tiers: Sequence[Tier], *, flat_at_zero: bool = True, percent: bool = False) -> UnitPricer:
    """Each unit at the price of its own tier; the full tiers below the last one reached are summed beforehand."""
    bounds = [tier.up_to for tier in tiers[:-1] if tier.up_to is not None]
    lows = [ZERO, *bounds]
    prices = [EXACT.multiply(tier.unit, _PERCENT) if percent else tier.unit for tier in tiers]
    full: list[Row] = []
    sums = [ZERO]
    for i, bound in enumerate(bounds):
        row = _tier_row(i, tiers[i], EXACT.subtract(bound, lows[i]), prices[i], percent)
        full.append(row)
        sums.append(EXACT.add(sums[-1], row[4]))
    add, subtract, fma = EXACT.add, EXACT.subtract, EXACT.fma
    last = [(f"tier {i + 1}", lows[i], prices[i], tier, sums[i], tuple(full[:i])) for i, tier in enumerate(tiers)]

    def price(quantity: Decimal) -> Priced:
        if quantity <= 0 and not flat_at_zero:
            return _NOTHING
        label, low, unit, tier, below, rows = last[bisect_left(bounds, quantity)]
        units = subtract(quantity, low)
        amount = fma(units, unit, tier.flat)
        if tier.cap is not None and amount > tier.cap:
            amount = tier.cap
        return add(below, amount), (*rows, (label, units, tier.unit, tier.flat, amount, percent))

    return price


def graduated_between(tiers: Sequence[Tier], already: Decimal, until: Decimal) -> tuple[Row, ...]:
    """Only the units in `(already, until]`: each tier's part, its flat fee with the first unit that is used in it.

    Tiers with a cap have no such parts: bill what lies between as the difference of two totals.
    """
    rows: list[Row] = []
    low = ZERO
    for i, tier in enumerate(tiers):
        start, end = max(low, already), until if tier.up_to is None else min(tier.up_to, until)
        if end > start:
            units = EXACT.subtract(end, start)
            flat = tier.flat if start == low else ZERO
            rows.append((f"tier {i + 1}", units, tier.unit, flat, EXACT.fma(units, tier.unit, flat), False))
        if tier.up_to is None:
            break
        low = tier.up_to
    return tuple(rows)


def _tier_row(index: int, tier: Tier, units: Decimal, price: Decimal, percent: bool) -> Row:
    amount = EXACT.fma(units, price, tier.flat)
    amount = amount if tier.cap is None else min(amount, tier.cap)
    return (f"tier {index + 1}", units, tier.unit, tier.flat, amount, percent)


def _volume(tiers: Sequence[Tier], flat_at_zero: bool) -> UnitPricer:
    bounds = [tier.up_to for tier in tiers[:-1] if tier.up_to is not None]
    labels = [f"tier {i + 1}" for i in range(len(tiers))]
    fma = EXACT.fma

    def price(quantity: Decimal) -> Priced:
        if quantity <= 0 and not flat_at_zero:
            return _NOTHING
        i = bisect_left(bounds, quantity)
        tier = tiers[i]
        amount = fma(quantity, tier.unit, tier.flat)
        if tier.cap is not None and amount > tier.cap:
            amount = tier.cap
        return amount, ((labels[i], quantity, tier.unit, tier.flat, amount, False),)

    return price


def _package(model: Package) -> UnitPricer:
    up = model.rounding is QuantityRounding.UP

    def price(quantity: Decimal) -> Priced:
        full, rest = EXACT.divmod(quantity, model.size)
        count = EXACT.add(full, 1) if up and rest else full
        amount = EXACT.multiply(count, model.price)
        return amount, (("packages", count, model.price, ZERO, amount, False),)

    return price


def _started(quantity: Decimal, size: Decimal) -> Decimal:
    full, rest = EXACT.divmod(quantity, size)
    return EXACT.add(full, 1) if rest else full


def _blocks(tiers: Sequence[BlockTier]) -> UnitPricer:
    def price(quantity: Decimal) -> Priced:
        rows: list[Row] = []
        total, left = ZERO, quantity
        for i, tier in enumerate(tiers):
            count = _started(left, tier.size)
            if tier.count is not None and i < len(tiers) - 1:
                count = min(count, Decimal(tier.count))
            amount = EXACT.multiply(count, tier.price)
            rows.append((f"tier {i + 1}", count, tier.price, ZERO, amount, False))
            total = EXACT.add(total, amount)
            left = max(EXACT.subtract(left, EXACT.multiply(count, tier.size)), ZERO)
            if not left:
                break
        return total, tuple(rows)

    return price


def _top_block(tiers: Sequence[BlockTier]) -> UnitPricer:
    bounds = [ZERO]
    for tier in tiers[:-1]:
        bounds.append(EXACT.add(bounds[-1], EXACT.multiply(tier.size, Decimal(tier.count or 0))))

    def price(quantity: Decimal) -> Priced:
        i = max(bisect_left(bounds, quantity) - 1, 0)
        count = _started(quantity, tiers[i].size)
        amount = EXACT.multiply(count, tiers[i].price)
        return amount, ((f"tier {i + 1}", count, tiers[i].price, ZERO, amount, False),)

    return price


def _committed(model: Committed) -> UnitPricer:
    included: Row = ("capacity", ZERO, ZERO, model.fee, model.fee, False)

    def price(quantity: Decimal) -> Priced:
        above = EXACT.subtract(quantity, model.included)
        if above <= 0:
            return model.fee, (included,)
        amount = EXACT.multiply(above, model.overage)
        return EXACT.add(model.fee, amount), (included, ("overage", above, model.overage, ZERO, amount, False))

    return price
