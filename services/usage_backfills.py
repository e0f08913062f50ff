"""Backfills as people see them: how far they are, whether one can be done, and what it would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Literal

from billing.aggregation import Point
from billing.errors import Rejected
from billing.measuring import Need, measured
from billing.metering import GONE, Meter, UsageControl
from billing.period import Period
from infra.postgres import Cursor
from projections import usage_backfill, usage_backfill_read
from projections.usage_backfill import Key, Pending
from projections.usage_backfill_read import Progress
from schemas.codec import decode_usage
from services.usage_backfilling import NO_END, Definition, ReadLog
from services.usage_placing import Layout, spread_of

Starts = Callable[[Iterable[int]], Mapping[int, int]]
"""Of each of some partitions of the usage log, the first offset that it still has. Raises `Transient`."""


@dataclass(frozen=True, slots=True)
class MeterBackfill:
    """Events that were counted before a place in the log, counted as the meter was defined there."""

    version: int
    """Position of the command that asked for it."""
    meter: str
    from_time: datetime
    to_time: datetime | None
    """None: every event that came before."""
    asked_at: datetime
    """When the usage log was told."""
    state: Literal["pending", "done", "failed"]
    """Failed: in a partition whose log does not reach back; there everything counts as before."""
    detail: str
    """Why it failed."""
    partitions: int
    """In which usage of the tenant may lie."""
    partitions_done: int
    progress: Decimal
    """Share of the log that is read again, 0 to 1; the partitions that have not begun count as nothing."""
    events: int
    """Counted again so far."""
    unmeasured: int
    """Of those, that the definition cannot measure: they add nothing."""


def listed(tx: Cursor, tenant: str, layout: Layout, meter: str | None = None) -> list[MeterBackfill]:
    """Every backfill of the tenant that a partition knows of, the newest first."""
    rows = usage_backfill_read.progress(tx, tenant, meter)
    return [_backfilled(layout, list(each)) for _, each in groupby(rows, key=lambda row: row.version)]


def _backfilled(layout: Layout, rows: list[Progress]) -> MeterBackfill:
    first = rows[0]
    control = decode_usage(first.control)
    assert isinstance(control, UsageControl)
    partitions = len(layout.touched(control.tenant, control.spread))
    states = {each.state for each in rows}
    done = sum(each.state == "done" for each in rows)
    shares = [Decimal(1) if each.state == "done" else Decimal(each.read) / max(each.to_read, 1) for each in rows]
    return MeterBackfill(
        version=first.version,
        meter=first.meter,
        from_time=min(each.begins_at for each in rows),
        to_time=None if first.ends_at == NO_END else first.ends_at,
        asked_at=min(each.appended_at for each in rows),
        state="failed" if "failed" in states else "done" if done == partitions else "pending",
        detail="; ".join(each.detail for each in rows if each.detail),
        partitions=partitions,
        partitions_done=done,
        progress=(sum(shares, Decimal(0)) / partitions).quantize(Decimal("0.001")),
        events=sum(each.events for each in rows),
        unmeasured=sum(each.unmeasured for each in rows),
    )


def check_log(tx: Cursor, tenant: str, layout: Layout, starts: Starts, begins: datetime, ends: datetime | None) -> None:
    """Refuse a span whose events the log does not have any more.

    Raises:
        Rejected: naming the earliest time that is allowed.
        Transient: Kafka does not answer.
    """
    allowed = begins
    for partition, start in sorted(starts(layout.touched(tenant, spread_of(tx, tenant))).items()):
        lost = (
            usage_backfill_read.newest_before(tx, tenant, partition, start, begins, ends or NO_END) if start else None
        )
        if lost is not None:
            allowed = max(allowed, lost + timedelta(microseconds=1))
    if allowed > begins:
        detail = f"the usage log has not all events from {begins.isoformat()} on any more; allowed is"
        raise Rejected("log_too_short", f"{detail} {allowed.isoformat()} or later", field="from_time")


@dataclass(frozen=True, slots=True)
class QuantityChange:
    """What a backfill would do to a customer's quantity, of the span alone."""

    customer: str
    before: Decimal
    """By the events as they count now."""
    after: Decimal
    events_before: int
    events_after: int


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a backfill would come to now."""

    events: int
    """That would be counted again."""
    unmeasured: int
    """Of those, that the definition cannot measure."""
    changes: tuple[QuantityChange, ...]
    """Of the customers whose quantity would change."""


def foresee(
    tx: Cursor,
    tenant: str,
    layout: Layout,
    read: ReadLog,
    positions: Mapping[int, int],
    key: str,
    begins: datetime,
    ends: datetime | None,
    *,
    events_max: int | None = None,
) -> Foreseen:
    """What a backfill from `begins` to `ends` would do to what was counted below `positions`; changes nothing.

    Quantities are those of the span as one, measured by the new definition: a level begins at nothing. What counts is
    held in memory.

    Raises:
        Rejected: the tenant's log knows no such meter, the span is empty, or more than `events_max` events count.
        LogTooShort, Transient: the log cannot be read.
    """
    if ends is not None and ends <= begins:
        raise Rejected("out_of_range", f"{ends.isoformat()}: allowed is a time after the first", field="to_time")
    row = tx.execute("SELECT control FROM app.meter_set WHERE tenant_id = %s", (tenant,)).fetchone()
    control = decode_usage(bytes(row[0])) if row else None
    meters = {each.key: each for each in control.meters} if isinstance(control, UsageControl) else {}
    if row is None or key not in meters:
        raise Rejected("unknown_meter", f"the usage log knows no meter {key!r}; known: {', '.join(sorted(meters))}")
    meter, until = meters[key], ends or NO_END
    before = _standing(tx, tenant, meter, begins, until, events_max)
    after: dict[str, list[Point]] = {}
    events = unmeasured = 0
    for partition in layout.touched(tenant, spread_of(tx, tenant)):
        end = positions.get(partition, 0)
        pending = Pending(Key(tenant, partition, end), bytes(row[0]), key, begins, until, None)
        definition = Definition(pending)
        first = usage_backfill.first_offset(tx, pending)
        for records in read(partition, first, end) if first < end else ():
            for piece in definition.pieces(records):
                found = definition.counted(tx, piece)
                made, failed = definition.measured(found)
                events, unmeasured = events + len(found), unmeasured + failed
                _check_size(events, events_max)
                for each, part in made:
                    number = None if part.number is None else Decimal(part.number)
                    named = dict(zip(part.series.names, part.series.values, strict=True))
                    place = (partition, each.offset, each.place)
                    after.setdefault(part.series.customer, []).append(
                        _point(meter, each.time, number, part.text, named, place)
                    )
    last = max((each.at for points in (*before.values(), *after.values()) for each in points), default=begins)
    need = Need(meter, Period(begins, ends or last + timedelta(microseconds=1)), ())
    made_changes = []
    for customer in sorted(before.keys() | after.keys()):
        was, will = measured(need, before.get(customer, ())), measured(need, after.get(customer, ()))
        if (was.total, was.events) != (will.total, will.events):
            made_changes.append(QuantityChange(customer, was.total, will.total, was.events, will.events))
    return Foreseen(events, unmeasured, tuple(made_changes))


def _standing(
    tx: Cursor, tenant: str, meter: Meter, begins: datetime, until: datetime, events_max: int | None
) -> dict[str, list[Point]]:
    """By customer: what the span's events count for `meter` now."""
    found: dict[str, list[Point]] = {}
    for held, known in enumerate(usage_backfill_read.counted(tx, tenant, meter.key, begins, until, events_max)):
        _check_size(held + 1, events_max)
        named = dict(zip(known.names, known.values, strict=True))
        point = _point(meter, known.time, known.number, known.text, named, known.place)
        found.setdefault(known.customer, []).append(point)
    return found


def _check_size(events: int, events_max: int | None) -> None:
    if events_max is not None and events > events_max:
        raise Rejected("too_much_to_read", f"more than {events_max:,} events count in the span: ask for less time")


def _point(
    meter: Meter,
    time: datetime,
    number: Decimal | None,
    text: str | None,
    named: Mapping[str, str],
    place: tuple[int, int, int],
) -> Point:
    return Point(
        at=time,
        value=Decimal(1) if text is not None else number or Decimal(0),
        thing=text or "",
        removes=text is not None and number == GONE,
        key="{:06}{:020}{:010}".format(*place),
        dimensions=tuple(named.get(name, "") for name in meter.dimensions),
    )
