"""Quantities from the tables of usage: what `billing.measuring.measured` makes of all points, read as fast as it goes.

A window is used only where all of it lies inside the period and below the cut; elsewhere its rows are read:

    period      |--------------------------------------|
    hours    .......|.......|.......|.......|.......|.......
                 rows  window window  rows^  window  rows
                                          one event beyond the cut

What carries over into a period is everything before it below the same cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.aggregation import Point, to_quantity, window_starts
from billing.measuring import Need, measured
from billing.meter import WindowUnit
from billing.metering import GONE, NOTHING, Aggregation, Measured, Meter
from billing.money import EXACT
from billing.period import Period
from projections.usage import Tx
from projections.usage_statements import (
    AVERAGE,
    BUCKETS,
    BY_LOCAL_WINDOW,
    BY_WINDOW,
    LATEST,
    ONE_BY_ONE,
    PERCENTILE,
    POINTS,
    PRESENT,
    SERIES,
    SERIES_OF_CUSTOMERS,
    UNIQUE,
    WEIGHTED,
)

_HOUR = timedelta(hours=1)
EVER = datetime(1, 1, 1, tzinfo=UTC)
_ZERO = Decimal(0)

Found = dict[int | None, tuple[Decimal, int]]
"""Place of a cell, None for all of them together -> quantity and number of events."""


def totals(tx: Tx, tenant: str, customers: Collection[str], need: Need) -> dict[str, Decimal]:
    """The total that `need` comes to for each of `customers`, all in two statements; who has nothing is missing."""
    series = tx.execute(SERIES_OF_CUSTOMERS, (tenant, list(customers), need.meter.key)).fetchall()
    if not series:
        return {}
    # A total by cell: here each customer is one, whatever dimensions the meter has.
    places = {customer: place for place, customer in enumerate(dict.fromkeys(each for _, each in series))}
    found = _found(
        tx, need, _asked(tenant, need, [number for number, _ in series], [places[each] for _, each in series])
    )
    return {customer: found[place][0] for customer, place in places.items() if place in found}


def measure(tx: Tx, tenant: str, customer: str, need: Need, transactions: Collection[str] | None) -> Measured:
    """What `need` measured; see `usage_read.quantities`."""
    series = tx.execute(SERIES, (tenant, customer, need.meter.key)).fetchall()
    if not series:
        return NOTHING
    cells, of_series = _cells(need.meter, series)
    asked = _asked(tenant, need, [number for number, _, _ in series], of_series)
    if need.held:
        return measured(need, _points(tx, need, asked, cells))
    found = _found(tx, need, asked)
    if None not in found:
        return NOTHING
    total, events = found.pop(None)
    alone = need.meter.aggregation is Aggregation.SUM and (transactions is None or need.meter.key in transactions)
    one_by_one = tx.execute(ONE_BY_ONE, asked | _bounds(need.period)).fetchall() if alone else []
    split = sorted((cells[cell], quantity) for cell, (quantity, _) in found.items() if cell is not None)
    return Measured(
        total=total,
        cells=tuple(split) if need.meter.dimensions else (),
        transactions=tuple(number for (number,) in one_by_one),
        events=events,
    )


def _asked(tenant: str, need: Need, series: list[int], cells: list[int]) -> dict[str, Any]:
    """What every statement is given; `cells`: the place of each of `series`."""
    return {
        "tenant": tenant,
        "series": series,
        "cells": cells,
        "partitions": [each.partition for each in need.positions],
        "offsets": [each.offset for each in need.positions],
    }


def _cells(meter: Meter, series: Sequence[tuple[int, list[str], list[str]]]) -> tuple[list[tuple[str, ...]], list[int]]:
    """The combinations of dimension values, and for each series the place of its own.

    A series that was recorded under other dimensions has empty values for those it lacks.
    """
    places: dict[tuple[str, ...], int] = {}
    of_series = []
    for _, names, values in series:
        known: Mapping[str, str] = dict(zip(names, values, strict=True))
        cell = tuple(known.get(name, "") for name in meter.dimensions)
        of_series.append(places.setdefault(cell, len(places)))
    return list(places), of_series


def _found(tx: Tx, need: Need, asked: dict[str, Any]) -> Found:
    """The quantity of each cell and of all together; nothing where nothing was measured."""
    meter, period = need.meter, need.period
    if meter.window is not None:
        return _by_local_window(tx, need, asked, meter.window)
    match meter.aggregation:
        case Aggregation.UNIQUE:
            first = EVER if meter.carries_over else period.start
            given = asked | _bounds(period) | {"first": first, "gone": GONE}
            return _of(tx, PRESENT if meter.removal else UNIQUE, given)
        case Aggregation.LATEST:
            inside = _of(tx, LATEST, asked | _bounds(period))
            if not meter.carries_over:
                return inside
            before = _of(tx, LATEST, asked | _bounds(_before(period)))
            return {cell: (quantity, 0) for cell, (quantity, _) in before.items()} | inside
        case Aggregation.PERCENTILE:
            return _of(tx, PERCENTILE, asked | _bounds(period) | {"percent": meter.percent})
        case Aggregation.AVERAGE:
            rows = tx.execute(AVERAGE, asked | _hours(period)).fetchall()
            return {cell: (to_quantity(Fraction(total) / events), events) for cell, total, events in rows}
        case Aggregation.WEIGHTED_SUM:
            return _weighted(tx, need, asked)
        case Aggregation.SUM if meter.carries_over:
            inside = _of(tx, BY_WINDOW[Aggregation.SUM], asked | _hours(period))
            return _added(inside, _carried(tx, period, asked))
        case aggregation:
            return _of(tx, BY_WINDOW[aggregation], asked | _hours(period))


def _of(tx: Tx, statement: str, given: Mapping[str, Any]) -> Found:
    return {cell: (quantity, events) for cell, quantity, events in tx.execute(statement, given).fetchall()}


def _before(period: Period) -> Period:
    return Period(EVER, period.start)


def _carried(tx: Tx, period: Period, asked: dict[str, Any]) -> dict[int | None, Decimal]:
    """The level at the period's start."""
    found = _of(tx, BY_WINDOW[Aggregation.SUM], asked | _hours(_before(period)))
    return {cell: level for cell, (level, _) in found.items()}


def _added(inside: Found, carried: Mapping[int | None, Decimal]) -> Found:
    made = {cell: (level, 0) for cell, level in carried.items()}
    for cell, (quantity, events) in inside.items():
        made[cell] = (EXACT.add(carried.get(cell, _ZERO), quantity), events)
    return made


def _weighted(tx: Tx, need: Need, asked: dict[str, Any]) -> Found:
    """The level averaged over the full period, in microseconds until the division."""
    used, whole = need.period, need.full
    carried = _carried(tx, used, asked) if need.meter.carries_over else {}
    inside = _of(tx, WEIGHTED, asked | _bounds(used))
    held = {cell: (EXACT.multiply(level, Decimal(used.microseconds))) for cell, level in carried.items()}
    return {
        cell: (to_quantity(Fraction(microseconds) / whole.microseconds), events)
        for cell, (microseconds, events) in _added(inside, held).items()
    }


def _by_local_window(tx: Tx, need: Need, asked: dict[str, Any], unit: WindowUnit) -> Found:
    """The sum over local windows. Their starts come from `billing`, so that one table of time zones decides."""
    meter, period = need.meter, need.period
    starts = [] if unit is WindowUnit.MINUTE else window_starts(period, unit, meter.zone)
    by_hours = bool(starts) and all(each == _hour_of(each) for each in starts)
    hours = _hours(period) if by_hours else _hours_of_none(period)
    given = asked | _bounds(period) | hours | {"starts": starts, "percent": meter.percent, "first": period.start}
    statement = BY_LOCAL_WINDOW[meter.aggregation].replace("{bucket}", BUCKETS[bool(starts)])
    made: dict[int | None, tuple[Fraction, int]] = {}
    for cell, amount, count, events in tx.execute(statement, given).fetchall():
        sum_of, before = made.get(cell, (Fraction(0), 0))
        made[cell] = (sum_of + Fraction(amount) / count, before + events)
    return {cell: (to_quantity(amount), events) for cell, (amount, events) in made.items()}


def _points(tx: Tx, need: Need, asked: dict[str, Any], cells: Sequence[tuple[str, ...]]) -> Iterable[Point]:
    """The points of the period, and before it those that still say something about its beginning."""
    period = need.period
    given = asked | _bounds(period) | {"first": EVER}
    if need.meter.aggregation is Aggregation.SUM:
        start = period.start - timedelta(microseconds=1)
        for cell, level in _carried(tx, period, asked).items():
            if cell is not None:
                yield Point(start, level, dimensions=cells[cell])
        given["first"] = period.start
    things = need.meter.aggregation is Aggregation.UNIQUE
    for place, (cell, at, number, text) in enumerate(tx.execute(POINTS, given | {"things": things}).fetchall()):
        yield Point(
            at=at,
            value=Decimal(1) if things else number,
            thing=text or "",
            removes=things and number == GONE,
            key=f"{place:012}",
            dimensions=cells[cell],
        )


def _bounds(period: Period) -> dict[str, Any]:
    return {"start": period.start, "end": period.end, "first": period.start}


def _hours(period: Period) -> dict[str, Any]:
    """The whole hours in `period`, and what is left at its edges."""
    first, last = _hour_of(period.start), _hour_of(period.end)
    if first < period.start:
        first += _HOUR
    edges = [(period.start, first), (last, period.end)] if first <= last else [(period.start, period.end)]
    edges = [(start, end) for start, end in edges if start < end]
    return {
        "first_hour": first,
        "last_hour": last,
        "edge_starts": [start for start, _ in edges],
        "edge_ends": [end for _, end in edges],
    }


def _hours_of_none(period: Period) -> dict[str, Any]:
    """No hour as a whole: every row is read."""
    return {
        "first_hour": period.start,
        "last_hour": period.start,
        "edge_starts": [period.start],
        "edge_ends": [period.end],
    }


def _hour_of(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)
