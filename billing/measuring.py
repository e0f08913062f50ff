"""Measuring: from the points of a meter to what rating needs of them. The law that every store of usage keeps to.

before the period      |------------- period -------------|
. .  .    .   .        | .   .  ..     .    .        .    |     points below the cut
carried over, if so    |      aggregated, split, held     |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from billing.aggregation import (
    ZERO,
    Point,
    by_dimensions,
    measure,
    present,
    sum_of_windows,
    to_quantity,
    weighted_sum,
    windows,
)
from billing.metering import NOTHING, Aggregation, Change, Measured, Meter
from billing.money import EXACT
from billing.period import Period
from billing.proration import ProrationUnit
from billing.recurring import held, held_things
from billing.run import PartitionPosition


@dataclass(frozen=True, slots=True)
class Need:
    """A quantity that a run asks for: what `meter` measured in `period` below `positions`."""

    meter: Meter
    period: Period
    positions: tuple[PartitionPosition, ...]
    whole: Period | None = None
    """The full period that a level is averaged over, if the meter measures one; None for `period` itself."""
    held: bool = False
    """Whether the changes of the level are asked for, because units are priced by how long they are held."""
    by: ProrationUnit = ProrationUnit.SECOND
    """What that time is counted in."""
    zone: str = "UTC"
    """In which days are counted."""

    @property
    def full(self) -> Period:
        """The span that a level is averaged over."""
        return self.whole or self.period


def measured(need: Need, points: Iterable[Point], *, one_by_one: bool = False) -> Measured:
    """What `points`, all of the meter below the cut, come to. Their order does not matter.

    `one_by_one` adds the value of each event, for prices per transaction.
    """
    meter, period = need.meter, need.period
    counted = sorted(
        (each for each in points if each.at < period.end and (meter.carries_over or each.at >= period.start)),
        key=lambda each: (each.at, each.key),
    )
    if not counted:
        return NOTHING
    if meter.removal is None:
        counted = [replace(each, removes=False) if each.removes else each for each in counted]
    inside = [each for each in counted if each.at >= period.start]
    cells = by_dimensions(counted) if meter.dimensions else {}
    return Measured(
        total=_quantity(need, counted),
        cells=tuple((cell, _quantity(need, own)) for cell, own in cells.items()),
        transactions=tuple(each.value for each in inside) if one_by_one else (),
        events=len(inside),
        held=_held(need, counted) if need.held else None,
        held_cells=tuple((cell, _held(need, own)) for cell, own in cells.items()) if need.held else (),
    )


def _quantity(need: Need, points: Sequence[Point]) -> Decimal:
    """The quantity of `points`, in order: those of the period, after those that carry over into it."""
    meter, period = need.meter, need.period
    percent = meter.percent or ZERO
    if meter.window is not None:
        found = windows(meter.aggregation, points, period, meter.window, meter.zone, percent=percent)
        return to_quantity(sum_of_windows(found))
    if meter.aggregation is Aggregation.UNIQUE:
        return Decimal(len(present(points)))
    if meter.aggregation is Aggregation.LATEST:
        return points[-1].value
    carried = _total(each.value for each in points if each.at < period.start)
    if meter.aggregation is Aggregation.WEIGHTED_SUM:
        return to_quantity(weighted_sum(points, period, need.full, carried=carried))
    return to_quantity(measure(meter.aggregation, points, period, carried=carried, percent=percent))


def _held(need: Need, points: Sequence[Point]) -> tuple[Change, ...]:
    """How the level changed in the period, after what was carried over into it."""
    before = [each for each in points if each.at < need.period.start]
    inside = points[len(before) :]
    span, whole, by, zone = need.period, need.full, need.by, need.zone
    match need.meter.aggregation:
        case Aggregation.UNIQUE:
            return held_things(inside, span, whole, carried=present(before), by=by, zone=zone)
        case Aggregation.LATEST:
            return held(_steps(points)[len(before) :], span, whole, carried=_level(before), by=by, zone=zone)
        case _:
            return held(inside, span, whole, carried=_total(each.value for each in before), by=by, zone=zone)


def _steps(points: Sequence[Point]) -> list[Point]:
    """Levels, as the changes between them."""
    levels = [ZERO, *(each.value for each in points)]
    return [replace(each, value=EXACT.subtract(each.value, was)) for each, was in zip(points, levels, strict=False)]


def _level(points: Sequence[Point]) -> Decimal:
    return points[-1].value if points else ZERO


def _total(values: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for value in values:
        total = EXACT.add(total, value)
    return total
