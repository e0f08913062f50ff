"""Discounts: what coupons take off the rounded lines of an invoice (SEMANTICS 4, 23).

    scoped coupons, then percentages, then fixed amounts; in each group the oldest first

Each coupon counts on what the ones before it have left, is rounded once and allocated over its lines by largest
remainder. A line never falls below zero, and a credit is not discounted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.errors import Rejected
from billing.money import Money, exponent


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupon:
    """A discount of a percentage or of a fixed amount."""

    code: str
    """Unique in the price book."""
    percent: Decimal | None = None
    """Percent off, above 0 up to 100; null for a fixed amount."""
    invoices: int | None = None
    """On how many invoices it gives a discount; null for ever."""
    amount: Decimal | None = None
    """Fixed amount off each invoice, in major units; null for a percentage."""
    currency: str | None = None
    """ISO 4217 code of the fixed amount; invoices in another currency get nothing. Null for a percentage."""
    charges: tuple[str, ...] = ()
    """Keys of the charges that it is limited to; empty for the whole invoice."""
    carry_over: bool = False
    """Whether what is left of a fixed amount is kept for the next invoice."""
    plans: tuple[str, ...] = ()
    """Keys of the plans that it is limited to; empty for all."""

    @property
    def scoped(self) -> bool:
        """Whether it is limited to some charges or plans."""
        return bool(self.charges or self.plans)

    def takes(self, charge: str, plan: str) -> bool:
        """Whether it counts on a line of that charge and plan."""
        return (not self.charges or charge in self.charges) and (not self.plans or plan in self.plans)

    def lasts(self, invoices: int) -> bool:
        """Whether it still gives a discount after so many discounted invoices."""
        return self.invoices is None or invoices < self.invoices

    def check(self, path: str) -> None:
        """Refuse a coupon that cannot be applied.

        Raises:
            Rejected: naming the field under `path` and what is allowed.
        """
        if (self.percent is None) == (self.amount is None):
            raise Rejected("missing", "a coupon needs either a percentage or an amount", field=f"{path}.percent")
        if self.percent is not None and not (self.percent.is_finite() and 0 < self.percent <= 100):
            raise Rejected(
                "out_of_range",
                f"{self.percent} % is no discount; allowed is above 0 up to 100",
                field=f"{path}.percent",
            )
        if self.amount is not None:
            if not (self.amount.is_finite() and self.amount > 0):
                raise Rejected("out_of_range", f"{self.amount} is not above 0", field=f"{path}.amount")
            exponent(self.currency or "", f"{path}.currency")
        if self.invoices is not None and self.invoices < 1:
            raise Rejected("out_of_range", f"{self.invoices} invoices; allowed is 1 or more", field=f"{path}.invoices")
        if self.carry_over and self.amount is None:
            raise Rejected("unexpected", "only a fixed amount leaves a remainder", field=f"{path}.carry_over")


class CouponOrder(StrEnum):
    """In which order coupons apply."""

    STANDARD = "standard"
    OLDEST_FIRST = "oldest_first"


@dataclass(frozen=True, slots=True)
class Discount:
    """What one coupon takes off each line."""

    coupon: Coupon
    """The coupon."""
    amounts: tuple[Money, ...]
    """Per line, 0 or more."""

    @property
    def total(self) -> Money:
        """Sum over the lines."""
        return sum(self.amounts[1:], self.amounts[0])


def discounts(
    coupons: Sequence[Coupon],
    amounts: Sequence[Money],
    charges: Sequence[str] = (),
    left: Mapping[str, Money] | None = None,
    *,
    plans: Sequence[str] = (),
    order: CouponOrder = CouponOrder.STANDARD,
) -> tuple[Discount, ...]:
    """What each of `coupons` (oldest first) takes off the lines, in the order in which they apply.

    `charges` and `plans` name those of each line, for coupons that are limited to some; `left` is what remains of fixed
    amounts that carry over, by code. A coupon that takes nothing off is left out.
    """
    made: list[Discount] = []
    nobody = [""] * len(amounts)
    named = list(zip(charges or nobody, plans or nobody, strict=True))
    open_amounts = [max(amount, Money.zero(amount.currency)) for amount in amounts]
    for coupon in in_order(coupons, order):
        eligible = [coupon.takes(charge, plan) for charge, plan in named]
        bases = [amount.minor if takes else 0 for amount, takes in zip(open_amounts, eligible, strict=True)]
        if not any(bases):
            continue
        total = Money(sum(bases), amounts[0].currency)
        taken = coupon_amount(coupon, total, (left or {}).get(coupon.code))
        if not taken:
            continue
        parts = taken.allocate(bases)
        open_amounts = [amount - part for amount, part in zip(open_amounts, parts, strict=True)]
        made.append(Discount(coupon, parts))
    return tuple(made)


def in_order(coupons: Sequence[Coupon], order: CouponOrder = CouponOrder.STANDARD) -> list[Coupon]:
    """Scoped ones first, then percentages, then fixed amounts; otherwise as given, which is oldest first.

    A tenant may have percentages and fixed amounts apply as they come, so that 10 off comes before 20 % if it is older.
    """
    if order is CouponOrder.OLDEST_FIRST:
        return sorted(coupons, key=lambda coupon: not coupon.scoped)
    return sorted(coupons, key=lambda coupon: 0 if coupon.scoped else 1 if coupon.percent is not None else 2)


def coupon_amount(coupon: Coupon, total: Money, left: Money | None = None) -> Money:
    """What `coupon` takes off a total of 0 or more: rounded once, never above the total, nor above `left`."""
    if coupon.percent is not None:
        exact = Fraction(total.major()) * Fraction(coupon.percent) / 100
        return min(Money.from_major(exact, total.currency), total)
    assert coupon.amount is not None
    if coupon.currency != total.currency:
        return Money.zero(total.currency)
    fixed = left if left is not None else Money.from_major(coupon.amount, total.currency)
    return min(fixed, total)
