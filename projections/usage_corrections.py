"""Correcting what was counted: the rows of events that were voided, or amended, many at a time.

Nothing is deleted: a row that counts no more keeps the offset from which on, so that every cut before still reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from projections import usage, usage_rollup, usage_rows
from projections.usage import Tx
from projections.usage_rows import Arrival, Series


class Key(NamedTuple):
    """What identifies a counted event."""

    tenant: str
    identity: bytes
    """16 bytes."""


class Standing(NamedTuple):
    """What a counted event is by now."""

    content: bytes
    """As it came, or as it was amended last; 16 bytes."""
    voided_offset: int | None
    """Of what voided it; None: it counts."""
    customer: str
    time: datetime
    offset: int
    """With `batch_index` the position of the event, or of its last amendment."""
    batch_index: int
    amended_at: datetime | None
    """Append of the last amendment; None: never, or not known here."""


class Ended(NamedTuple):
    """An event as it stood, and counts no more."""

    tenant: str
    customer: str
    time: datetime
    offset: int
    batch_index: int
    voided_offset: int
    """Of the correction: from there on."""


def standing(tx: Tx, partition: int, keys: Collection[Key]) -> dict[Key, Standing]:
    """Those of the events that were counted in `partition`, and are known."""
    tenants, identities = _columns(sorted(keys), 2)
    rows = tx.execute(_STANDING, (tenants, [each.hex() for each in identities], partition)).fetchall()
    return {
        Key(tenant, identity.bytes): Standing(content.bytes, voided, customer, time, offset, index, None)
        for tenant, identity, content, voided, customer, time, offset, index in rows
    }


def correct(
    tx: Tx, partition: int, ended: Sequence[Ended], amended: Sequence[Arrival], ids: Mapping[Series, int]
) -> None:
    """Count `amended`, and end what `ended`, some of which may be among it, each once. `ids` and months exist.

    Windows, sums by day and changes follow. What stands now is for `mark` to tell.
    """
    if amended:
        usage_rows.clear(tx)
        usage_rows.copy(tx, usage_rows.rows(amended, ids))
        usage.put_values(tx, partition)
    columns = _columns(ended, len(Ended._fields))
    tx.execute(_ENDED)
    tx.execute(_ONE_BY_ONE)
    tx.execute(_END, (*columns, partition, min(each.time for each in ended), max(each.time for each in ended)))
    tx.execute(_COUNT_WINDOWS_AGAIN, {"partition": partition})
    usage_rollup.end(tx, partition)
    put_in = sorted({(each.place.tenant, ids[made[0]]) for each in amended for made in each.contributions})
    tx.execute(_ADD_CHANGES, _columns(put_in, 2))
    tx.execute("DROP TABLE ended")
    tx.execute(_AS_PLANNED)


def mark(tx: Tx, partition: int, known: Mapping[Key, Standing]) -> None:
    """Remember as what the events, all of them counted in `partition`, stand."""
    keys = sorted(known)
    rows = [
        (
            key.tenant,
            key.identity.hex(),
            stands.voided_offset,
            None if stands.amended_at is None else stands.content.hex(),
            *stands[2:],
        )
        for key, stands in ((key, known[key]) for key in keys)
    ]
    tx.execute(_ONE_BY_ONE)
    tx.execute(_MARK, (*_columns(rows, 9), partition))
    tx.execute(_AS_PLANNED)


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows as columns, as `unnest` takes them."""
    columns: list[list[Any]] = [[] for _ in range(width)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


# A few thousand keys of tables that hold millions: the planner counts each month and each part of the identities as if
# it had to be looked into for each key, and would rather read all of them.
_ONE_BY_ONE = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
_AS_PLANNED = "SET LOCAL enable_hashjoin TO DEFAULT; SET LOCAL enable_mergejoin TO DEFAULT"

_STANDING = """
SELECT e.tenant_id, e.identity, i.*
  FROM unnest(%s::text[], %s::uuid[]) AS e (tenant_id, identity)
 CROSS JOIN LATERAL (SELECT coalesce(amended_content, content), voided_offset, customer_id, event_time, record_offset,
                            batch_index
                       FROM usage_identity
                      WHERE identity = e.identity AND tenant_id = e.tenant_id AND partition = %s
                     OFFSET 0) AS i
"""

_ENDED = """
CREATE TEMPORARY TABLE ended (
    tenant_id      text,
    series         bigint,
    event_time     timestamptz,
    number         numeric,
    voided_offset  bigint
) ON COMMIT DROP
"""

# OFFSET 0: else the planner may look for all times of a series, and compare each with the one that is meant.
_END = """
WITH gone AS (
    UPDATE usage_value v
       SET voided_offset = e.voided_offset
      FROM (SELECT e.*, s.series
              FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::bigint[], %s::integer[], %s::bigint[])
                   AS e (tenant_id, customer_id, event_time, record_offset, batch_index, voided_offset)
              JOIN usage_series s USING (tenant_id, customer_id)
            OFFSET 0) AS e
     WHERE v.tenant_id = e.tenant_id AND v.series = e.series AND v.event_time = e.event_time
       AND v.partition = %s AND v.record_offset = e.record_offset AND v.batch_index = e.batch_index
       AND v.event_time >= %s AND v.event_time <= %s AND v.voided_offset IS NULL
    RETURNING v.tenant_id, v.series, v.event_time, v.number, v.voided_offset)
INSERT INTO ended SELECT * FROM gone
"""

# Least and greatest cannot be taken out of a sum: the hour's rows tell anew. All these windows are there; as an insert
# they are found by their key, and locked in its order.
_COUNT_WINDOWS_AGAIN = """
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT t.tenant_id, t.series, t.hour, %(partition)s, r.*, t.last_offset, t.last_offset
  FROM (SELECT tenant_id, series, date_bin('1 hour', event_time, timestamptz 'epoch') AS hour,
               max(voided_offset) AS last_offset
          FROM ended
         GROUP BY tenant_id, series, hour) AS t
 CROSS JOIN LATERAL (SELECT count(*), coalesce(sum(v.number), 0), min(v.number), max(v.number)
                       FROM usage_value v
                      WHERE v.tenant_id = t.tenant_id AND v.series = t.series AND v.partition = %(partition)s
                        AND v.event_time >= t.hour AND v.event_time < t.hour + interval '1 hour'
                        AND v.voided_offset IS NULL) AS r
 ORDER BY t.series, t.hour
    ON CONFLICT (tenant_id, series, hour, partition) DO UPDATE
   SET events = EXCLUDED.events,
       total = CASE WHEN usage_window.total IS NOT NULL THEN EXCLUDED.total END,
       lowest = EXCLUDED.lowest,
       highest = EXCLUDED.highest,
       last_offset = greatest(usage_window.last_offset, EXCLUDED.last_offset)
"""

# Of what ended and what was put in, in one order.
_ADD_CHANGES = """
INSERT INTO usage_changed (tenant_id, customer_id, meter)
SELECT DISTINCT s.tenant_id, s.customer_id, s.meter
  FROM (SELECT tenant_id, series FROM ended
         UNION
        SELECT * FROM unnest(%s::text[], %s::bigint[])) AS t
  JOIN usage_series s USING (tenant_id, series)
 ORDER BY s.tenant_id, s.customer_id, s.meter
    ON CONFLICT (tenant_id, customer_id, meter) DO UPDATE
   SET version = nextval('app.usage_change'), changed_in = pg_current_xact_id()
"""

_MARK = """
UPDATE usage_identity i
   SET voided_offset = e.voided_offset,
       amended_content = coalesce(e.amended_content, i.amended_content),
       amended_at = coalesce(e.amended_at, i.amended_at),
       customer_id = e.customer_id,
       event_time = e.event_time,
       record_offset = e.record_offset,
       batch_index = e.batch_index
  FROM unnest(%s::text[], %s::uuid[], %s::bigint[], %s::uuid[], %s::text[], %s::timestamptz[], %s::bigint[],
              %s::integer[], %s::timestamptz[])
       AS e (tenant_id, identity, voided_offset, amended_content, customer_id, event_time, record_offset, batch_index,
             amended_at)
 WHERE i.identity = e.identity AND i.tenant_id = e.tenant_id AND i.partition = %s
"""
