"""Rating: from a charge and what was measured to an exact amount that explains itself.

    convert -> round -> free units -> tiers or cells -> commitment -> discount -> maximum -> minimum

`rate` is for one quantity, `rate_all` for a batch. The amount is exact: it becomes money once, on the invoice line
(SEMANTICS 4, 14, 18, 19). A quantity below zero, left by
corrections that exceed the usage, costs what zero costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import partial

from billing.errors import Rejected
from billing.held import Table, rate_changes, table
from billing.metering import Measured
from billing.money import EXACT, WIDE, Money, exponent
from billing.partial import WHOLE, Part, in_part
from billing.percentage import percentage
from billing.price import (
    ZERO,
    Capacity,
    Charge,
    Commitment,
    Committed,
    Dynamic,
    Flat,
    Matrix,
    Percentage,
    PerUnit,
    PriceModel,
    Tier,
)
from billing.quantity import converter
from billing.rated import Adjustment, Row, figure, price_figure
from billing.rated import Rated as Rated
from billing.tiers import UnitPricer, unit_pricer

_PERCENT = Decimal("0.01")


Pricer = Callable[[Measured], Rated]


def rate(charge: Charge, measured: Measured, *, final: bool = True, part: Part = WHOLE) -> Rated:
    """What `charge` costs for `measured`, whose cells follow `charge.dimensions`.

    Not `final` for a part of a period: what is missing to a minimum or a commitment is due at the period's end
    (SEMANTICS 21). In a `part` of the full period what is promised for a full one holds by its share.

    Raises:
        Rejected: a combination of dimension values has no price.
    """
    with localcontext(WIDE):
        price = _pricer(charge, final, part) if measured.held is None else _held_pricer(charge, final, part)
        return price(measured)


def rate_all(
    charge: Charge, quantities: Iterable[Measured], currency: str, *, final: bool = True
) -> list[tuple[int, Rated]]:
    """`rate` for many quantities, each with its amount rounded to minor units of `currency`.

    Whatever does not depend on the quantity is computed once, so this is the way for a batch of invoices. Units that
    are held over time go through `rate`.
    """
    unit, factor = Decimal(1).scaleb(-exponent(currency)), Decimal(10 ** exponent(currency))
    with localcontext(WIDE):
        price = _pricer(charge, final, WHOLE)
        return [
            (int((rated := price(measured))[0].quantize(unit, ROUND_HALF_UP) * factor), rated)
            for measured in quantities
        ]


def bill_so_far(charge: Charge, so_far: Measured, billed: Money, *, final: bool) -> Money:
    """What is to be billed now: the whole period so far, rounded, less what was billed; negative for a credit.

    So any number of partial invoices add up to the one that they stand for (SEMANTICS 5, 20).
    """
    return Money.from_major(rate(charge, so_far, final=final).amount, billed.currency) - billed


def _pricer(charge: Charge, final: bool, part: Part) -> Pricer:
    """What rates one charge; to be called in the context `WIDE`, in which no sum or product is rounded."""
    match charge.model:
        case Flat(amount=amount):
            price: Pricer = _flat(amount)
        case Matrix() as model:
            price = _matrix(model, _converter(charge))
        case Capacity() as model:
            price = _capacity(model, _converter(charge))
        case Percentage() as model:
            price = percentage(model)
        case Dynamic(multiplier=multiplier):
            price = _dynamic(multiplier)
        case model:
            price = _by_units(charge, model, final, part)
    return _bounded(charge, price, final, part)


def _held_pricer(charge: Charge, final: bool, part: Part) -> Pricer:
    """What rates units that are held over time."""
    convert = _converter(charge)
    if isinstance(charge.model, Matrix):
        cells = _Cells(charge.model)

        def prices(values: tuple[str, ...]) -> Table:
            return Table((Tier(unit=cells[values]),))
    else:
        same = table(charge.model, charge.flat_at_zero)

        def prices(values: tuple[str, ...]) -> Table:
            return same

    def price(measured: Measured) -> Rated:
        if charge.dimensions:
            parts = [(", ".join(values), changes, prices(values)) for values, changes in measured.held_cells]
        else:
            parts = [("", measured.held or (), prices(()))]
        return rate_changes(parts, convert)

    return _bounded(charge, price, final, part)


def _by_units(charge: Charge, model: PriceModel, final: bool, part: Part) -> Pricer:
    if part is not WHOLE and isinstance(model, Committed):
        model = in_part(model, part)
    units = unit_pricer(model, charge.flat_at_zero)
    convert = _converter(charge)
    if not charge.commitment and not charge.split_by:
        return _per_unit(model.unit) if isinstance(model, PerUnit) and not convert else _total(units, convert)
    single = _committed_to(charge.commitment, units, final, part) if charge.commitment else _plain(units)
    if not charge.split_by:
        return lambda measured: single(convert(measured.total) if convert else max(measured.total, ZERO), "")

    def price(measured: Measured) -> Rated:
        rows: list[Row] = []
        adjustments: list[Adjustment] = []
        amount = quantity = ZERO
        for values, total in measured.cells:
            each = single(convert(total) if convert else max(total, ZERO), ", ".join(values))
            rows += each.rows
            adjustments += each.adjustments
            amount, quantity = EXACT.add(amount, each.amount), EXACT.add(quantity, each.quantity)
        return Rated(amount, quantity, rows, tuple(adjustments))

    return price


def _per_unit(unit: Decimal) -> Pricer:
    """The commonest case, as short as it can be."""
    new = tuple.__new__

    def price(measured: Measured) -> Rated:
        quantity = measured.total
        if quantity.is_signed():
            quantity = ZERO
        amount = quantity * unit
        return new(Rated, (amount, quantity, (("", quantity, unit, ZERO, amount, False),), ()))

    return price


def _total(units: UnitPricer, convert: Callable[[Decimal], Decimal] | None) -> Pricer:
    """The common case, without a detour: one quantity, one price."""
    new = tuple.__new__

    def price(measured: Measured) -> Rated:
        quantity = measured.total
        if convert:
            quantity = convert(quantity)
        elif quantity.is_signed():
            quantity = ZERO
        amount, rows = units(quantity)
        return new(Rated, (amount, quantity, rows, ()))

    return price


_Single = Callable[[Decimal, str], Rated]


def _plain(units: UnitPricer) -> _Single:
    def price(quantity: Decimal, label: str) -> Rated:
        amount, rows = units(quantity)
        return Rated(amount, quantity, _labelled(rows, label) if label else rows)

    return price


def _committed_to(commitment: Commitment, units: UnitPricer, final: bool, part: Part) -> _Single:
    """Up to the commitment its own price, above it the price times the overage factor."""
    factor = commitment.overage_factor

    def price(quantity: Decimal, label: str) -> Rated:
        amount, rows = units(quantity)
        if commitment.quantity is not None:
            committed = units(part.of(commitment.quantity))[0]
            named = price_figure(committed) if part is WHOLE else part.said(figure(commitment.quantity))
        else:
            assert commitment.amount is not None
            committed = part.of(commitment.amount)
            named = part.said(price_figure(commitment.amount))
        missing = EXACT.subtract(committed, amount)
        if missing >= 0:
            due = missing if final and commitment.true_up else ZERO
            reason = f"up to the commitment of {named}"
        else:
            due = EXACT.multiply(EXACT.subtract(factor, 1), -missing)
            reason = f"for {part.price(-missing)} above the commitment at {figure(factor)} times the price"
        adjustments = (Adjustment(reason, due),) if due else ()
        return Rated(EXACT.add(amount, due), quantity, _labelled(rows, label) if label else rows, adjustments)

    return price


def _labelled(rows: Sequence[Row], label: str) -> list[Row]:
    return [(f"{label}: {row[0]}" if row[0] else label, *row[1:]) for row in rows]


def _converter(charge: Charge) -> Callable[[Decimal], Decimal] | None:
    """From the meter's quantity to the priced one: convert, round, free units; None if it is the same.

    Below zero nothing is left to be priced.
    """
    free, convert = charge.free_units, converter(charge.conversion) if charge.conversion else None
    subtract = EXACT.subtract
    if not convert and not free:
        return None

    def prepare(quantity: Decimal) -> Decimal:
        units = subtract(convert(quantity) if convert else quantity, free)
        return units if units > 0 else ZERO

    return prepare


def _flat(amount: Decimal) -> Pricer:
    rated = Rated(amount, Decimal(1), (("", ZERO, ZERO, amount, amount, False),))
    return lambda measured: rated


class _Cells(dict[tuple[str, ...], Decimal]):
    """Unit price per combination of values; one that is not priced costs the default."""

    def __init__(self, model: Matrix) -> None:
        super().__init__({cell.values: cell.unit for cell in model.cells})
        self.model = model

    def __missing__(self, values: tuple[str, ...]) -> Decimal:
        if self.model.default is None:
            names = ", ".join(f"{d}={v!r}" for d, v in zip(self.model.dimensions, values, strict=False))
            raise Rejected("unpriced_cell", f"there is no price for {names}; allowed are the priced cells")
        return self.model.default

    def rows(self, cells: Sequence[tuple[tuple[str, ...], Decimal]], amounts: Sequence[Decimal]) -> list[Row]:
        """The parts of an amount."""
        priced = zip(cells, amounts, strict=True)
        return [
            (", ".join(values), max(units, ZERO), self[values], ZERO, amount, False)
            for (values, units), amount in priced
        ]


def _matrix(model: Matrix, convert: Callable[[Decimal], Decimal] | None) -> Pricer:
    prices = _Cells(model)

    def price(measured: Measured) -> Rated:
        cells, total = measured.cells, measured.total
        if convert:
            cells = tuple([(values, convert(units)) for values, units in cells])
            total = sum([units for _, units in cells], ZERO)
        amounts = [ZERO if units.is_signed() else units * prices[values] for values, units in cells]
        return Rated(sum(amounts, ZERO), total, partial(prices.rows, cells, amounts))

    return price


def _capacity(model: Capacity, convert: Callable[[Decimal], Decimal] | None) -> Pricer:
    tiers = [({limit.value: limit.up_to for limit in tier.limits}, tier.price) for tier in model.tiers]

    def price(measured: Measured) -> Rated:
        peaks = [(values[0], convert(units) if convert else units) for values, units in measured.cells]
        fits = (i for i, (limits, _) in enumerate(tiers) if all(n <= limits.get(value, n) for value, n in peaks))
        i = next(fits, len(tiers) - 1)
        amount = tiers[i][1]
        return Rated(amount, Decimal(1), ((f"tier {i + 1}", ZERO, ZERO, amount, amount, False),))

    return price


def _dynamic(multiplier: Decimal) -> Pricer:
    def price(measured: Measured) -> Rated:
        amount = EXACT.multiply(measured.total, multiplier)
        return Rated(amount, measured.total, (("", measured.total, multiplier, ZERO, amount, False),))

    return price


def _bounded(charge: Charge, price: Pricer, final: bool, part: Part) -> Pricer:
    """The amount after the charge's own discount, not above its maximum and, at the end, not below its minimum."""
    percent = charge.discount_percent
    maximum, minimum = charge.maximum, charge.minimum
    if not percent and maximum is None and minimum is None:
        return price
    most, least = (part.said(price_figure(bound or ZERO)) for bound in (maximum, minimum))
    if part.share:  # a part without a day keeps its whole maximum: nobody uses for nothing
        maximum = part.of(maximum) if maximum is not None else None
    minimum = part.of(minimum) if minimum is not None else None

    def bounded(measured: Measured) -> Rated:
        rated = price(measured)
        amount, adjustments = rated.amount, list(rated.adjustments)
        if percent and amount > 0:
            off = EXACT.multiply(EXACT.multiply(amount, percent), _PERCENT)
            adjustments.append(Adjustment(f"discount of {figure(percent)} %", -off))
            amount = EXACT.subtract(amount, off)
        if maximum is not None and amount > maximum:
            off = EXACT.subtract(amount, maximum)
            adjustments.append(Adjustment(f"above the maximum of {most}", -off))
            amount = maximum
        if minimum is not None and final and amount < minimum:
            missing = EXACT.subtract(minimum, amount)
            adjustments.append(Adjustment(f"up to the minimum of {least}", missing))
            amount = minimum
        return Rated(amount, rated.quantity, rated.rows, tuple(adjustments))

    return bounded
