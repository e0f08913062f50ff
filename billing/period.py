"""Periods (interim)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from billing.errors import Rejected


class Alignment(StrEnum):
    """Whether periods start with the calendar or on the anniversary."""

    CALENDAR = "calendar"
    ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class Period:
    """A half-open span `[start, end)` in UTC."""

    start: datetime
    """First instant."""
    end: datetime
    """First instant after it."""

    @property
    def seconds(self) -> int:
        return int((self.end - self.start).total_seconds())

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


@dataclass(frozen=True, slots=True)
class Cadence:
    """The rule that gives a subscription's periods."""

    zone: str
    anchor: datetime
    interval: str = "P1M"
    alignment: Alignment = Alignment.CALENDAR


def check_interval(interval: str, alignment: Alignment, field: str) -> None:
    if interval != "P1M":
        raise Rejected("invalid_interval", "allowed is P1M", field=field)


def full_period(cadence: Cadence, at: datetime) -> Period:
    zone = ZoneInfo(cadence.zone)
    local = at.astimezone(zone)
    start = datetime(local.year, local.month, 1, tzinfo=zone)
    end = datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=zone)
    return Period(start.astimezone(UTC), end.astimezone(UTC))
