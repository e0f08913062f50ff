"""Rating: from a charge and what was measured to an exact amount that explains itself.

    convert -> round -> free units -> tiers or cells -> commitment -> discount -> maximum -> minimum

`pricer` prepares a charge once and rates any number of quantities; `rate` is the same for one. Nothing is rounded
here: the amount becomes money once, on the invoice line (SEMANTICS 4, 14, 18, 19). A quantity below zero, left by
corrections that exceed the usage, costs what zero costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

from billing.errors import Rejected
from billing.metering import Measured
from billing.money import EXACT, Money
from billing.price import ZERO, Capacity, Charge, Commitment, Dynamic, Flat, Matrix, Percentage, PriceModel
from billing.quantity import converter
from billing.tiers import Row, UnitPricer, unit_pricer

_PERCENT = Decimal("0.01")


class Step(NamedTuple):
    """One part of an amount: a tier, a cell, a fee."""

    label: str
    """Which tier or cell; empty if there is only one."""
    quantity: Decimal
    """Units, packages or blocks, or the amount of which a percentage is taken."""
    unit: Decimal
    """Price per unit, or the percentage."""
    flat: Decimal
    """Charged once, beside the units."""
    amount: Decimal
    """Exact, in major units."""
    percent: bool = False
    """Whether `unit` is a percentage of `quantity`."""


class Adjustment(NamedTuple):
    """What a commitment, a discount, a maximum or a minimum changes after the steps."""

    reason: str
    """For people, such as `up to the minimum of 100.00`."""
    amount: Decimal
    """Exact, in major units; negative for a discount."""


class Rated(NamedTuple):
    """What a charge costs, exact, and how that came about."""

    amount: Decimal
    """In major units, not rounded: the sum of steps and adjustments."""
    quantity: Decimal
    """What was priced, after conversion, rounding and free units."""
    rows: Sequence[Row]
    """The parts, as plain tuples in the order of a `Step`'s fields."""
    adjustments: tuple[Adjustment, ...] = ()
    """What changed the amount after the steps."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The parts: tiers, cells or fees."""
        return tuple(Step(*row) for row in self.rows)

    @property
    def usage(self) -> Decimal:
        """The amount before commitment, discount, maximum and minimum."""
        total = ZERO
        for row in self.rows:
            total = EXACT.add(total, row[4])
        return total

    @property
    def text(self) -> str:
        """The arithmetic for people: `1,000 x 12.00 + 407 x 9.50`."""
        parts = [_step_text(step) for step in self.steps] or ["0"]
        words = " + ".join(parts)
        for each in self.adjustments:
            sign = "-" if each.amount < 0 else "+"
            words += f" {sign} {price_figure(abs(each.amount))} {each.reason}"
        return words


Pricer = Callable[[Measured], Rated]


def rate(charge: Charge, measured: Measured, *, final: bool = True) -> Rated:
    """What `charge` costs for `measured`, whose cells follow `charge.dimensions`.

    Not `final` for a part of a period: what is missing to a minimum or a commitment is due at the period's end
    (SEMANTICS 21).

    Raises:
        Rejected: a combination of dimension values has no price.
    """
    return pricer(charge, final=final)(measured)


def bill_so_far(charge: Charge, so_far: Measured, billed: Money, *, final: bool) -> Money:
    """What is to be billed now: the whole period so far, rounded, less what was billed; negative for a credit.

    So any number of partial invoices add up to the one that they stand for (SEMANTICS 5, 20).
    """
    return Money.from_major(rate(charge, so_far, final=final).amount, billed.currency) - billed


def pricer(charge: Charge, *, final: bool = True) -> Pricer:
    """`rate` for one charge and many quantities: whatever does not depend on the quantity is computed once."""
    match charge.model:
        case Flat(amount=amount):
            price: Pricer = _flat(amount)
        case Matrix() as model:
            price = _matrix(model, _converter(charge))
        case Capacity() as model:
            price = _capacity(model, _converter(charge))
        case Percentage() as model:
            price = _percentage(model)
        case Dynamic(multiplier=multiplier):
            price = _dynamic(multiplier)
        case model:
            price = _by_units(charge, model, final)
    if charge.discount_percent or charge.maximum is not None or charge.minimum is not None:
        return _bounded(charge, price, final)
    return price


def _by_units(charge: Charge, model: PriceModel, final: bool) -> Pricer:
    units = unit_pricer(model, charge.flat_at_zero)
    single = _committed_to(charge.commitment, units, final) if charge.commitment else _plain(units)
    convert = _converter(charge)
    if not charge.split_by:
        return lambda measured: single(convert(measured.total), "")

    def price(measured: Measured) -> Rated:
        rows: list[Row] = []
        adjustments: list[Adjustment] = []
        amount = quantity = ZERO
        for values, total in measured.cells:
            each = single(convert(total), ", ".join(values))
            rows += each.rows
            adjustments += each.adjustments
            amount, quantity = EXACT.add(amount, each.amount), EXACT.add(quantity, each.quantity)
        return Rated(amount, quantity, rows, tuple(adjustments))

    return price


_Single = Callable[[Decimal, str], Rated]


def _plain(units: UnitPricer) -> _Single:
    def price(quantity: Decimal, label: str) -> Rated:
        amount, rows = units(quantity)
        return Rated(amount, quantity, _labelled(rows, label) if label else rows)

    return price


def _committed_to(commitment: Commitment, units: UnitPricer, final: bool) -> _Single:
    """Up to the commitment its own price, above it the price times the overage factor."""
    factor = commitment.overage_factor

    def price(quantity: Decimal, label: str) -> Rated:
        amount, rows = units(quantity)
        committed = units(commitment.quantity)[0] if commitment.quantity is not None else commitment.amount
        assert committed is not None
        missing = EXACT.subtract(committed, amount)
        if missing >= 0:
            due = missing if final and commitment.true_up else ZERO
            reason = f"up to the commitment of {price_figure(committed)}"
        else:
            due = EXACT.multiply(EXACT.subtract(factor, 1), -missing)
            reason = f"for {price_figure(-missing)} above the commitment at {figure(factor)} times the price"
        adjustments = (Adjustment(reason, due),) if due else ()
        return Rated(EXACT.add(amount, due), quantity, _labelled(rows, label) if label else rows, adjustments)

    return price


def _labelled(rows: Sequence[Row], label: str) -> list[Row]:
    return [(f"{label}: {row[0]}" if row[0] else label, *row[1:]) for row in rows]


def _converter(charge: Charge) -> Callable[[Decimal], Decimal]:
    """From the meter's quantity to the priced one: convert, round, free units; never below zero."""
    free, convert = charge.free_units, converter(charge.conversion) if charge.conversion else None
    subtract = EXACT.subtract
    if not convert and not free:
        return lambda quantity: quantity if quantity > 0 else ZERO

    def prepare(quantity: Decimal) -> Decimal:
        units = subtract(convert(quantity) if convert else quantity, free)
        return units if units > 0 else ZERO

    return prepare


def _flat(amount: Decimal) -> Pricer:
    rated = Rated(amount, Decimal(1), (("", ZERO, ZERO, amount, amount, False),))
    return lambda measured: rated


def _matrix(model: Matrix, convert: Callable[[Decimal], Decimal]) -> Pricer:
    prices = {cell.values: (", ".join(cell.values), cell.unit) for cell in model.cells}
    add, multiply = EXACT.add, EXACT.multiply
    default = model.default

    def price(measured: Measured) -> Rated:
        rows: list[Row] = []
        total = quantity = ZERO
        for values, measured_units in measured.cells:
            known = prices.get(values)
            if known is None:
                if default is None:
                    names = ", ".join(f"{d}={v!r}" for d, v in zip(model.dimensions, values, strict=False))
                    raise Rejected("unpriced_cell", f"there is no price for {names}; allowed are the priced cells")
                known = (", ".join(values), default)
            label, unit = known
            units = convert(measured_units)
            amount = multiply(units, unit)
            rows.append((label, units, unit, ZERO, amount, False))
            total, quantity = add(total, amount), add(quantity, units)
        return Rated(total, quantity, rows)

    return price


def _capacity(model: Capacity, convert: Callable[[Decimal], Decimal]) -> Pricer:
    tiers = [({limit.value: limit.up_to for limit in tier.limits}, tier.price) for tier in model.tiers]

    def price(measured: Measured) -> Rated:
        peaks = [(values[0], convert(units)) for values, units in measured.cells]
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


def _bounded(charge: Charge, price: Pricer, final: bool) -> Pricer:
    """The amount after the charge's own discount, not above its maximum and, at the end, not below its minimum."""
    percent, maximum, minimum = charge.discount_percent, charge.maximum, charge.minimum

    def bounded(measured: Measured) -> Rated:
        rated = price(measured)
        amount, adjustments = rated.amount, list(rated.adjustments)
        if percent and amount > 0:
            off = EXACT.multiply(EXACT.multiply(amount, percent), _PERCENT)
            adjustments.append(Adjustment(f"discount of {figure(percent)} %", -off))
            amount = EXACT.subtract(amount, off)
        if maximum is not None and amount > maximum:
            off = EXACT.subtract(amount, maximum)
            adjustments.append(Adjustment(f"above the maximum of {price_figure(maximum)}", -off))
            amount = maximum
        if minimum is not None and final and amount < minimum:
            missing = EXACT.subtract(minimum, amount)
            adjustments.append(Adjustment(f"up to the minimum of {price_figure(minimum)}", missing))
            amount = minimum
        return Rated(amount, rated.quantity, rated.rows, tuple(adjustments))

    return bounded


def _percentage(model: Percentage) -> Pricer:
    limited = model.minimum is not None or model.maximum is not None
    free = model.free_amount is not None or model.free_transactions is not None

    def price(measured: Measured) -> Rated:
        if measured.transactions and (limited or free):
            return _by_transaction(model, measured.transactions)
        paid, count = max(measured.total, ZERO), max(measured.events, len(measured.transactions))
        if model.free_amount is not None:
            paid = max(EXACT.subtract(paid, model.free_amount), ZERO)
        if model.free_transactions is not None:
            count = max(count - model.free_transactions, 0)
        return _percentage_rated(model, paid, count, ZERO)

    return price


def _by_transaction(model: Percentage, transactions: Sequence[Decimal]) -> Rated:
    """A transaction is free while both allowances last; the one that crosses the free amount pays for the excess."""
    running = paid = correction = ZERO
    count = 0
    for i, amount in enumerate(transactions):
        running = EXACT.add(running, amount)
        base = amount
        if model.free_amount is not None or model.free_transactions is not None:
            in_count = model.free_transactions is None or i < model.free_transactions
            excess = running if model.free_amount is None else EXACT.subtract(running, model.free_amount)
            if in_count and (model.free_amount is None or excess <= 0):
                continue
            if in_count:
                base = min(amount, excess)
        fee = EXACT.fma(EXACT.multiply(base, model.percent), _PERCENT, model.fixed)
        clamped = fee if model.minimum is None else max(fee, model.minimum)
        clamped = clamped if model.maximum is None else min(clamped, model.maximum)
        paid, count = EXACT.add(paid, base), count + 1
        correction = EXACT.add(correction, EXACT.subtract(clamped, fee))
    return _percentage_rated(model, paid, count, correction)


def _percentage_rated(model: Percentage, paid: Decimal, count: int, correction: Decimal) -> Rated:
    share = EXACT.multiply(EXACT.multiply(paid, model.percent), _PERCENT)
    rows: list[Row] = [("percentage", paid, model.percent, ZERO, share, True)]
    amount = share
    if model.fixed:
        fixed = EXACT.multiply(Decimal(count), model.fixed)
        rows.append(("transactions", Decimal(count), model.fixed, ZERO, fixed, False))
        amount = EXACT.add(amount, fixed)
    if not correction:
        return Rated(amount, paid, rows)
    reason = Adjustment("for the least and largest fee per transaction", correction)
    return Rated(EXACT.add(amount, correction), paid, rows, (reason,))


def _step_text(step: Step) -> str:
    if step.percent:
        words = f"{figure(step.unit)} % of {figure(step.quantity)}"
        return f"{words} + {price_figure(step.flat)}" if step.flat else words
    if not step.unit and (step.flat or not step.quantity):
        return price_figure(step.flat)
    words = f"{figure(step.quantity)} x {price_figure(step.unit)}"
    return f"{words} + {price_figure(step.flat)}" if step.flat else words


def figure(number: Decimal) -> str:
    """A quantity for people: `1,000`, `10.5`, without idle zeros."""
    words = f"{number:,f}"
    return words.rstrip("0").rstrip(".") if "." in words else words


def price_figure(number: Decimal) -> str:
    """A price for people: `12.00`, `0.0095`, with two decimals or as many as it needs."""
    whole, _, decimals = f"{number:,f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"
