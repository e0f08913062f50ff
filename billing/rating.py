"""Rating (interim)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from billing.metering import Measured
from billing.price import Charge, Flat, Graduated, Matrix, Package, PerUnit, Volume


@dataclass(frozen=True, slots=True)
class Rated:
    """An exact amount and its arithmetic."""

    amount: Fraction
    text: str


def rate(charge: Charge, measured: Measured) -> Rated:
    q = Fraction(measured.total)
    match charge.model:
        case Flat(amount=a):
            return Rated(Fraction(a), f"{a:,}")
        case PerUnit(unit=u):
            return Rated(q * Fraction(u), f"{measured.total:,} x {u}")
        case Graduated(tiers=tiers):
            amount, parts, low = Fraction(0), [], Fraction(0)
            for t in tiers:
                top = q if t.up_to is None else min(q, Fraction(t.up_to))
                if top > low or (low == 0 and q == 0 and not parts):
                    amount += (top - low) * Fraction(t.unit) + Fraction(t.flat)
                    parts.append(f"{Decimal((top - low).numerator) / (top - low).denominator:,} x {t.unit}")
                    low = top
            return Rated(amount, " + ".join(parts))
        case Volume(tiers=tiers):
            t = next(t for t in tiers if t.up_to is None or q <= Fraction(t.up_to))
            return Rated(q * Fraction(t.unit) + Fraction(t.flat), f"{measured.total:,} x {t.unit}")
        case Package(size=s, price=p):
            n = -(-q // Fraction(s))
            return Rated(n * Fraction(p), f"{n:,} x {p}")
        case Matrix() as m:
            prices = {c.values: c.unit for c in m.cells}
            amount, parts = Fraction(0), []
            for values, quantity in measured.cells:
                unit = prices.get(values, m.default or Decimal(0))
                amount += Fraction(quantity) * Fraction(unit)
                parts.append(f"{quantity:,} x {unit} ({', '.join(values)})")
            return Rated(amount, " + ".join(parts))
