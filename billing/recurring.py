"""Recurring units: seats or gigabytes that are held over time and priced by tiers.

    units held        7 ───────┐        full units choose the tiers (a sixth seat is a sixth seat for its first day),
    5 ─────┘                   └── 3    prorated units are priced; units that leave do so from the top

Flat fees are never prorated: they are owed up to the highest tier that was reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from billing.aggregation import Point
from billing.metering import Change as Change
from billing.money import EXACT
from billing.period import Period
from billing.price import ZERO, Tier
from billing.proration import ProrationUnit, fraction


def held(
    points: Iterable[Point],
    used: Period,
    whole: Period,
    *,
    carried: Decimal = ZERO,
    by: ProrationUnit = ProrationUnit.SECOND,
    zone: str = "UTC",
) -> tuple[Change, ...]:
    """The changes of a level within `used`, in order of time, after what was carried over."""
    start = Change(carried, Fraction(carried) * fraction(used, whole, by=by, zone=zone))
    made = [start] if carried else []
    for point in sorted(points, key=lambda each: (each.at, each.key)):
        if point.at in used:
            share = fraction(Period(point.at, used.end), whole, by=by, zone=zone)
            made.append(Change(point.value, Fraction(point.value) * share))
    return tuple(made)


def held_things(
    points: Iterable[Point],
    used: Period,
    whole: Period,
    *,
    carried: Iterable[str] = (),
    by: ProrationUnit = ProrationUnit.SECOND,
    zone: str = "UTC",
) -> tuple[Change, ...]:
    """The changes of the number of things that are there. By day, a thing counts through the day it leaves.

    Adding what is there or removing what is not changes nothing.
    """
    there = set(carried)
    made = list(held((), used, whole, carried=Decimal(len(there)), by=by, zone=zone))
    for point in sorted(points, key=lambda each: (each.at, each.key)):
        if point.at not in used or (point.thing in there) != point.removes:
            continue
        sign = -1 if point.removes else 1
        starts = _next_day(point.at, zone) if point.removes and by is ProrationUnit.DAY else point.at
        share = fraction(Period(min(starts, used.end), used.end), whole, by=by, zone=zone)
        made.append(Change(Decimal(sign), sign * share))
        if point.removes:
            there.discard(point.thing)
        else:
            there.add(point.thing)
    return tuple(made)


def never_less(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Changes of a level that is paid in advance: only what exceeds the highest level so far counts.

    Units that leave give nothing back within the period, and units that come back in their place cost nothing.
    """
    made: list[Change] = []
    level = highest = ZERO
    for change in changes:
        level = EXACT.add(level, change.units)
        if level > highest:
            new = EXACT.subtract(level, highest)
            made.append(Change(new, change.prorated * Fraction(new) / Fraction(change.units)))
            highest = level
    return tuple(made)


def rate_held(tiers: Sequence[Tier], changes: Sequence[Change]) -> Fraction:
    """What the held units cost, exact."""
    parts, highest = parts_by_tier(tiers, changes)
    amount = sum((part * Fraction(tier.unit) for part, tier in zip(parts, tiers, strict=True)), Fraction(0))
    return amount + sum((Fraction(tier.flat) for tier in _reached(tiers, highest)), Fraction(0))


def parts_by_tier(tiers: Sequence[Tier], changes: Sequence[Change]) -> tuple[list[Fraction], Decimal]:
    """The prorated units in each tier, and the highest level."""
    parts = [Fraction(0)] * len(tiers)
    level = highest = ZERO
    for change in changes:
        if not change.units:
            continue
        after = EXACT.add(level, change.units)
        share = change.prorated / Fraction(change.units) * (1 if change.units > 0 else -1)
        for index, units in _between(tiers, min(level, after), max(level, after)):
            parts[index] += Fraction(units) * share
        level = after
        highest = max(highest, level)
    return parts, highest


def prorated_units(changes: Iterable[Change]) -> Fraction:
    """The level averaged over the full period."""
    return sum((change.prorated for change in changes), Fraction(0))


def _between(tiers: Sequence[Tier], low: Decimal, high: Decimal) -> Iterable[tuple[int, Decimal]]:
    """The parts of `(low, high]` by place of the tier."""
    start = low
    for index, tier in enumerate(tiers):
        end = high if tier.up_to is None else min(high, tier.up_to)
        if end > start:
            yield index, EXACT.subtract(end, start)
            start = end


def _reached(tiers: Sequence[Tier], highest: Decimal) -> Sequence[Tier]:
    if highest <= 0:
        return ()
    count = next(i for i, tier in enumerate(tiers) if tier.up_to is None or highest <= tier.up_to)
    return tiers[: count + 1]


def _next_day(instant: datetime, zone: str) -> datetime:
    local = ZoneInfo(zone)
    date = instant.astimezone(local).date() + timedelta(days=1)
    return datetime(date.year, date.month, date.day, tzinfo=local).astimezone(instant.tzinfo)
