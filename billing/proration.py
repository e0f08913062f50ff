"""Proration by elapsed time (interim)."""

from __future__ import annotations

from fractions import Fraction

from billing.period import Period


def fraction(used: Period, whole: Period) -> Fraction:
    return Fraction(used.seconds, whole.seconds)
