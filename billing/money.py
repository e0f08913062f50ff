"""Money: an integer of minor units with its currency (SEMANTICS 1 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.errors import CurrencyMismatch, Rejected

EXPONENTS = {"USD": 2, "EUR": 2, "GBP": 2, "JPY": 0, "KWD": 3, "CLF": 4, "CHF": 2}


def exponent(currency: str, field: str = "currency") -> int:
    """Digits of `currency` after the point.

    Raises:
        Rejected: ISO 4217 has no such code.
    """
    if currency not in EXPONENTS:
        raise Rejected("unknown_currency", f"{currency!r} is not an ISO 4217 code such as USD", field=field)
    return EXPONENTS[currency]


def half_up(amount: Fraction) -> int:
    """The nearest integer; halves go away from zero."""
    whole = (2 * abs(amount.numerator) + amount.denominator) // (2 * amount.denominator)
    return whole if amount >= 0 else -whole


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of `currency`, counted in its minor unit (cents, yen, fils)."""

    minor: int
    """Minor units (ISO 4217); negative for a credit."""
    currency: str
    """ISO 4217 code."""

    @classmethod
    def zero(cls, currency: str) -> Money:
        return cls(0, currency)

    @classmethod
    def from_major(cls, amount: Decimal | Fraction | int, currency: str) -> Money:
        return cls(half_up(Fraction(amount) * 10 ** exponent(currency)), currency)

    def major(self) -> Decimal:
        return Decimal(self.minor).scaleb(-exponent(self.currency))

    def allocate(self, weights: Sequence[int]) -> tuple[Money, ...]:
        total = sum(weights)
        sign = -1 if self.minor < 0 else 1
        shares = [divmod(abs(self.minor) * weight, total) for weight in weights]
        left = abs(self.minor) - sum(share for share, _ in shares)
        order = sorted(range(len(weights)), key=lambda i: (-shares[i][1], i))[:left]
        return tuple(Money(sign * (share + (i in order)), self.currency) for i, (share, _) in enumerate(shares))

    def __add__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.minor + other.minor, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.minor - other.minor, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.minor, self.currency)

    def __lt__(self, other: Money) -> bool:
        self._same(other)
        return self.minor < other.minor

    def __gt__(self, other: Money) -> bool:
        return other < self

    def __str__(self) -> str:
        return f"{self.major():,f}"

    def _same(self, other: Money) -> None:
        if other.currency != self.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency}")
