"""Proration: which part of a full period's price a span costs, as an exact fraction.

      |---------------- whole ----------------|
                    |------- used -------|            fraction = used / whole

By elapsed time unless the plan chooses days (SEMANTICS 11). Amounts are rounded by whoever bills them, so the
fractions of adjoining spans always add up to the fraction of their union.
"""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from zoneinfo import ZoneInfo

from billing.errors import Rejected
from billing.period import Period


class ProrationUnit(StrEnum):
    """What a partial period is measured in."""

    SECOND = "second"
    DAY = "day"


def fraction(used: Period, whole: Period, *, by: ProrationUnit = ProrationUnit.SECOND, zone: str = "UTC") -> Fraction:
    """The share of `whole` that `used` is; above 1 for a span longer than the full period.

    By day: local days in `zone` whose first instant lies in the span, so that the day of a change counts once, for
    the state that it changes to, and a day of 23 or 25 hours is one day.

    Raises:
        Rejected: the full period holds no local midnight, so it cannot be split by days.
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
