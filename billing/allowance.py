"""Allowances: a quantity that covers usage within a window of time, such as 100 units per 5 hours.

    usage        x  x        x              x
    anchored     [--- 5 h ---)   [--- 5 h ---)      a window opens with the first usage that none covers
    aligned    [-- day --)[-- day --)[-- day --)    windows of the local calendar, counted from the period's start

Windows stay within the billing period. One that would leave less than an hour of it runs to the period's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from billing.errors import Rejected
from billing.money import EXACT
from billing.period import Period, add_days, floor

SHORTEST = timedelta(hours=1)
_ZERO = Decimal(0)
_DAYS = {"day": 1, "week": 7}


class Opening(StrEnum):
    """When a window of an allowance begins."""

    FIRST_USAGE = "first_usage"
    CALENDAR = "calendar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How long an allowance lasts."""

    unit: str
    """`hour`, `day`, `week`, or `period` for the whole billing period."""
    count: int = 1
    """How many of them."""
    opening: Opening = Opening.FIRST_USAGE
    """With the first uncovered usage, or aligned to local hours, days or weeks."""
    zone: str = "UTC"
    """IANA zone of the days and weeks."""

    def check(self, path: str) -> None:
        """Refuse a window that could not be opened.

        Raises:
            Rejected: naming the field under `path` and what is allowed.
        """
        if self.unit not in ("hour", "day", "week", "period"):
            raise Rejected("invalid_unit", "allowed are hour, day, week and period", field=f"{path}.unit")
        if self.count < 1:
            raise Rejected("out_of_range", f"{self.count} is no length; allowed is 1 or more", field=f"{path}.count")


@dataclass(frozen=True, slots=True)
class AllowanceStatus:
    """How much of an allowance is gone."""

    remaining: Decimal
    """What it still covers, 0 or more."""
    overage: Decimal
    """What it did not cover, 0 or more."""
    exhausted: bool
    """Whether nothing is left."""


def next_window(
    window: Window, usage: Iterable[datetime], period: Period, *, covered: datetime | None = None
) -> Period | None:
    """The window that the first of `usage` after `covered` opens; None if there is none to cover."""
    start = max(covered or period.start, period.start)
    if window.unit == "period":
        return period if start < period.end else None
    uncovered = [at for at in usage if start <= at < period.end]
    if not uncovered:
        return None
    opened = min(uncovered)
    if window.opening is Opening.CALENDAR:
        opened = max(_aligned(window, opened, period.start), start)
    end = _after(window, opened)
    return Period(opened, period.end if period.end - end < SHORTEST else end)


def windows(
    window: Window, usage: Sequence[datetime], period: Period, *, covered: datetime | None = None
) -> Iterator[Period]:
    """Every window that `usage` opens in `period`, in order."""
    while (found := next_window(window, usage, period, covered=covered)) is not None:
        yield found
        covered = found.end


def status(quota: Decimal, used: Decimal) -> AllowanceStatus:
    """What is left of `quota`, and what exceeds it."""
    left = EXACT.subtract(quota, used)
    return AllowanceStatus(max(left, _ZERO), max(-left, _ZERO), left <= 0)


def together(quotas: Iterable[Decimal | None]) -> Decimal | None:
    """Several allowances of one feature as one: their sum, or None, which is no limit, if one of them has none."""
    total = _ZERO
    for quota in quotas:
        if quota is None:
            return None
        total = EXACT.add(total, quota)
    return total


def _aligned(window: Window, at: datetime, period_start: datetime) -> datetime:
    start = floor(period_start, window.unit, window.zone)
    while (following := _after(window, start)) <= at:
        start = following
    return start


def _after(window: Window, start: datetime) -> datetime:
    if window.unit == "hour":
        return start + timedelta(hours=window.count)
    return add_days(start, _DAYS[window.unit] * window.count, window.zone)
