"""What an answer about windows of local time is put together from: sums by day, hourly windows, and rows.

    windows     |--------- one ---------|--------- next ---------|
    slots     .....|....|....|....|....|....|....|....|....|
              rows^  slices of sums    ^rows     ^ until: from here on hours instead of slots

A slot, or an hour, is used where it lies within one window; the rows decide where a boundary cuts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from projections.usage_rollup import DAY

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass(slots=True)
class Cover:
    """Each instant of the windows once."""

    slices: list[tuple[int, date, int, int]] = field(default_factory=list)
    """(Window from 1 on, day, slots of the day before the slice, those up to its end)."""
    hours: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Spans of whole hours."""
    edges: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Spans of which the rows decide."""

    def given(self) -> dict[str, Any]:
        """As the statements take it."""
        return {
            "windows": [window for window, *_ in self.slices],
            "days": [day for _, day, _, _ in self.slices],
            "afters": [after for *_, after, _ in self.slices],
            "uptos": [upto for *_, upto in self.slices],
            "first_day": min((day for _, day, _, _ in self.slices), default=None),
            "last_day": max((day for _, day, _, _ in self.slices), default=None),
            "hour_starts": [start for start, _ in self.hours],
            "hour_ends": [end for _, end in self.hours],
            "edge_starts": [start for start, _ in self.edges],
            "edge_ends": [end for _, end in self.edges],
        }


def cover(starts: Sequence[datetime], end: datetime, until: datetime, slots: int) -> Cover:
    """Of windows that begin at `starts`, up to `end`. Sums of so many `slots` a day go up to `until`."""
    made = Cover()
    width = DAY / slots
    for place, start in enumerate(starts):
        stop = starts[place + 1] if place + 1 < len(starts) else end
        for span, unit in (((start, min(stop, until)), width), ((max(start, until), stop), HOUR)):
            first, last = up(span[0], unit), down(span[1], unit)
            if first >= last:
                _add(made.edges, span)
                continue
            _add(made.edges, (span[0], first))
            if unit is width:
                made.slices += _slices(place + 1, first, last, width)
            else:
                _add(made.hours, (first, last))
            _add(made.edges, (last, span[1]))
    return made


def _slices(window: int, first: datetime, last: datetime, width: timedelta) -> Iterator[tuple[int, date, int, int]]:
    at = first
    while at < last:
        day = down(at, DAY)
        stop = min(day + DAY, last)
        yield window, day.date(), (at - day) // width, (stop - day) // width
        at = stop


def _add(spans: list[tuple[datetime, datetime]], span: tuple[datetime, datetime]) -> None:
    """Spans that meet are one: whose window a row is in, its time tells."""
    if span[0] >= span[1]:
        return
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)


def outwards(spans: Sequence[tuple[datetime, datetime]], until: datetime, slots: int) -> Cover:
    """Whole slots and hours that hold all of `spans`: to tell how many rows there are."""
    made, at = Cover(), datetime.min.replace(tzinfo=UTC)
    for start, end in spans:
        wide = cover([max(down(start, HOUR), at)], up(end, HOUR), until, slots)
        at = max(at, up(end, HOUR))
        made.slices += wide.slices
        made.hours += wide.hours
    return made


def down(instant: datetime, unit: timedelta) -> datetime:
    """The last multiple of `unit` that is not after it."""
    return EPOCH + (instant - EPOCH) // unit * unit


def up(instant: datetime, unit: timedelta) -> datetime:
    """The first multiple of `unit` that is not before it."""
    return EPOCH - (EPOCH - instant) // unit * unit
