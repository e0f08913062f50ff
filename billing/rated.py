"""What a charge costs, and the arithmetic that explains it to a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from billing.money import EXACT, WIDE
from billing.price import ZERO

_TWELVE = Decimal(1).scaleb(-12)
EXACT_DECIMALS_MAX = 60  # of a product of quantity, price and percentages; `held.DECIMALS` are more

Row = tuple[str, Decimal, Decimal, Decimal, Decimal, bool]
"""A step as a plain tuple: label, quantity, price per unit or percent, flat, amount, whether it is a percentage."""


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
    parts: Sequence[Row] | Callable[[], Sequence[Row]]
    """The parts as plain tuples, or what lists them: most lines are never explained."""
    adjustments: tuple[Adjustment, ...] = ()
    """What changed the amount after the steps."""

    @property
    def rows(self) -> Sequence[Row]:
        """The parts, in the order of a `Step`'s fields."""
        return self.parts() if callable(self.parts) else self.parts

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
        return self.said(price_figure)

    def said(self, price: Callable[[Decimal], str]) -> str:
        """The arithmetic, with each price and amount as `price` writes it."""
        parts = [_step_text(step, price) for step in self.steps] or ["0"]
        words = " + ".join(parts)
        for each in self.adjustments:
            sign = "-" if each.amount < 0 else "+"
            words += f" {sign} {price(abs(each.amount))} {each.reason}"
        return words


def _step_text(step: Step, price: Callable[[Decimal], str]) -> str:
    if step.percent:
        words = f"{figure(step.unit)} % of {figure(step.quantity)}"
        return f"{words} + {price(step.flat)}" if step.flat else words
    if not step.unit and (step.flat or not step.quantity):
        return price(step.flat)
    words = f"{figure(step.quantity)} x {price(step.unit)}"
    words = f"{words} + {price(step.flat)}" if step.flat else words
    capped = step.amount < EXACT.fma(step.quantity, step.unit, step.flat)
    return f"({words}, at most {price(step.amount)})" if capped else words


def figure(number: Decimal) -> str:
    """A quantity for people: `1,000`, `10.5`, without idle zeros."""
    words = f"{shown(number):,f}"
    return words.rstrip("0").rstrip(".") if "." in words else words


def price_figure(number: Decimal) -> str:
    """A price for people: `12.00`, `0.0095`, with two decimals or as many as it needs."""
    whole, _, decimals = f"{shown(number):,f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def shown(number: Decimal) -> Decimal:
    """`number` as it is; only a share of time without an end, kept to many decimals, is shown to 12 of them."""
    exponent = number.as_tuple().exponent
    endless = isinstance(exponent, int) and exponent < -EXACT_DECIMALS_MAX
    return number.quantize(_TWELVE, ROUND_HALF_UP, WIDE) if endless else number
