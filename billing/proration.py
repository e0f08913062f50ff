"""Proration: which part of a full period's price a span costs, as an exact fraction.

      |---------------- whole ----------------|
                    |------- used -------|            fraction = used / whole

By elapsed time unless the plan chooses days (SEMANTICS 11). Amounts are rounded by whoever bills them, so the
fractions of adjoining spans always add up to the fraction of their union.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from zoneinfo import ZoneInfo

from billing.errors import Rejected
from billing.money import Money, exponent, half_up
from billing.period import Cadence, Period, add_interval, full_period, periods


class ProrationUnit(StrEnum):
    """What a partial period is measured in."""

    SECOND = "second"
    DAY = "day"


class Proration(StrEnum):
    """What a plan charges for a part of a period (SEMANTICS 11)."""

    SECOND = "second"
    DAY = "day"
    NONE = "none"


def share(used: Period, whole: Period, rule: Proration, zone: str) -> Fraction:
    """The exact part of the full price of `whole` that `used` costs under a plan's rule; `none` charges all of it."""
    if rule is Proration.NONE:
        return Fraction(1)
    return fraction(used, whole, by=ProrationUnit(rule), zone=zone)


def fraction(used: Period, whole: Period, *, by: ProrationUnit = ProrationUnit.SECOND, zone: str = "UTC") -> Fraction:
    """The share of `whole` that `used` is; above 1 for a span longer than the full period.

    By day: local days in `zone` from the date of the start to the date of the end, so that the day of a change counts
    once, for the state that it changes to, and a day of 23 or 25 hours is one day.

    Raises:
        Rejected: the full period ends on the day it starts, so it cannot be split by days.
    """
    if by is ProrationUnit.SECOND:
        return Fraction(used.microseconds, whole.microseconds)
    days = local_days(whole, zone)
    if days == 0:
        raise Rejected("no_days", f"a period of {whole.seconds} seconds holds no day; allowed is proration by second")
    return Fraction(local_days(used, zone), days)


def local_days(span: Period, zone: str) -> int:
    """Calendar days in `zone` between the dates of both ends of `span`."""
    local = ZoneInfo(zone)
    return (span.end.astimezone(local).date() - span.start.astimezone(local).date()).days


def to_decimals(share: Fraction, decimals: int) -> Decimal:
    """`share` rounded half up, for tenants that bill with rounded fractions."""
    return Decimal(half_up(share * 10**decimals)).scaleb(-decimals)


def fixed_month_days(span: Period, days: int, zone: str) -> int:
    """The days of `span` if every month had `days` days: a month end within it counts as that many days would."""
    local = ZoneInfo(zone)
    start, end = span.start.astimezone(local).date(), span.end.astimezone(local).date()
    count = (end - start).days
    if (start.year, start.month) == (end.year, end.month):
        return count
    return count - (monthrange(start.year, start.month)[1] - days)


def prorate(
    fee: Money, parts: Sequence[Period], *, by: ProrationUnit = ProrationUnit.SECOND, zone: str = "UTC"
) -> tuple[Money, ...]:
    """Divide `fee` between adjoining `parts` of its period.

    The parts always add up to `fee`: any number of changes can neither lose nor invent a cent.
    """
    weights = [part.microseconds if by is ProrationUnit.SECOND else local_days(part, zone) for part in parts]
    if not any(weights):
        raise Rejected("no_time", "spans of no length cannot share a fee; allowed is one of some length")
    return fee.allocate(weights)


def settled(parts: Sequence[Fraction], currency: str) -> tuple[Money, ...]:
    """`parts`, exact amounts in major units of either sign, as money whose sum is the exact sum, rounded half up.

    Each is its exact amount rounded down; the minor units left over go one each to the largest remainders, earlier
    parts first, so none is more than a minor unit off.
    """
    unit = 10 ** exponent(currency)
    exact = [part * unit for part in parts]
    below = [each.numerator // each.denominator for each in exact]
    left = half_up(sum(exact, Fraction(0))) - sum(below)
    winners = set(sorted(range(len(exact)), key=lambda i: (below[i] - exact[i], i))[:left])
    return tuple(Money(whole + (i in winners), currency) for i, whole in enumerate(below))


@dataclass(frozen=True, slots=True)
class Change:
    """What a change within a period, paid in advance, gives back and costs."""

    remaining: Fraction
    """Share of the full period that is left from the change on."""
    credit: Money
    """Given back for the old price; zero or above."""
    charge: Money
    """Charged for the new price; zero or above."""

    @property
    def net(self) -> Money:
        """What is to be paid; negative for a credit."""
        return self.charge - self.credit


def change(
    old: Money,
    new: Money,
    period: Period,
    at: datetime,
    *,
    by: ProrationUnit = ProrationUnit.SECOND,
    zone: str = "UTC",
    credited: Money | None = None,
) -> Change:
    """A change from the billed `old` to the price `new` of the same full period; each side is rounded once.

    `credited` was given back for the old price before (SEMANTICS 22).
    """
    at = min(max(at, period.start), period.end)
    remaining = fraction(Period(at, period.end), period, by=by, zone=zone)
    zero = Money.zero(old.currency)
    part = Money.from_major(Fraction(old.major()) * remaining, old.currency)
    return Change(
        remaining,
        cap_credit(part, old, credited if credited is not None else zero),
        Money.from_major(Fraction(new.major()) * remaining, new.currency),
    )


def cap_credit(credit: Money, billed: Money, credited: Money) -> Money:
    """`credit`, but never below zero nor above what was billed less what was credited before (SEMANTICS 22)."""
    zero = Money.zero(credit.currency)
    return max(min(credit, billed - credited), zero)


def leading_fraction(used: Period, interval: str, *, by: ProrationUnit = ProrationUnit.DAY, zone: str) -> Fraction:
    """The share of a first partial period: of the full interval that ends where it ends."""
    return fraction(used, Period(add_interval(used.end, interval, -1, zone), used.end), by=by, zone=zone)


def trailing_fraction(used: Period, interval: str, *, by: ProrationUnit = ProrationUnit.DAY, zone: str) -> Fraction:
    """The share of a last partial period: of the full interval that starts where it starts."""
    return fraction(used, Period(used.start, add_interval(used.start, interval, 1, zone)), by=by, zone=zone)


def billed_shares(
    cadence: Cadence,
    start: datetime,
    end: datetime | None,
    until: datetime,
    *,
    by: ProrationUnit = ProrationUnit.DAY,
    in_advance: bool = True,
) -> Iterable[Fraction]:
    """The share of each period that a fee is billed for by `until`: partial, whole ones, partial.

    In advance that are the periods that begin by then, in arrears those that end.
    """
    for period in periods(cadence, start, until + timedelta(microseconds=1)):
        if end is not None and period.start >= end:
            return
        if not in_advance and (period.end if end is None else min(period.end, end)) > until:
            return
        if end is not None and end < period.end:
            yield trailing_fraction(Period(period.start, end), cadence.interval, by=by, zone=cadence.zone)
        elif full_period(cadence, period.start).start == period.start:
            yield Fraction(1)
        else:
            yield leading_fraction(period, cadence.interval, by=by, zone=cadence.zone)
