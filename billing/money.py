"""Money: an integer of minor units with its currency, and the one place where an amount is rounded.

Prices and line amounts are exact (`Decimal`, `Fraction`); they become `Money` once, half up away from
zero (SEMANTICS 1 to 4). Arithmetic that must stay exact goes through `EXACT`, which refuses to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import (
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from fractions import Fraction
from math import lcm

from billing.errors import CurrencyMismatch, Rejected

# Two factors of decimal(38, 12), the log's own limit, have 76 digits; the rest is room for sums.
EXACT = Context(prec=1000, Emax=10_000, Emin=-10_000, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
"""Decimal arithmetic that is exact or raises; use its methods, as in `EXACT.multiply(quantity, price)`."""

WIDE = Context(prec=1000, rounding=ROUND_HALF_UP, Emax=10_000, Emin=-10_000, traps=[InvalidOperation])
"""Room for any amount, so that nothing is rounded but what is asked to be: a context for plain operators."""

# Minor units of ISO 4217 (list one, amendment 176). Everything in `_TWO` has two digits after the point.
_NONE = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_FOUR = "CLF UYW"
_TWO = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY
COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS
INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR
MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP
STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG
"""
EXPONENTS: dict[str, int] = {
    code: digits for digits, codes in ((0, _NONE), (2, _TWO), (3, _THREE), (4, _FOUR)) for code in codes.split()
}
"""Digits after the point per ISO 4217 code."""


def exponent(currency: str, field: str = "currency") -> int:
    """Digits of `currency` after the point.

    Raises:
        Rejected: ISO 4217 has no such code; it names `field`.
    """
    digits = EXPONENTS.get(currency)
    if digits is None:
        raise Rejected("unknown_currency", f"{currency!r} is not an ISO 4217 code such as USD", field=field)
    return digits


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
        """Nothing, in `currency`."""
        return cls(0, currency)

    @classmethod
    def from_major(cls, amount: Decimal | Fraction | int, currency: str) -> Money:
        """`amount` of major units (dollars, yen), rounded once, half up away from zero.

        Raises:
            Rejected: the currency is unknown, or the amount is no finite number.
        """
        digits = exponent(currency)
        if isinstance(amount, Decimal):
            return cls(to_minor(amount, digits), currency)
        if not isinstance(amount, int | Fraction):
            raise TypeError(f"money is made of Decimal, Fraction or int, not {type(amount).__name__}")
        return cls(half_up(Fraction(amount) * 10**digits), currency)

    @classmethod
    def exactly(cls, amount: Decimal, currency: str, field: str = "amount") -> Money:
        """`amount` of major units, which is not rounded.

        Raises:
            Rejected: the currency is unknown, or the amount is finer than it; naming `field`.
        """
        made = cls.from_major(amount, currency)
        if made.major() != amount:
            said = f"{amount} is finer than {currency} is; allowed are {exponent(currency)} decimals"
            raise Rejected("too_precise", said, field=field)
        return made

    def major(self) -> Decimal:
        """The amount in major units, exact, with the currency's digits."""
        return EXACT.scaleb(Decimal(self.minor), -exponent(self.currency))

    def allocate(self, weights: Sequence[int | Decimal | Fraction]) -> tuple[Money, ...]:
        """Split into parts proportional to `weights` whose sum is exactly `self`.

        Each part is its exact share rounded down; the minor units left over go one each to the parts with
        the largest remainders, earlier parts first (Hamilton's method). A credit is the mirror image of the
        same charge.

        Raises:
            ValueError: a weight is negative, or all weights are zero.
        """
        integral = _integers(weights)
        total = sum(integral)
        if total == 0 or min(integral) < 0:
            raise ValueError("allowed are weights of 0 or more, of which at least one is above 0")
        sign = -1 if self.minor < 0 else 1
        shares = [divmod(abs(self.minor) * weight, total) for weight in integral]
        left = abs(self.minor) - sum(share for share, _ in shares)
        winners = set(sorted(range(len(shares)), key=lambda i: (-shares[i][1], i))[:left])
        return tuple(Money(sign * (share + (i in winners)), self.currency) for i, (share, _) in enumerate(shares))

    def times(self, factor: int | Decimal | Fraction) -> Money:
        """The amount times `factor`, rounded once, half up away from zero."""
        return Money(half_up(self.minor * Fraction(factor)), self.currency)

    def __add__(self, other: Money) -> Money:
        self._require(other)
        return Money(self.minor + other.minor, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._require(other)
        return Money(self.minor - other.minor, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.minor, self.currency)

    def __abs__(self) -> Money:
        return Money(abs(self.minor), self.currency)

    def __bool__(self) -> bool:
        return self.minor != 0

    def __lt__(self, other: Money) -> bool:
        self._require(other)
        return self.minor < other.minor

    def __le__(self, other: Money) -> bool:
        self._require(other)
        return self.minor <= other.minor

    def __gt__(self, other: Money) -> bool:
        self._require(other)
        return self.minor > other.minor

    def __ge__(self, other: Money) -> bool:
        self._require(other)
        return self.minor >= other.minor

    def __str__(self) -> str:
        return text(self)

    def _require(self, other: Money) -> None:
        if other.currency != self.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency} do not mix")


def text(money: Money) -> str:
    """The amount as `1,234.56`, with the currency's digits and without its code."""
    return f"{money.major():,f}"


def to_minor(amount: Decimal, digits: int) -> int:
    """`amount` of major units as a whole number of units with `digits` decimals, half up away from zero.

    Raises:
        Rejected: it is no finite number.
    """
    try:
        return int(_scale(amount.quantize(_UNITS[digits], ROUND_HALF_UP, WIDE), digits))
    except InvalidOperation as e:  # no number, or one of more than a thousand digits
        if not amount.is_finite():
            raise Rejected("not_a_number", f"{amount} is no amount; allowed is a finite decimal", field="amount") from e
        return half_up(Fraction(amount) * 10**digits)
    except ValueError as e:
        raise Rejected("not_a_number", f"{amount} is no amount; allowed is a finite decimal", field="amount") from e


_scale = EXACT.scaleb
_UNITS = tuple(Decimal(1).scaleb(-digits) for digits in range(5))


def _integers(weights: Sequence[int | Decimal | Fraction]) -> list[int]:
    """Integers in the same proportion as `weights`."""
    if all(isinstance(weight, int) for weight in weights):
        return [int(weight) for weight in weights] or [0]
    fractions = [Fraction(weight) for weight in weights]
    scale = lcm(*(each.denominator for each in fractions))
    return [int(each * scale) for each in fractions]
