"""Reading usage: exact quantities up to a cut, late usage, what changed. Every call sees the transaction's snapshot.

A window is used only where all of it lies inside the period and below the cut; elsewhere its rows are read:

    period      |--------------------------------------|
    hours    .......|.......|.......|.......|.......|.......
                 rows  window window  rows^  window  rows
                                          one event beyond the cut
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import NOTHING, Aggregation, Measured, Meter
from billing.period import Period
from projections import generation
from projections.usage import SET, TOPIC, Tx

_HOUR = timedelta(hours=1)


def quantities(
    tx: Tx,
    tenant: TenantId,
    customer: CustomerId,
    needs: Sequence[Need],
    *,
    transactions: Collection[str] | None = None,
) -> dict[Need, Measured]:
    """What each need measured, exact (SEMANTICS 15, 16). A partition that a cut does not name holds nothing below it.

    `transactions`: keys of the meters whose events are priced one by one; None: of all that sum. Those are read row by
    row, all others by windows.
    """
    return {need: _measure(tx, tenant, customer, need, transactions) for need in dict.fromkeys(needs)}


def current(tx: Tx, tenant: TenantId, customer: CustomerId, meter: Meter, period: Period) -> Measured:
    """What `meter` measured in `period` by now, without the events' own values."""
    number = generation.current(tx, SET)
    stored = generation.checkpoints(tx, SET, number, TOPIC)
    positions = tuple(PartitionPosition(partition=each, offset=stored[each]) for each in sorted(stored))
    return _measure(tx, tenant, customer, Need(meter, period, positions), ())


def has_late(
    tx: Tx,
    tenant: TenantId,
    customer: CustomerId,
    period: Period,
    since: Sequence[PartitionPosition],
    until: Sequence[PartitionPosition],
) -> bool:
    """Whether usage of `period` lies from `since` on and below `until`: it came after the period's last cut."""
    row = tx.execute(
        _LATE,
        {
            "tenant": tenant,
            "customer": customer,
            "start": period.start,
            "end": period.end,
            "since_partitions": [each.partition for each in since],
            "since_offsets": [each.offset for each in since],
            "partitions": [each.partition for each in until],
            "offsets": [each.offset for each in until],
        },
    ).fetchone()
    assert row is not None
    return bool(row[0])


def passed(tx: Tx, positions: Sequence[PartitionPosition]) -> bool:
    """Whether the current generation holds everything below `positions`."""
    stored = generation.checkpoints(tx, SET, generation.current(tx, SET), TOPIC)
    return all(stored.get(each.partition, 0) >= each.offset for each in positions)


def measured_from(tx: Tx, tenant: TenantId) -> dict[int, int]:
    """Partition -> version of the control record by which it measures the tenant; without one, usage is refused."""
    return dict(
        tx.execute(
            "SELECT partition, version FROM usage_control WHERE tenant_id = %s ORDER BY partition", (tenant,)
        ).fetchall()
    )


@dataclass(frozen=True, slots=True)
class FateCounts:
    """What became of a tenant's events; `counted` includes those that no subscription bills."""

    received: int
    counted: int
    duplicate: int
    conflict: int
    rejected: int


def fates(tx: Tx) -> dict[str, FateCounts]:
    """What became of all events so far, by tenant; under the empty name, of those that do not tell their tenant."""
    rows = tx.execute(
        """
        SELECT tenant_id, sum(received)::bigint, sum(counted)::bigint, sum(duplicate)::bigint,
               sum(conflict)::bigint, sum(rejected)::bigint
          FROM usage_fate
         GROUP BY tenant_id
        """
    ).fetchall()
    return {tenant: FateCounts(*counts) for tenant, *counts in rows}


@dataclass(frozen=True, slots=True)
class Changed:
    """A customer's usage of a meter changed."""

    tenant: TenantId
    customer: CustomerId
    meter: str
    version: int
    """Grows with every change of this row, in every generation."""


def changed(tx: Tx, mark: int) -> tuple[list[Changed], int]:
    """What changed since `mark` (0: ever), by version, and the mark to ask with next time.

    The mark is the oldest transaction still open, so no change is missed, though one may come again: publish absolute
    values, and never an older version over a newer one.
    """
    row = tx.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
    assert row is not None
    rows = tx.execute(_CHANGED, (str(mark),)).fetchall()
    return [Changed(*each) for each in rows], int(row[0])


_CHANGED = """
SELECT tenant_id, customer_id, meter, version
  FROM usage_changed
 WHERE changed_in >= %s::xid8
 ORDER BY version
"""


def _measure(tx: Tx, tenant: str, customer: str, need: Need, transactions: Collection[str] | None) -> Measured:
    meter = need.meter
    series = tx.execute(_SERIES, (tenant, customer, meter.key)).fetchall()
    if not series:
        return NOTHING
    cells, of_series = _cells(meter, series)
    asked = {
        "tenant": tenant,
        "series": [number for number, _, _ in series],
        "cells": of_series,
        "start": need.period.start,
        "end": need.period.end,
        "partitions": [each.partition for each in need.positions],
        "offsets": [each.offset for each in need.positions],
    }
    one_by_one: tuple[Decimal, ...] = ()
    match meter.aggregation:
        case Aggregation.UNIQUE:
            rows = tx.execute(_UNIQUE, asked).fetchall()
        case Aggregation.LATEST:
            rows = tx.execute(_LATEST, asked).fetchall()
        case aggregation:
            rows = tx.execute(_BY_WINDOW[aggregation], asked | _hours(need.period)).fetchall()
            if aggregation is Aggregation.SUM and (transactions is None or meter.key in transactions):
                one_by_one = tuple(number for (number,) in tx.execute(_ONE_BY_ONE, asked).fetchall())
    by_cell = {cell: (quantity, events) for cell, quantity, events in rows}
    if None not in by_cell:
        return NOTHING
    total, events = by_cell.pop(None)
    split = sorted((cells[cell], quantity) for cell, (quantity, _) in by_cell.items()) if meter.dimensions else ()
    return Measured(total=total, cells=tuple(split), transactions=one_by_one, events=events)


_SERIES = """
SELECT series, dimension_names, dimension_values
  FROM usage_series
 WHERE tenant_id = %s AND customer_id = %s AND meter = %s
 ORDER BY series
"""


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


def _hour_of(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


_ASKED = """
WITH cut AS (SELECT * FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[]) AS c (partition, below)),
     asked AS (SELECT * FROM unnest(%(series)s::bigint[], %(cells)s::integer[]) AS a (series, cell)),
"""

# Every row of the period below the cut.
_ROWS = (
    _ASKED
    + """
     rows AS (
         SELECT a.cell, v.event_time, v.number, v.text_value, v.partition, v.record_offset, v.batch_index
           FROM asked a
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = a.series
           JOIN cut c ON c.partition = v.partition AND v.record_offset < c.below
          WHERE v.event_time >= %(start)s AND v.event_time < %(end)s)
"""
)

_UNIQUE = (
    _ROWS
    + """
SELECT cell, count(DISTINCT text_value)::numeric, count(*)
  FROM rows
 WHERE text_value IS NOT NULL
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)

# The last in time; of several at one instant the one that stands last in the log.
_LATEST = (
    _ROWS
    + """
SELECT cell,
       trim_scale((array_agg(number
                             ORDER BY event_time DESC, partition DESC, record_offset DESC, batch_index DESC))[1]),
       count(*)
  FROM rows
 WHERE number IS NOT NULL
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)

_ONE_BY_ONE = (
    _ROWS
    + """
SELECT trim_scale(number)
  FROM rows
 WHERE number IS NOT NULL
 ORDER BY event_time, partition, record_offset, batch_index
"""
)

_WINDOWS = (
    _ASKED
    + """
     windows AS (
         SELECT a.cell, w.*, c.below
           FROM asked a
           JOIN usage_window w ON w.tenant_id = %(tenant)s AND w.series = a.series
           JOIN cut c ON c.partition = w.partition AND w.first_offset < c.below
          WHERE w.hour >= %(first_hour)s AND w.hour < %(last_hour)s AND w.total IS NOT NULL),
     parts AS (
         SELECT cell, events, total, lowest, highest
           FROM windows
          WHERE last_offset < below
          UNION ALL
         SELECT w.cell, 1, v.number, v.number, v.number
           FROM windows w
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = w.series AND v.partition = w.partition
                             AND v.event_time >= w.hour AND v.event_time < w.hour + interval '1 hour'
                             AND v.record_offset < w.below
          WHERE w.last_offset >= w.below AND v.number IS NOT NULL
          UNION ALL
         SELECT a.cell, 1, v.number, v.number, v.number
           FROM unnest(%(edge_starts)s::timestamptz[], %(edge_ends)s::timestamptz[]) AS e (start, stop)
          CROSS JOIN asked a
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = a.series
                             AND v.event_time >= e.start AND v.event_time < e.stop
           JOIN cut c ON c.partition = v.partition AND v.record_offset < c.below
          WHERE v.number IS NOT NULL)
SELECT cell, trim_scale({quantity}), sum(events)::bigint
  FROM parts
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)

_BY_WINDOW = {
    Aggregation.COUNT: _WINDOWS.format(quantity="sum(events)"),
    Aggregation.SUM: _WINDOWS.format(quantity="sum(total)"),
    Aggregation.MAX: _WINDOWS.format(quantity="max(highest)"),
    Aggregation.MIN: _WINDOWS.format(quantity="min(lowest)"),
}

# Windows tell at once that most hours hold nothing late; the rows decide about the others.
_LATE = """
WITH bounds AS (
         SELECT u.partition, coalesce(s.since, 0) AS since, u.below
           FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[]) AS u (partition, below)
           LEFT JOIN unnest(%(since_partitions)s::integer[], %(since_offsets)s::bigint[]) AS s (partition, since)
                  ON s.partition = u.partition)
SELECT EXISTS (
         SELECT FROM usage_series s
           JOIN usage_window w ON w.tenant_id = s.tenant_id AND w.series = s.series
           JOIN bounds b ON b.partition = w.partition AND w.last_offset >= b.since AND w.first_offset < b.below
           JOIN usage_value v ON v.tenant_id = s.tenant_id AND v.series = s.series AND v.partition = w.partition
                             AND v.event_time >= greatest(w.hour, %(start)s)
                             AND v.event_time < least(w.hour + interval '1 hour', %(end)s)
                             AND v.record_offset >= b.since AND v.record_offset < b.below
          WHERE s.tenant_id = %(tenant)s
            AND s.customer_id = %(customer)s
            AND w.hour > %(start)s::timestamptz - interval '1 hour'
            AND w.hour < %(end)s)
"""
