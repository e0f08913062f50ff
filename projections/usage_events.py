"""Single usage events as the tables know them: which were counted and what they measured, and which were refused.

Lists go from the newest to the oldest and page by key: (event time, position) for what was counted, (append time,
position) for what was refused. Every call sees the transaction's snapshot; `tx` has entered all sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from billing.period import Period
from projections.usage import Tx

CONFLICT: Final = "id_conflict"
"""Reason of a refusal that is a conflict; every other reason is a rejection."""

_SPAN = timedelta(minutes=15)
_GROWTH = 4


class Place(NamedTuple):
    """Where an event stands in the usage log."""

    partition: int
    offset: int
    batch_index: int
    """Of the event in its batch, from 0; -1: the whole record."""


class Key(NamedTuple):
    """What a list goes on after."""

    time: datetime
    place: Place


class Counted(NamedTuple):
    """A counted event."""

    customer: str
    time: datetime
    place: Place
    subscribed: bool
    """False: no subscription covers its time; it is unmatched and never billed."""
    amended: bool = False
    """It counts with other content than it came with. A list by meter does not tell."""
    voided_offset: int | None = None
    """From here on in its partition it does not count."""


class Contribution(NamedTuple):
    """What an event added to one meter."""

    meter: str
    dimensions: dict[str, str]
    number: Decimal | None
    """None for a thing counted once."""
    text: str | None
    """The thing counted; None for a number."""


class Refused(NamedTuple):
    """Usage that was refused: one event, or a whole record."""

    tenant: str
    """Empty where the record does not tell."""
    place: Place
    events: int
    """0: a correction of the event."""
    reason: str
    detail: str
    field: str
    source: str | None
    id: str | None
    appended_at: datetime

    @property
    def fate(self) -> str:
        """`conflict` or `rejected`."""
        return "conflict" if self.reason == CONFLICT else "rejected"


def found(tx: Tx, tenant: str, identity: str) -> Counted | None:
    """The counted event with this identity (32 hex digits)."""
    row = tx.execute(_FOUND, {"tenant": tenant, "identity": identity}).fetchone()
    return None if row is None else _counted(row)


def counted(
    tx: Tx,
    tenant: str,
    period: Period,
    *,
    customer: str | None = None,
    meter: str | None = None,
    fate: str | None = None,
    before: Key | None = None,
    limit: int,
) -> list[Counted]:
    """The newest counted events of `period`, older than `before`: at most `limit`.

    `meter`: only those that it measured, quickly. `fate`: only those that are `counted`, `unmatched`, `amended` or
    `voided` by now; by default all but the voided. By meter `counted` holds those amended too, and no other fate but
    `unmatched` can be asked for.
    """
    assert meter is None or fate in (None, "counted", "unmatched")
    asked = {
        "tenant": tenant,
        "customer": customer,
        "meter": meter,
        "before": before.time if before else period.end,
        "before_place": list(before.place) if before else [0, 0, 0],
    }
    conditions = "AND (i.event_time, i.partition, i.record_offset, i.batch_index) < " + _BEFORE if before else ""
    if customer is not None:
        conditions += " AND i.customer_id = %(customer)s"
    if fate is not None:
        conditions += (_OF_FATE if meter is None else _OF_FATE_BY_METER)[fate]
    elif meter is None:
        conditions += _COUNTS
    statement = (_COUNTED if meter is None else _COUNTED_BY_METER).format(
        subscribed=_SUBSCRIBED, conditions=conditions, series="AND s.customer_id = %(customer)s" if customer else ""
    )
    rows: list[Counted] = []
    # Step by step into the past, each step longer: the newest are found without looking at all there is.
    upto, span = min(period.end, before.time + timedelta(microseconds=1)) if before else period.end, _SPAN
    while upto > period.start and len(rows) < limit:
        start = max(period.start, upto - span)
        bounds = {"start": start, "end": upto, "limit": limit - len(rows)}
        rows += [_counted(row) for row in tx.execute(statement, asked | bounds).fetchall()]
        upto, span = start, span * _GROWTH
    return rows


def _counted(row: Sequence[object]) -> Counted:
    customer, time, partition, offset, index, *rest = row
    return Counted(customer, time, Place(partition, offset, index), *rest)  # type: ignore[arg-type]


def contributions(tx: Tx, tenant: str, events: Sequence[Counted]) -> dict[Place, tuple[Contribution, ...]]:
    """What each of `events` measured, by the key of the meter; an event that no filter let through is missing."""
    rows = tx.execute(
        _CONTRIBUTIONS,
        {
            "tenant": tenant,
            "customers": [each.customer for each in events],
            "times": [each.time for each in events],
            "partitions": [each.place.partition for each in events],
            "offsets": [each.place.offset for each in events],
            "indexes": [each.place.batch_index for each in events],
            "voided": [each.voided_offset for each in events],
        },
    )
    made: dict[Place, list[Contribution]] = {}
    for partition, offset, index, meter, names, values, number, text in rows.fetchall():
        added = Contribution(meter, dict(zip(names, values, strict=True)), number, text)
        made.setdefault(Place(partition, offset, index), []).append(added)
    return {place: tuple(each) for place, each in made.items()}


def refused(
    tx: Tx,
    tenant: str | None,
    *,
    period: Period | None = None,
    fate: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    id: str | None = None,
    before: Key | None = None,
    limit: int,
) -> list[Refused]:
    """The newest refusals, older than `before`: at most `limit`. `period` bounds the append time; tenant None: all."""
    asked = {
        "tenant": tenant,
        "start": period.start if period else None,
        "end": period.end if period else None,
        "reason": reason,
        "conflict": CONFLICT,
        "source": source,
        "id": id,
        "before": before.time if before else None,
        "before_place": list(before.place) if before else None,
        "limit": limit,
    }
    conditions = [
        (tenant is not None, "tenant_id = %(tenant)s"),
        (period is not None, "appended_at >= %(start)s AND appended_at < %(end)s"),
        (fate == "conflict", "reason = %(conflict)s"),
        (fate == "rejected", "reason <> %(conflict)s"),
        (reason is not None, "reason = %(reason)s"),
        (source is not None, "source = %(source)s"),
        (id is not None, "event_id = %(id)s"),
        (before is not None, f"(appended_at, partition, record_offset, batch_index) < {_BEFORE}"),
    ]
    where = " AND ".join(condition for wanted, condition in conditions if wanted) or "true"
    return [_refused(row) for row in tx.execute(_REFUSED.format(where=where), asked).fetchall()]


def refused_at(tx: Tx, tenant: str | None, places: Iterable[Place]) -> list[Refused]:
    """The refusals at these positions, in their order."""
    parts = list(zip(*places, strict=True)) or [(), (), ()]
    asked = {"tenant": tenant, "partitions": list(parts[0]), "offsets": list(parts[1]), "indexes": list(parts[2])}
    return [_refused(row) for row in tx.execute(_REFUSED_AT, asked).fetchall()]


def _refused(row: Sequence[object]) -> Refused:
    tenant, partition, offset, index, *rest = row
    return Refused(tenant, Place(partition, offset, index), *rest)  # type: ignore[arg-type]


_BEFORE = (
    "(%(before)s, (%(before_place)s::bigint[])[1], (%(before_place)s::bigint[])[2], (%(before_place)s::bigint[])[3])"
)

_SUBSCRIBED = """EXISTS (
           SELECT FROM subscriptions u
            WHERE u.tenant_id = i.tenant_id AND u.customer_id = i.customer_id
              AND u.starts_at <= i.event_time AND i.event_time < coalesce(u.ended_at, 'infinity'))"""

_COUNTS = " AND i.voided_offset IS NULL"
_OF_FATE_BY_METER = {"counted": f" AND {_SUBSCRIBED}", "unmatched": f" AND NOT {_SUBSCRIBED}"}
_OF_FATE = {
    "counted": f"{_COUNTS} AND {_SUBSCRIBED} AND i.amended_content IS NULL",
    "unmatched": f"{_COUNTS} AND NOT {_SUBSCRIBED}",
    "amended": f"{_COUNTS} AND {_SUBSCRIBED} AND i.amended_content IS NOT NULL",
    "voided": " AND i.voided_offset IS NOT NULL",
}
"""As `usage_trace.Trace.fate` says it."""

_FOUND = f"""
SELECT i.customer_id, i.event_time, i.partition, i.record_offset, i.batch_index, {_SUBSCRIBED},
       i.amended_content IS NOT NULL, i.voided_offset
  FROM usage_identity i
 WHERE i.tenant_id = %(tenant)s AND i.identity = %(identity)s::uuid
"""

_ORDER = " ORDER BY event_time DESC, partition DESC, record_offset DESC, batch_index DESC LIMIT %(limit)s"

_COUNTED = (
    """
SELECT i.customer_id, i.event_time, i.partition, i.record_offset, i.batch_index, {subscribed},
       i.amended_content IS NOT NULL, i.voided_offset
  FROM usage_identity i
 WHERE i.tenant_id = %(tenant)s AND i.event_time >= %(start)s AND i.event_time < %(end)s {conditions}
"""
    + _ORDER
)

_COUNTED_BY_METER = (
    """
SELECT i.customer_id, i.event_time, i.partition, i.record_offset, i.batch_index, {subscribed}
  FROM usage_series s
 CROSS JOIN LATERAL (
           SELECT s.tenant_id, s.customer_id, i.event_time, i.partition, i.record_offset, i.batch_index
             FROM usage_value i
            WHERE i.tenant_id = s.tenant_id AND i.series = s.series
              AND i.event_time >= %(start)s AND i.event_time < %(end)s AND i.voided_offset IS NULL) i
 WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s {series} {conditions}
"""
    + _ORDER
)

_CONTRIBUTIONS = """
SELECT v.partition, v.record_offset, v.batch_index,
       s.meter, s.dimension_names, s.dimension_values, trim_scale(v.number), v.text_value
  FROM unnest(%(customers)s::text[], %(times)s::timestamptz[], %(partitions)s::integer[], %(offsets)s::bigint[],
              %(indexes)s::integer[], %(voided)s::bigint[])
              AS e (customer_id, event_time, partition, record_offset, batch_index, voided_offset)
  JOIN usage_series s ON s.tenant_id = %(tenant)s AND s.customer_id = e.customer_id
  JOIN usage_value v ON v.tenant_id = s.tenant_id AND v.series = s.series AND v.event_time = e.event_time
                    AND v.partition = e.partition AND v.record_offset = e.record_offset
                    AND v.batch_index = e.batch_index
                    AND v.voided_offset IS NOT DISTINCT FROM e.voided_offset
 ORDER BY s.meter
"""

_COLUMNS = (
    "tenant_id, partition, record_offset, batch_index, events, reason, detail, field, source, event_id, appended_at"
)

_REFUSED = (
    f"""
SELECT {_COLUMNS}
  FROM usage_rejected
 WHERE {{where}}
"""
    + " ORDER BY appended_at DESC, partition DESC, record_offset DESC, batch_index DESC LIMIT %(limit)s"
)

_REFUSED_AT = f"""
SELECT {_COLUMNS}
  FROM usage_rejected
  JOIN unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(indexes)s::integer[])
       AS a (partition, record_offset, batch_index) USING (partition, record_offset, batch_index)
 WHERE tenant_id = coalesce(%(tenant)s, tenant_id)
 ORDER BY partition, record_offset, batch_index
"""
