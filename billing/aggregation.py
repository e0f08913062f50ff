"""Aggregations: from points in time to one exact quantity per meter (SEMANTICS 14, 15).

The order in which points arrive never matters: what depends on time sorts by it, and points of one instant by their
key. Filters come first; a quantity can be split by the values of dimensions, and by windows of local time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

from billing.errors import Rejected
from billing.meter import Aggregation
from billing.money import EXACT, half_up
from billing.period import Period, floor
from billing.proration import ProrationUnit, fraction

ZERO = Decimal(0)
SCALE = 12  # decimals that a quotient keeps if it does not end (SEMANTICS 1)
_STEPS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1, hours=2),
    "week": timedelta(days=7, hours=2),
    "month": timedelta(days=31, hours=2),
}
"""Long enough to reach into the next window, short enough not to pass it."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one event adds to a meter."""

    at: datetime
    """When (UTC)."""
    value: Decimal = Decimal(1)
    """The number that is aggregated; a change of the level for a weighted sum."""
    thing: str = ""
    """What is counted by `UNIQUE`."""
    removes: bool = False
    """Whether the thing is gone from then on."""
    key: str = ""
    """Breaks the tie between points of one instant."""
    dimensions: tuple[str, ...] = ()
    """Values by which the quantity can be split."""


@dataclass(frozen=True, slots=True)
class Window:
    """A quantity of one window of time."""

    period: Period
    """The window."""
    value: Decimal | Fraction
    """What was measured in it."""


def measure(
    aggregation: Aggregation,
    points: Iterable[Point],
    period: Period,
    *,
    carried: Decimal = ZERO,
    percent: Decimal = ZERO,
) -> Decimal | Fraction:
    """The quantity of those `points` that lie in `period`; without any, what was carried over.

    `carried` is the level at the period's start of a meter that carries over: it counts for sums and weighted sums.
    `percent` chooses the percentile.
    """
    inside = sorted((point for point in points if point.at in period), key=_order)
    values = [point.value for point in inside]
    match aggregation:
        case Aggregation.COUNT:
            return Decimal(len(inside))
        case Aggregation.SUM:
            return _total([carried, *values])
        case Aggregation.MAX:
            return max(values, default=ZERO)
        case Aggregation.MIN:
            return min(values, default=ZERO)
        case Aggregation.LATEST:
            return values[-1] if values else ZERO
        case Aggregation.UNIQUE:
            return Decimal(len(present(inside)))
        case Aggregation.AVERAGE:
            return Fraction(_total(values)) / len(values) if values else ZERO
        case Aggregation.PERCENTILE:
            return percentile(values, percent)
        case Aggregation.WEIGHTED_SUM:
            return weighted_sum(inside, period, period, carried=carried)


def present(points: Iterable[Point], before: Iterable[str] = ()) -> frozenset[str]:
    """The things that are there after all `points`; removing one that is not there changes nothing."""
    things = set(before)
    for point in sorted(points, key=_order):
        if point.removes:
            things.discard(point.thing)
        else:
            things.add(point.thing)
    return frozenset(things)


def percentile(values: Sequence[Decimal], percent: Decimal) -> Decimal:
    """The nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    Raises:
        Rejected: the percentage is not above 0 up to 100.
    """
    if not 0 < percent <= 100:
        raise Rejected("out_of_range", f"{percent} is no percentile; allowed is above 0 up to 100", field="percent")
    if not values:
        return ZERO
    rank = -(-Fraction(percent) * len(values) // 100)
    return sorted(values)[int(rank) - 1]


def weighted_sum(
    points: Iterable[Point],
    used: Period,
    whole: Period,
    *,
    carried: Decimal = ZERO,
    by: ProrationUnit = ProrationUnit.SECOND,
    zone: str = "UTC",
) -> Fraction:
    """The level averaged over `whole`: every change counts for the share of it that is left from the change on.

    By day, the day of a change counts with the changed level. `used` ends early if the subscription did.
    """
    level = Fraction(carried) * fraction(used, whole, by=by, zone=zone)
    for point in points:
        if point.at in used:
            level += Fraction(point.value) * fraction(Period(point.at, used.end), whole, by=by, zone=zone)
    return level


def split(points: Iterable[Point], by: Callable[[Point], tuple[str, ...]]) -> Mapping[tuple[str, ...], list[Point]]:
    """The points per combination of values, sorted: dimensions, or a band of the day from `time_of_day`."""
    cells: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        cells.setdefault(by(point), []).append(point)
    return dict(sorted(cells.items()))


def time_of_day(bands: Sequence[tuple[int, str]], zone: str) -> Callable[[Point], tuple[str, ...]]:
    """The name of the band that holds a point's local hour, for prices by time of day.

    `bands` name the hour at which each begins, ascending: `[(8, "peak"), (20, "off-peak")]`; before the first one
    the last one still holds.
    """
    local = ZoneInfo(zone)

    def band(point: Point) -> tuple[str, ...]:
        hour = point.at.astimezone(local).hour
        name = bands[-1][1]
        for begins, each in bands:
            if begins <= hour:
                name = each
        return (name,)

    return band


def windows(
    aggregation: Aggregation,
    points: Iterable[Point],
    period: Period,
    unit: str,
    zone: str,
    *,
    percent: Decimal = ZERO,
) -> tuple[Window, ...]:
    """The quantity of each local minute, hour, day, week or month that holds a point of `period`.

    Windows are whole: one at the edge keeps its own length, though only points of `period` count in it.
    """
    cells: dict[datetime, list[Point]] = {}
    for point in points:
        if point.at in period:
            cells.setdefault(window_start(point.at, unit, zone), []).append(point)
    made = []
    for start, inside in sorted(cells.items()):
        window = Period(start, next_window(start, unit, zone))
        made.append(Window(window, measure(aggregation, inside, window, percent=percent)))
    return tuple(made)


def window_start(instant: datetime, unit: str, zone: str) -> datetime:
    """The start of the local minute, hour, day, week or month that holds `instant`."""
    if unit == "minute":
        return instant.replace(second=0, microsecond=0)
    return floor(instant, unit, zone)


def next_window(start: datetime, unit: str, zone: str) -> datetime:
    """The start of the window after the one that begins at `start`."""
    step = _STEPS[unit]
    found = window_start(start + step, unit, zone)
    # An hour in which clocks go back by half of one is longer than its step.
    return found if found > start else window_start(start + step + step, unit, zone)


def window_starts(period: Period, unit: str, zone: str) -> list[datetime]:
    """The starts of all windows that hold a part of `period`, ascending."""
    starts = [window_start(period.start, unit, zone)]
    while (following := next_window(starts[-1], unit, zone)) < period.end:
        starts.append(following)
    return starts


def sum_of_windows(found: Iterable[Window]) -> Decimal | Fraction:
    """What a meter of windows amounts to, such as the sum of the daily maxima."""
    values = [each.value for each in found]
    whole = _total([value for value in values if isinstance(value, Decimal)])
    parts = [value for value in values if isinstance(value, Fraction)]
    return sum(parts, Fraction(whole)) if parts else whole


def to_quantity(number: Decimal | Fraction) -> Decimal:
    """`number` as a quantity: exact, or where its decimals do not end 12 of them, half up, away from zero."""
    if isinstance(number, Decimal):
        return number
    scaled = Decimal(half_up(number * 10**SCALE))
    shortest = scaled.normalize(EXACT)
    exponent = shortest.as_tuple().exponent
    assert isinstance(exponent, int)
    return EXACT.scaleb(shortest, -SCALE) if exponent < SCALE else Decimal(int(scaled) // 10**SCALE)


def by_dimensions(points: Iterable[Point]) -> Mapping[tuple[str, ...], list[Point]]:
    """The points per combination of dimension values, sorted."""
    return split(points, lambda point: point.dimensions)


def _order(point: Point) -> tuple[datetime, str]:
    return (point.at, point.key)


def _total(values: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for value in values:
        total = EXACT.add(total, value)
    return total
