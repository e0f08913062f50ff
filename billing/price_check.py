"""What a charge must look like to be rated: each mistake is refused with its path and with what is allowed.

Charges come from people (a catalogue file, the API), so nothing is checked by their classes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from billing.errors import Rejected
from billing.price import (
    Blocks,
    Capacity,
    Charge,
    Commitment,
    Committed,
    Conversion,
    Dynamic,
    Flat,
    Graduated,
    GraduatedPercentage,
    Matrix,
    Package,
    Percentage,
    PercentageTier,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Stairstep,
    Tier,
    Volume,
)

DIGITS_MAX = 26  # before the point; with 12 after it a number fits decimal(38, 12), the log's own limit
SCALE_MAX = 12
ONLY_BY_UNITS = "allowed only with a price by units: per unit, tiers, packages or blocks"
BY_UNITS = PerUnit | Graduated | GraduatedPercentage | Volume | Stairstep | Package | Blocks | Committed


def check(charge: Charge, path: str) -> None:
    """Refuse a charge that could not be rated.

    Raises:
        Rejected: naming the first wrong field under `path`, such as `plans[0].charges[2].model.tiers[1].up_to`.
    """
    if not charge.key:
        raise Rejected("missing", "a charge needs a key", field=f"{path}.key")
    _check_model(charge.model, f"{path}.model")
    if isinstance(charge.model, Flat) != (charge.meter is None):
        detail = "a flat fee has no meter" if charge.meter else "a price by usage needs the key of a meter"
        raise Rejected("unexpected" if charge.meter else "missing", detail, field=f"{path}.meter")
    if charge.in_advance and charge.meter is not None:
        raise Rejected(
            "unexpected", "usage is charged in arrears; only a fee is in advance", field=f"{path}.in_advance"
        )
    _check_steps(charge, path)
    for name in ("maximum", "minimum"):
        value = getattr(charge, name)
        if value is not None:
            check_amount(value, f"{path}.{name}")
    if charge.maximum is not None and charge.minimum is not None and charge.maximum < charge.minimum:
        raise Rejected("out_of_range", f"it is below the minimum of {charge.minimum}", field=f"{path}.maximum")
    check_percent(charge.discount_percent, f"{path}.discount_percent")


def _check_steps(charge: Charge, path: str) -> None:
    """What stands between the meter and the model: conversion, free units, split, commitment."""
    by_units = isinstance(charge.model, BY_UNITS)
    if charge.conversion is not None:
        if not by_units and not isinstance(charge.model, Matrix | Capacity):
            raise Rejected("unexpected", ONLY_BY_UNITS, field=f"{path}.conversion")
        _check_conversion(charge.conversion, f"{path}.conversion")
    check_amount(charge.free_units, f"{path}.free_units")
    for name, given in (
        ("free_units", charge.free_units),
        ("split_by", charge.split_by),
        ("commitment", charge.commitment),
    ):
        if given and not by_units:
            raise Rejected("unexpected", ONLY_BY_UNITS, field=f"{path}.{name}")
    if charge.commitment is not None:
        _check_commitment(charge.commitment, f"{path}.commitment")


def _check_model(model: PriceModel, path: str) -> None:
    match model:
        case Flat(amount=price):
            check_amount(price, f"{path}.amount")
        case PerUnit(unit=price):
            check_amount(price, f"{path}.unit")
        case Graduated(tiers=tiers) | Volume(tiers=tiers):
            _check_tiers(tiers, f"{path}.tiers")
        case Stairstep(tiers=tiers):
            _check_tiers(tiers, f"{path}.tiers")
            for i, tier in enumerate(tiers):
                if tier.unit:
                    raise Rejected("unexpected", "a stair has a flat fee only", field=f"{path}.tiers[{i}].unit")
        case GraduatedPercentage(tiers=parts):
            _check_percentage_tiers(parts, f"{path}.tiers")
        case Package(size=size, price=price, rounding=rounding):
            _above_zero(size, f"{path}.size")
            check_amount(price, f"{path}.price")
            if rounding not in (QuantityRounding.UP, QuantityRounding.DOWN):
                raise Rejected("unexpected", "allowed are up and down", field=f"{path}.rounding")
        case Blocks():
            _check_blocks(model, f"{path}.tiers")
        case Percentage():
            _check_percentage(model, path)
        case Matrix():
            _check_matrix(model, path)
        case Dynamic(multiplier=multiplier):
            _above_zero(multiplier, f"{path}.multiplier")
        case Committed(included=included, fee=fee, overage=overage):
            for name, value in (("included", included), ("fee", fee), ("overage", overage)):
                check_amount(value, f"{path}.{name}")
        case Capacity():
            _check_capacity(model, path)


def _check_tiers(tiers: Sequence[Tier], path: str) -> None:
    _check_bounds([tier.up_to for tier in tiers], path)
    for i, tier in enumerate(tiers):
        check_amount(tier.unit, f"{path}[{i}].unit")
        check_amount(tier.flat, f"{path}[{i}].flat")
        if tier.cap is not None:
            check_amount(tier.cap, f"{path}[{i}].cap")


def _check_percentage_tiers(tiers: Sequence[PercentageTier], path: str) -> None:
    _check_bounds([tier.up_to for tier in tiers], path)
    for i, tier in enumerate(tiers):
        check_percent(tier.percent, f"{path}[{i}].percent")
        check_amount(tier.flat, f"{path}[{i}].flat")


def _check_bounds(bounds: Sequence[Decimal | None], path: str) -> None:
    """Tiers begin where the one before ends, so bounds that ascend leave neither gap nor overlap."""
    if not bounds:
        raise Rejected("missing", "tiers need at least one tier, the open one", field=path)
    low = Decimal(0)
    for i, bound in enumerate(bounds[:-1]):
        if bound is None:
            raise Rejected("open_tier", "only the last tier is open; set its upper bound", field=f"{path}[{i}].up_to")
        check_amount(bound, f"{path}[{i}].up_to")
        if bound <= low:
            raise Rejected(
                "overlapping_tiers",
                f"{bound} is not above {low}, where the tier starts; tiers ascend",
                field=f"{path}[{i}].up_to",
            )
        low = bound
    if bounds[-1] is not None:
        raise Rejected(
            "gap_in_tiers",
            f"nothing is priced above {bounds[-1]}; leave the last bound out",
            field=f"{path}[{len(bounds) - 1}].up_to",
        )


def _check_blocks(model: Blocks, path: str) -> None:
    if not model.tiers:
        raise Rejected("missing", "blocks need at least one tier", field=path)
    for i, tier in enumerate(model.tiers):
        _above_zero(tier.size, f"{path}[{i}].size")
        check_amount(tier.price, f"{path}[{i}].price")
        if tier.count is None and i < len(model.tiers) - 1:
            raise Rejected(
                "open_tier", "only the last tier is open; set its number of blocks", field=f"{path}[{i}].count"
            )
        if tier.count is not None and tier.count < 1:
            raise Rejected("out_of_range", f"{tier.count} is not 1 or more", field=f"{path}[{i}].count")


def _check_percentage(model: Percentage, path: str) -> None:
    check_percent(model.percent, f"{path}.percent")
    check_amount(model.fixed, f"{path}.fixed")
    for name in ("free_amount", "minimum", "maximum"):
        value = getattr(model, name)
        if value is not None:
            check_amount(value, f"{path}.{name}")
    if model.free_transactions is not None and model.free_transactions < 0:
        raise Rejected("out_of_range", "allowed is 0 or more", field=f"{path}.free_transactions")


def _check_matrix(model: Matrix, path: str) -> None:
    if not model.dimensions:
        raise Rejected("missing", "a matrix needs at least one dimension", field=f"{path}.dimensions")
    if len(set(model.dimensions)) != len(model.dimensions):
        raise Rejected("duplicate", "a dimension is named twice", field=f"{path}.dimensions")
    seen: set[tuple[str, ...]] = set()
    for i, cell in enumerate(model.cells):
        if len(cell.values) != len(model.dimensions):
            raise Rejected(
                "wrong_length",
                f"allowed is one value for each of: {', '.join(model.dimensions)}",
                field=f"{path}.cells[{i}].values",
            )
        if cell.values in seen:
            raise Rejected("duplicate", f"{cell.values} is priced twice", field=f"{path}.cells[{i}].values")
        seen.add(cell.values)
        check_amount(cell.unit, f"{path}.cells[{i}].unit")
    if model.default is not None:
        check_amount(model.default, f"{path}.default")


def _check_capacity(model: Capacity, path: str) -> None:
    if len(model.dimensions) != 1:
        raise Rejected("wrong_length", "it needs the one dimension of the meter", field=f"{path}.dimensions")
    if not model.tiers:
        raise Rejected("missing", "a capacity needs at least one tier", field=f"{path}.tiers")
    for i, tier in enumerate(model.tiers):
        check_amount(tier.price, f"{path}.tiers[{i}].price")
        for j, limit in enumerate(tier.limits):
            check_amount(limit.up_to, f"{path}.tiers[{i}].limits[{j}].up_to")


def _check_conversion(conversion: Conversion, path: str) -> None:
    _above_zero(conversion.factor, f"{path}.factor")
    if not 0 <= conversion.precision <= SCALE_MAX:
        raise Rejected("out_of_range", f"allowed are 0 to {SCALE_MAX} decimals", field=f"{path}.precision")


def _check_commitment(commitment: Commitment, path: str) -> None:
    if (commitment.quantity is None) == (commitment.amount is None):
        raise Rejected("missing", "a commitment needs either a quantity or an amount", field=f"{path}.quantity")
    for name in ("quantity", "amount"):
        value = getattr(commitment, name)
        if value is not None:
            check_amount(value, f"{path}.{name}")
    _above_zero(commitment.overage_factor, f"{path}.overage_factor")


def check_amount(value: Decimal, path: str) -> None:
    """Refuse what is no finite number of 0 or more that the log can hold.

    Raises:
        Rejected: naming `path`.
    """
    if not value.is_finite():
        raise Rejected("not_a_number", f"{value} is no finite number", field=path)
    if value < 0:
        raise Rejected("out_of_range", f"{value} is negative; allowed is 0 or more", field=path)
    exponent = value.normalize().as_tuple().exponent if value else 0
    assert isinstance(exponent, int)
    if value.adjusted() >= DIGITS_MAX or -exponent > SCALE_MAX:
        raise Rejected(
            "out_of_range", f"allowed are {DIGITS_MAX} digits before and {SCALE_MAX} after the point", field=path
        )


def _above_zero(value: Decimal, path: str) -> None:
    check_amount(value, path)
    if not value:
        raise Rejected("out_of_range", "allowed is above 0", field=path)


def check_percent(value: Decimal, path: str) -> None:
    """Refuse what is no percentage of 0 to 100.

    Raises:
        Rejected: naming `path`.
    """
    check_amount(value, path)
    if value > 100:
        raise Rejected("out_of_range", f"{value} % is above 100; allowed is 0 to 100", field=path)
