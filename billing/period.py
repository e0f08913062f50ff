"""Periods: half-open spans of time, and the cadence that gives a subscription's billing periods.

Boundary n is `anchor + n intervals` on the local calendar of an IANA zone, clamped to the length of the month and
always counted from the original anchor, then turned into an instant (SEMANTICS 7 to 10):

    anchor Jan 31, P1M      Jan 31   Feb 28   Mar 31   Apr 30 ...
    instants in UTC         |--------|--------|--------|-----

`full_period` answers both "what is the period" and "which boundary is due next": its end.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from billing.errors import Rejected

_MICROSECOND = timedelta(microseconds=1)
_DAYS_PER_MONTH = Fraction(146_097, 4_800)  # of the Gregorian calendar: 400 years have 146,097 days
_INTERVAL = re.compile(r"P(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?\Z", re.ASCII)


class Alignment(StrEnum):
    """Whether periods start with the calendar or on the anniversary."""

    CALENDAR = "calendar"
    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open span `[start, end)` in UTC. The end instant belongs to the next period."""

    start: datetime
    """First instant (UTC)."""
    end: datetime
    """First instant after it (UTC)."""

    def __post_init__(self) -> None:
        assert self.start.utcoffset() == timedelta(0)
        assert self.end.utcoffset() == timedelta(0)
        assert self.start <= self.end

    @property
    def microseconds(self) -> int:
        """Elapsed time, exact."""
        return (self.end - self.start) // _MICROSECOND

    @property
    def seconds(self) -> int | Fraction:
        """Elapsed seconds, exact: a whole number wherever there is one."""
        exact = Fraction(self.microseconds, 1_000_000)
        return exact.numerator if exact.denominator == 1 else exact

    @classmethod
    def between(cls, start: datetime, end: datetime, field: str = "period") -> Period:
        """The span that a person named.

        Raises:
            Rejected: an end has no offset, or the end is before the start; it names `field`.
        """
        if start.tzinfo is None or end.tzinfo is None:
            raise Rejected("invalid_time", "a time needs an offset, such as 2026-02-01T00:00:00Z", field=field)
        if end < start:
            raise Rejected("end_before_start", f"{end} is before {start}; allowed is the start or later", field=field)
        return cls(start.astimezone(UTC), end.astimezone(UTC))

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end

    def overlap(self, other: Period) -> Period | None:
        """The span that lies in both; None if they do not meet or only touch."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Period(start, end) if start < end else None

    def split(self, *instants: datetime) -> tuple[Period, ...]:
        """The adjoining spans between those of `instants` that lie inside; zero-length spans are left out."""
        cuts = [self.start, *sorted({each for each in instants if self.start < each < self.end}), self.end]
        return tuple(Period(a, b) for a, b in pairwise(cuts))


@dataclass(frozen=True, slots=True)
class Interval:
    """A length on the calendar: months of their own length and days of 23 to 25 hours."""

    months: int
    days: int


_UNITS = {
    "day": Interval(0, 1),
    "week": Interval(0, 7),
    "month": Interval(1, 0),
    "quarter": Interval(3, 0),
    "half_year": Interval(6, 0),
    "year": Interval(12, 0),
}
_HOLDS = tuple(_UNITS)  # each of them whole ones of those before it, but for months, which are compared with no days


@dataclass(frozen=True, slots=True)
class Cadence:
    """The rule that gives a subscription's periods."""

    zone: str
    """IANA zone of its boundaries."""
    anchor: datetime
    """Local date-time without offset from which every boundary is computed."""
    interval: str = "P1M"
    """ISO 8601 duration of whole years, months, weeks and days."""
    alignment: Alignment = Alignment.CALENDAR
    """Calendar periods start at the day, Monday, month, quarter, half-year or year that holds the anchor."""
    day: int | None = None
    """Day of the month, 1 to 31, on which boundaries fall instead of the anchor's; clamped where a month is shorter."""


def full_period(cadence: Cadence, at: datetime) -> Period:
    """The whole billing period that holds the instant `at`; its end is the next boundary.

    Raises:
        Rejected: the cadence's zone or interval is not a usable one.
    """
    n = _index(cadence, at)  # of two boundaries at one instant, around a day that the zone skipped, the later one
    return Period(boundary(cadence, n), boundary(cadence, n + 1))


def periods(cadence: Cadence, start: datetime, until: datetime) -> Iterator[Period]:
    """The adjoining periods from `start` that begin before `until`; the first is partial if `start` is no boundary."""
    while start < until:
        end = full_period(cadence, start).end
        yield Period(start, end)
        start = end


def period_from(cadence: Cadence, start: datetime) -> Period:
    """The period that begins at `start`, which an earlier cadence may have left off this one's grid.

    A start on the anchor's day (day of the month, weekday) keeps that day and runs for a whole interval; any other
    runs to the next boundary. So a monthly subscription that turns half-yearly on 1 September ends on 1 March.
    A calendar plan has no day to keep: it always runs to the calendar's next boundary.
    """
    if cadence.alignment is Alignment.CALENDAR:
        return Period(start, full_period(cadence, start).end)
    aligned = _aligned(cadence)
    interval = parse_interval(cadence.interval)
    single = Cadence(cadence.zone, aligned, _unit(interval), Alignment.ANCHOR, cadence.day)
    date = start.astimezone(ZoneInfo(cadence.zone)).date()
    below = _index(single, start)
    n = next((n for n in (below, below + 1) if _local(boundary(single, n), cadence.zone).date() == date), None)
    if n is None or date < aligned.date():
        return Period(start, full_period(cadence, start).end)
    count = interval.months or interval.days
    if single.interval == "P1W":
        count //= 7
    return Period(start, boundary(single, n + count))


def boundary(cadence: Cadence, n: int) -> datetime:
    """The instant (UTC) at which period `n` starts; period 0 starts at the anchor, or the calendar unit around it."""
    return _instant(_step(cadence, parse_interval(cadence.interval), n), cadence.zone)


@lru_cache(maxsize=256)
def parse_interval(interval: str, field: str = "interval") -> Interval:
    """`interval` as months and days.

    Raises:
        Rejected: it is no ISO 8601 duration of whole years, months, weeks and days above zero; it names `field`.
    """
    match = _INTERVAL.match(interval)
    years, months, weeks, days = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    parsed = Interval(12 * years + months, 7 * weeks + days)
    if parsed.months + parsed.days == 0:
        raise Rejected(
            "invalid_interval", f"{interval[:20]!r} is not an ISO 8601 duration such as P1M, P2W or P1Y", field=field
        )
    return parsed


def check_interval(interval: str, alignment: Alignment, field: str) -> None:
    """Refuse an interval that gives no billing periods, or none that a calendar could start.

    Raises:
        Rejected: naming `field` and what is allowed.
    """
    parsed = parse_interval(interval, field)
    if alignment is Alignment.CALENDAR and parsed.months and parsed.days:
        raise Rejected(
            "invalid_interval", f"{interval} mixes months and days; a calendar plan allows one of them", field=field
        )


def multiple(interval: str, of: str, alignment: Alignment) -> int | None:
    """How many periods of `of` make up each one of `interval`, whatever the anchor; None if their boundaries differ."""
    longer, shorter = parse_interval(interval), parse_interval(of)
    if longer.months * shorter.days != longer.days * shorter.months:
        return None
    count, rest = divmod(longer.months or longer.days, shorter.months or shorter.days)
    if rest:
        return None
    if alignment is Alignment.CALENDAR:
        outer, inner = _calendar_unit(longer), _calendar_unit(shorter)
        holds = _HOLDS.index(outer) > _HOLDS.index(inner) and shorter == _UNITS[inner]
        if outer != inner and not holds:
            return None
    return count


def check_cadence(cadence: Cadence, path: str) -> None:
    """Refuse a cadence that gives no billing periods.

    Raises:
        Rejected: naming the field under `path`.
    """
    check_zone(cadence.zone, f"{path}.zone")
    check_interval(cadence.interval, cadence.alignment, f"{path}.interval")
    if cadence.anchor.tzinfo is not None:
        raise Rejected("invalid_time", "the anchor is a local date-time without offset", field=f"{path}.anchor")
    check_day(cadence, f"{path}.day")


def check_day(cadence: Cadence, field: str) -> None:
    """Refuse a billing day that there is not, or that the cadence has no use for.

    Raises:
        Rejected: naming `field` and what is allowed.
    """
    if cadence.day is None:
        return
    if cadence.alignment is Alignment.CALENDAR:
        raise Rejected("unexpected", "a calendar plan starts on its calendar's first day", field=field)
    if not 1 <= cadence.day <= 31:
        raise Rejected("out_of_range", f"{cadence.day} is no day of a month; allowed is 1 to 31", field=field)
    if not parse_interval(cadence.interval).months:
        raise Rejected("unexpected", "only intervals of months or years have a billing day", field=field)


def check_zone(zone: str, field: str) -> None:
    """Refuse a time zone that is not in the IANA database.

    Raises:
        Rejected: naming `field`.
    """
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as e:  # not found is a KeyError
        raise Rejected("unknown_zone", f"{zone[:60]!r} is no IANA zone such as Europe/Berlin", field=field) from e


def add_days(instant: datetime, days: int, zone: str) -> datetime:
    """The instant `days` calendar days later at the same local time."""
    local = _local(instant, zone)
    return _instant(local + timedelta(days=days), zone)


def add_interval(instant: datetime, interval: str, n: int, zone: str) -> datetime:
    """The instant `n` intervals later (or earlier) on the local calendar, clamped to the length of the month."""
    local = _local(instant, zone)
    return boundary(Cadence(zone, local, interval, Alignment.ANCHOR), n)


def moved(period: Period, old_zone: str, new_zone: str) -> Period:
    """The running period once its customer lives in another zone: it starts where the last one ended (SEMANTICS 8).

    It ends at the same local date and time, of the new zone; so no instant is billed twice or left out.
    """
    end = _instant(_local(period.end, old_zone), new_zone)
    return Period(period.start, max(end, period.start))


def floor(instant: datetime, unit: str, zone: str) -> datetime:
    """The start of the local hour, day, week (Monday), month, quarter, half-year or year that holds `instant`."""
    local = instant.astimezone(ZoneInfo(zone))
    if unit == "hour":
        return (local.replace(minute=0, second=0, microsecond=0)).astimezone(UTC)
    return _instant(_floor(local.replace(tzinfo=None), unit), zone)


def _instant(local: datetime, zone: str) -> datetime:
    """The instant of a local time: the first of two, and past the gap by as much as it would have been into it."""
    return local.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(UTC)


def _local(instant: datetime, zone: str) -> datetime:
    return instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def _index(cadence: Cadence, at: datetime) -> int:
    """The largest n whose boundary is not after `at`: estimated by the calendar, then corrected."""
    interval = parse_interval(cadence.interval)
    anchor = _aligned(cadence)
    local = _local(at, cadence.zone)
    n = int((local - anchor).days / (interval.months * _DAYS_PER_MONTH + interval.days))
    while boundary(cadence, n) > at:
        n -= 1
    while boundary(cadence, n + 1) <= at:
        n += 1
    return n


def _step(cadence: Cadence, interval: Interval, n: int) -> datetime:
    anchor = _aligned(cadence)
    months = anchor.year * 12 + anchor.month - 1 + n * interval.months
    year, month = months // 12, months % 12 + 1
    clamped = anchor.replace(year=year, month=month, day=min(cadence.day or anchor.day, monthrange(year, month)[1]))
    return clamped + timedelta(days=n * interval.days)


def _aligned(cadence: Cadence) -> datetime:
    if cadence.alignment is Alignment.ANCHOR:
        return cadence.anchor
    return _floor(cadence.anchor, _calendar_unit(parse_interval(cadence.interval)))


def _calendar_unit(interval: Interval) -> str:
    """The unit of the calendar with which periods of that length start."""
    if interval.months:
        names = {3: "quarter", 6: "half_year"}
        return "year" if interval.months % 12 == 0 else names.get(interval.months, "month")
    return "week" if interval.days % 7 == 0 else "day"


def _floor(local: datetime, unit: str) -> datetime:
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    match unit:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month" | "quarter" | "half_year" | "year":
            months = {"month": 1, "quarter": 3, "half_year": 6, "year": 12}[unit]
            return day.replace(month=(day.month - 1) // months * months + 1, day=1)
        case _:
            raise Rejected("invalid_unit", "allowed are hour, day, week, month, quarter, half_year and year")


def _unit(interval: Interval) -> str:
    if interval.months and interval.days:
        return f"P{interval.months}M{interval.days}D"
    if interval.months:
        return "P1M"
    return "P1W" if interval.days % 7 == 0 else "P1D"
