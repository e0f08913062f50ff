"""Quantities: from what a meter measured to what is priced (SEMANTICS 14: convert, round, free units)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from fractions import Fraction

from billing.metering import Measured
from billing.money import EXACT, WIDE, half_up
from billing.price import ZERO, Conversion, ConversionOperation, QuantityRounding

SCALE = 12  # decimals that a quotient keeps if it does not end (SEMANTICS 1)
_MODES = {
    QuantityRounding.UP: ROUND_CEILING,
    QuantityRounding.DOWN: ROUND_FLOOR,
    QuantityRounding.HALF_UP: ROUND_HALF_UP,
}


def rounded(quantity: Decimal, rounding: QuantityRounding, precision: int = 0) -> Decimal:
    """`quantity` with at most `precision` decimals, unless it is not to be rounded."""
    if rounding is QuantityRounding.NONE:
        return quantity
    return quantity.quantize(Decimal(1).scaleb(-precision), _MODES[rounding], WIDE)


def convert(quantity: Decimal, conversion: Conversion) -> Decimal:
    """`quantity` in the priced unit; a quotient that does not end is kept to 12 decimals, half up."""
    return converter(conversion)(quantity)


def converter(conversion: Conversion) -> Callable[[Decimal], Decimal]:
    """`convert` for one conversion and many quantities."""
    rounding, precision = conversion.rounding, conversion.precision
    factor = Fraction(conversion.factor)
    if conversion.operation is ConversionOperation.DIVIDE:
        factor = 1 / factor
    ending = _ending(factor)
    if ending is not None:
        return lambda quantity: rounded(EXACT.multiply(quantity, ending), rounding, precision)
    if rounding is QuantityRounding.NONE:
        return lambda quantity: _to_scale(Fraction(quantity) * factor, QuantityRounding.HALF_UP, SCALE)
    return lambda quantity: _to_scale(Fraction(quantity) * factor, rounding, precision)


def after_free_units(quantity: Decimal, free: Decimal, already: Decimal = ZERO) -> Decimal:
    """What is left to be priced of `quantity` if the `already` measured units took free ones before."""
    left = max(EXACT.subtract(free, already), ZERO)
    return max(EXACT.subtract(quantity, left), ZERO)


def regrouped(measured: Measured, have: Sequence[str], want: Sequence[str]) -> Measured:
    """`measured`, split by the dimensions `have`, split by `want` instead: some of them, in any order.

    Only what adds up (a count, a sum) can be split by fewer dimensions; a level that is held over time cannot.
    """
    if tuple(have) == tuple(want) or not want:
        return measured
    places = [have.index(name) for name in want]
    cells: dict[tuple[str, ...], Decimal] = {}
    for values, units in measured.cells:
        key = tuple(values[place] for place in places)
        cells[key] = EXACT.add(cells.get(key, ZERO), units)
    held = {tuple(values[place] for place in places): changes for values, changes in measured.held_cells}
    return replace(measured, cells=tuple(sorted(cells.items())), held_cells=tuple(sorted(held.items())))


def _ending(number: Fraction) -> Decimal | None:
    """`number` as a decimal; None if its decimals do not end."""
    rest = number.denominator
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    fives = 0
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    if rest != 1:
        return None
    digits = max(twos, fives)
    return EXACT.scaleb(Decimal(number.numerator * 10**digits // number.denominator), -digits)


def _to_scale(number: Fraction, rounding: QuantityRounding, precision: int) -> Decimal:
    scaled = number * 10**precision
    if rounding is QuantityRounding.UP:
        whole = -(-scaled.numerator // scaled.denominator)
    elif rounding is QuantityRounding.DOWN:
        whole = scaled.numerator // scaled.denominator
    else:
        whole = half_up(scaled)
    return EXACT.scaleb(Decimal(whole), -precision)
