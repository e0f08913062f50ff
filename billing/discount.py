"""Coupons (interim)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.errors import Rejected
from billing.money import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupon:
    """A discount."""

    code: str
    """Unique in the price book."""
    percent: Decimal | None = None
    """0 to 100."""
    invoices: int | None = None
    """On how many invoices; null for ever."""

    def lasts(self, invoices: int) -> bool:
        return self.invoices is None or invoices < self.invoices

    def check(self, path: str) -> None:
        if self.percent is None or not 0 < self.percent <= 100:
            raise Rejected("out_of_range", "allowed is above 0 up to 100", field=f"{path}.percent")


@dataclass(frozen=True, slots=True)
class Discount:
    """What a coupon takes off each line."""

    coupon: Coupon
    amounts: tuple[Money, ...]


def discounts(coupons: Sequence[Coupon], amounts: Sequence[Money]) -> tuple[Discount, ...]:
    made = []
    left = list(amounts)
    for coupon in coupons:
        if not left:
            continue
        total = sum((m.minor for m in left if m.minor > 0), 0)
        if total == 0:
            continue
        currency = left[0].currency
        taken = Money.from_major(Fraction(Money(total, currency).major()) * Fraction(coupon.percent or 0) / 100, currency)
        parts = taken.allocate([max(m.minor, 0) for m in left])
        left = [a - b for a, b in zip(left, parts, strict=True)]
        made.append(Discount(coupon, parts))
    return tuple(made)
