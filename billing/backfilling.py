"""Backfilling a meter: events that were counted before it was changed count as it is defined now.

usage log     e e e e e e e e e e N e e e e e
definition    |------- old -------|-- new -->     without: each event meets the definition in force at its place
after N       |------- new -------|-- new -->     with it, for events of the span; cuts below N keep what they had
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from billing.errors import Rejected
from billing.tenant import Registered


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillMeter:
    """Have events that were counted before count for a meter as it is defined now."""

    meter: str
    """Key of the meter."""
    from_time: datetime
    """First event time."""
    to_time: datetime | None = None
    """First event time beyond; null: every event that came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterBackfillOrdered:
    """Events that were counted before count for a meter as it is defined now."""

    meter: str
    """Key of the meter."""
    from_time: datetime
    """First event time (UTC)."""
    to_time: datetime | None = None
    """First event time (UTC) beyond; null: every event that came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """Which events before a control record count for a meter as the record defines it."""

    meter: str
    """Key of the meter."""
    from_time: datetime
    """First event time (UTC)."""
    to_time: datetime | None = None
    """First event time (UTC) beyond; null: every event that came before."""


def backfill_meter(
    state: Registered, meters: Collection[str], command: BackfillMeter, now: datetime
) -> Sequence[MeterBackfillOrdered]:
    """The fact that follows from `command`. `meters`: keys of all that the tenant ever had.

    Raises:
        Rejected: there is no such meter, or the span is empty or older than what is known one by one.
    """
    if command.meter not in meters:
        known = ", ".join(sorted(meters)) or "none"
        raise Rejected("unknown_meter", f"no meter is called {command.meter!r}; known: {known}", field="meter")
    begin = command.from_time.astimezone(UTC)
    end = None if command.to_time is None else command.to_time.astimezone(UTC)
    if end is not None and end <= begin:
        raise Rejected("out_of_range", f"{end.isoformat()}: allowed is a time after `from_time`", field="to_time")
    if begin < (earliest := earliest_time(state, now)):
        detail = (
            f"events before {earliest.isoformat()} are not known one by one any more; allowed is that time or later"
        )
        raise Rejected("too_early", detail, field="from_time")
    return [MeterBackfillOrdered(meter=command.meter, from_time=begin, to_time=end)]


def earliest_time(state: Registered, now: datetime) -> datetime:
    """The earliest event time that a backfill may begin with: older events may be beyond the dedupe horizon."""
    return now - timedelta(days=state.settings.bounds.oldest_days)
