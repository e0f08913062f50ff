"""Backfills of meters: rows that are prepared where nobody reads them, and the switch that makes them count.

As a correction does, a switch deletes nothing: what counts no more keeps the offset from which on, and what counts
instead says from where. A row that says the same by the new definition stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from projections import usage_rollup
from projections.generation import Stale
from projections.usage import SET, TOPIC, Tx


class Key(NamedTuple):
    """A backfill: the control record that asks for it."""

    tenant: str
    partition: int
    offset: int


class Asked(NamedTuple):
    """A backfill as the log asks for it."""

    key: Key
    version: int
    control: bytes
    meter: str
    begins_at: datetime
    ends_at: datetime
    appended_at: datetime


class Pending(NamedTuple):
    """A backfill that is not done."""

    key: Key
    control: bytes
    meter: str
    begins_at: datetime
    ends_at: datetime
    next_offset: int | None
    """Up to which the log was read again; None: it has not begun."""


class Row(NamedTuple):
    """What an event contributes by the new definition."""

    series: int
    offset: int
    batch_index: int
    time: datetime
    number: str | None
    text: str | None


def note(tx: Tx, asked: Collection[Asked]) -> None:
    """Remember what is to be counted again."""
    tx.executemany(
        """
        INSERT INTO usage_backfill (tenant_id, partition, record_offset, version, control, meter, begins_at, ends_at,
                                    appended_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [(*each.key, *each[1:]) for each in sorted(asked)],
    )


def pending(tx: Tx, partition: int | None = None, tenants: Collection[str] | None = None) -> list[Pending]:
    """What is not done, of `partition` and `tenants` or of all, in the order in which it is to be done."""
    rows = tx.execute(
        """
        SELECT tenant_id, partition, record_offset, control, meter, begins_at, ends_at, next_offset
          FROM usage_backfill
         WHERE state = 'pending'
           AND partition = coalesce(%s, partition) AND (%s::text[] IS NULL OR tenant_id = ANY (%s))
         ORDER BY partition, record_offset
        """,
        (partition, *[None if tenants is None else sorted(tenants)] * 2),
    ).fetchall()
    return [Pending(Key(t, p, o), bytes(control), *rest) for t, p, o, control, *rest in rows]


def oldest_pending(tx: Tx) -> dict[tuple[str, int], datetime]:
    """(Tenant, partition) -> append of the oldest control record that asks for what is not done."""
    rows = tx.execute(
        "SELECT tenant_id, partition, min(appended_at) FROM usage_backfill WHERE state = 'pending' GROUP BY 1, 2"
    )
    return {(tenant, partition): appended_at for tenant, partition, appended_at in rows.fetchall()}


def is_pending(tx: Tx, tenant: str, below: Mapping[int, int]) -> bool:
    """Whether something asked for below the positions `below` (partition -> offset) is not counted again yet."""
    rows = tx.execute(
        "SELECT partition, record_offset FROM usage_backfill WHERE state = 'pending' AND tenant_id = %s", (tenant,)
    ).fetchall()
    return any(offset < below.get(partition, 0) for partition, offset in rows)


def first_offset(tx: Tx, backfill: Pending) -> int:
    """Of the first record that holds a counted event of the span, or where there is no more."""
    key = backfill.key
    row = tx.execute(
        """
        SELECT min(record_offset)
          FROM usage_identity
         WHERE tenant_id = %s AND partition = %s AND event_time >= %s AND event_time < %s
           AND record_offset < %s AND voided_offset IS NULL
        """,
        (key.tenant, key.partition, backfill.begins_at, backfill.ends_at, key.offset),
    ).fetchone()
    return key.offset if row is None or row[0] is None else int(row[0])


def begin(tx: Tx, backfill: Pending) -> int:
    """Note where the log is to be read from; returns it.

    Raises:
        Stale: somebody else did.
    """
    first = first_offset(tx, backfill)
    moved = tx.execute(
        """
        UPDATE usage_backfill
           SET first_offset = %s, next_offset = %s
         WHERE tenant_id = %s AND partition = %s AND record_offset = %s AND state = 'pending' AND next_offset IS NULL
        """,
        (first, first, *backfill.key),
    )
    _one(moved.rowcount, backfill.key)
    return first


def counting(tx: Tx, backfill: Pending, events: Sequence[tuple[bytes, int, int]]) -> set[tuple[int, int]]:
    """Of `events` (identity, offset, index) those that count: the others are copies, or were corrected since."""
    key = backfill.key
    rows = tx.execute(
        """
        SELECT e.record_offset, e.batch_index
          FROM unnest(%s::uuid[], %s::bigint[], %s::integer[]) AS e (identity, record_offset, batch_index)
          JOIN usage_identity i ON i.identity = e.identity AND i.tenant_id = %s AND i.partition = %s
                               AND i.record_offset = e.record_offset AND i.batch_index = e.batch_index
                               AND i.voided_offset IS NULL
        """,
        (
            [identity.hex() for identity, _, _ in events],
            [offset for _, offset, _ in events],
            [index for _, _, index in events],
            key.tenant,
            key.partition,
        ),
    ).fetchall()
    return {(offset, index) for offset, index in rows}


def prepare(
    tx: Tx, key: Key, rows: Sequence[Row], expected: int, next_offset: int, events: int, unmeasured: int
) -> None:
    """Add what the records from `expected` up to `next_offset` contribute.

    Raises:
        Stale: somebody else did.
    """
    moved = tx.execute(
        """
        UPDATE usage_backfill
           SET next_offset = %s, events = events + %s, unmeasured = unmeasured + %s
         WHERE tenant_id = %s AND partition = %s AND record_offset = %s AND state = 'pending' AND next_offset = %s
        """,
        (next_offset, events, unmeasured, *key, expected),
    )
    _one(moved.rowcount, key)
    tx.execute(
        _PREPARE, (*key[1:], key.tenant, *([each[column] for each in rows] for column in range(len(Row._fields))))
    )


_PREPARE = """
INSERT INTO usage_backfill_value
       (partition, backfill_offset, tenant_id, series, record_offset, batch_index, event_time, number, text_value)
SELECT %s, %s, %s, r.*
  FROM unnest(%s::bigint[], %s::bigint[], %s::integer[], %s::timestamptz[], %s::numeric[], %s::text[]) AS r
"""


def switch(tx: Tx, generation: int, backfill: Pending) -> None:
    """Make what was prepared count instead of what counted before. The partition's aggregator waits for the windows.

    Raises:
        Stale: somebody else did, or not all is prepared.
    """
    key = backfill.key
    asked: dict[str, Any] = {
        "tenant": key.tenant,
        "partition": key.partition,
        "offset": key.offset,
        "meter": backfill.meter,
        "begins": backfill.begins_at,
        "ends": backfill.ends_at,
        "set": SET,
        "generation": generation,
        "topic": TOPIC,
    }
    tx.execute("SET LOCAL statement_timeout = 0")
    _one(tx.execute(_DONE, asked).rowcount, key)
    usage_rollup.stop(tx)
    tx.execute(_TOUCHED)
    tx.execute(_TAKE_OUT, asked)
    tx.execute(_PUT_IN, asked)
    # Windows tell of all rows, so no row may come meanwhile: the checkpoint is what the aggregator writes first.
    tx.execute(_HOLD_PARTITION, asked)
    tx.execute(_COUNT_WINDOWS, asked)
    usage_rollup.follow_touched(tx, key.tenant, key.partition, key.offset)
    tx.execute(_ADD_CHANGES, asked)
    _forget_prepared(tx, key)


def fail(tx: Tx, key: Key, detail: str) -> None:
    """It cannot be done; everything counts as before."""
    _forget_prepared(tx, key)
    moved = tx.execute(
        """
        UPDATE usage_backfill
           SET state = 'failed', detail = %s
         WHERE tenant_id = %s AND partition = %s AND record_offset = %s AND state = 'pending'
        """,
        (detail, *key),
    )
    _one(moved.rowcount, key)


def _forget_prepared(tx: Tx, key: Key) -> None:
    tx.execute("DELETE FROM usage_backfill_value WHERE tenant_id = %s AND partition = %s AND backfill_offset = %s", key)


def _one(rows: int, key: Key) -> None:
    if rows != 1:
        raise Stale(f"the backfill of {key.tenant} at {TOPIC}/{key.partition} {key.offset} was worked on elsewhere")


_DONE = """
UPDATE usage_backfill
   SET state = 'done'
 WHERE tenant_id = %(tenant)s AND partition = %(partition)s AND record_offset = %(offset)s
   AND state = 'pending' AND next_offset = record_offset
"""

_TOUCHED = "CREATE TEMPORARY TABLE touched (series bigint, hour timestamptz) ON COMMIT DROP"

_SAME = """
t.tenant_id = %(tenant)s AND t.partition = %(partition)s AND t.backfill_offset = %(offset)s
           AND t.series = v.series AND t.record_offset = v.record_offset AND t.batch_index = v.batch_index
           AND t.number IS NOT DISTINCT FROM v.number AND t.text_value IS NOT DISTINCT FROM v.text_value
"""

_TAKE_OUT = f"""
WITH gone AS (
    UPDATE usage_value v
       SET voided_offset = %(offset)s
      FROM usage_series s
     WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s AND v.tenant_id = s.tenant_id AND v.series = s.series
       AND v.partition = %(partition)s AND v.event_time >= %(begins)s AND v.event_time < %(ends)s
       AND v.voided_offset IS NULL AND coalesce(v.counts_from, v.record_offset) < %(offset)s
       AND NOT EXISTS (SELECT FROM usage_backfill_value t WHERE {_SAME})
    RETURNING v.series, date_bin('1 hour', v.event_time, timestamptz 'epoch') AS hour)
INSERT INTO touched SELECT DISTINCT series, hour FROM gone
"""

# A row that still counts at this place is the same one.
_PUT_IN = """
WITH come AS (
    INSERT INTO usage_value (tenant_id, series, event_time, number, text_value, partition, record_offset, batch_index,
                             counts_from)
    SELECT t.tenant_id, t.series, t.event_time, t.number, t.text_value, t.partition, t.record_offset, t.batch_index,
           t.backfill_offset
      FROM usage_backfill_value t
     WHERE t.tenant_id = %(tenant)s AND t.partition = %(partition)s AND t.backfill_offset = %(offset)s
       AND NOT EXISTS (SELECT FROM usage_value v
                        WHERE v.tenant_id = t.tenant_id AND v.series = t.series AND v.event_time = t.event_time
                          AND v.partition = t.partition AND v.record_offset = t.record_offset
                          AND v.batch_index = t.batch_index AND v.voided_offset IS NULL)
     ORDER BY t.series, t.event_time
    RETURNING series, date_bin('1 hour', event_time, timestamptz 'epoch') AS hour)
INSERT INTO touched SELECT DISTINCT series, hour FROM come
"""

_HOLD_PARTITION = """
SELECT FROM app.checkpoint
 WHERE projection = %(set)s AND generation = %(generation)s AND topic = %(topic)s AND partition = %(partition)s
   FOR UPDATE
"""

_COUNT_WINDOWS = """
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT v.tenant_id, v.series, t.hour, v.partition,
       count(*) FILTER (WHERE v.voided_offset IS NULL),
       CASE WHEN count(v.number) > 0 THEN coalesce(sum(v.number) FILTER (WHERE v.voided_offset IS NULL), 0) END,
       min(v.number) FILTER (WHERE v.voided_offset IS NULL),
       max(v.number) FILTER (WHERE v.voided_offset IS NULL),
       min(coalesce(v.counts_from, v.record_offset)),
       greatest(max(coalesce(v.counts_from, v.record_offset)), max(v.voided_offset))
  FROM (SELECT DISTINCT series, hour FROM touched) t
  JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = t.series AND v.partition = %(partition)s
                    AND v.event_time >= t.hour AND v.event_time < t.hour + interval '1 hour'
 GROUP BY v.tenant_id, v.series, t.hour, v.partition
 ORDER BY v.series, t.hour
    ON CONFLICT (tenant_id, series, hour, partition) DO UPDATE
   SET events = EXCLUDED.events, total = EXCLUDED.total, lowest = EXCLUDED.lowest, highest = EXCLUDED.highest,
       first_offset = least(usage_window.first_offset, EXCLUDED.first_offset),
       last_offset = greatest(usage_window.last_offset, EXCLUDED.last_offset)
"""

_ADD_CHANGES = """
INSERT INTO usage_changed (tenant_id, customer_id, meter)
SELECT DISTINCT s.tenant_id, s.customer_id, s.meter
  FROM usage_series s
  JOIN touched t ON t.series = s.series
 WHERE s.tenant_id = %(tenant)s
 ORDER BY s.tenant_id, s.customer_id, s.meter
    ON CONFLICT (tenant_id, customer_id, meter) DO UPDATE
   SET version = nextval('app.usage_change'), changed_in = pg_current_xact_id()
"""
