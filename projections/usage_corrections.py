"""Correcting what was counted: the rows of an event that was voided, or amended.

Nothing is deleted: a row that counts no more keeps the offset from which on, so that every cut before still reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from projections import usage, usage_rollup, usage_rows
from projections.usage import Tx
from projections.usage_rows import Arrival, Series


class Standing(NamedTuple):
    """What a counted event is by now."""

    content: bytes
    """As it came, or as it was amended last; 16 bytes."""
    voided: bool
    time: datetime


def standing(tx: Tx, partition: int, tenant: str, identity: bytes) -> Standing | None:
    """The event with this identity (16 bytes) that was counted in `partition`; None: it is not, or no longer, known."""
    row = tx.execute(_STANDING, {"partition": partition, "tenant": tenant, "identity": identity.hex()}).fetchone()
    return None if row is None else Standing(row[0].bytes, row[1], row[2])


def void(tx: Tx, partition: int, tenant: str, identity: bytes, offset: int) -> None:
    """The event does not count from `offset` on. It stands, and is not voided."""
    asked = {"partition": partition, "tenant": tenant, "identity": identity.hex(), "offset": offset}
    _take_out(tx, asked)
    tx.execute(_MARK_VOIDED, asked)


def amend(tx: Tx, partition: int, amended: Arrival, ids: Mapping[Series, int]) -> None:
    """The event counts as `amended` from its offset on. It stands, and is not voided; `ids` and months exist."""
    asked = {
        "partition": partition,
        "tenant": amended.place.tenant,
        "identity": amended.identity.hex(),
        "offset": amended.place.offset,
        "index": amended.batch_index,
        "content": amended.content.hex(),
        "customer": amended.customer,
        "time": _EPOCH + timedelta(microseconds=amended.time_us),
        "appended": _EPOCH + timedelta(microseconds=amended.place.appended_us),
    }
    _take_out(tx, asked)
    usage_rows.clear(tx)
    usage_rows.copy(tx, usage_rows.rows([amended], ids))
    usage.add_values(tx, partition)
    tx.execute(_MARK_AMENDED, asked)


def _take_out(tx: Tx, asked: Mapping[str, Any]) -> None:
    touched = sorted(set(tx.execute(_VOID_VALUES, asked).fetchall()))
    if touched:
        more = {"series": [series for series, _ in touched], "hours": [hour for _, hour in touched]}
        tx.execute(_COUNT_WINDOWS_AGAIN, {**asked, **more})
        usage_rollup.follow(tx, asked["tenant"], asked["partition"], asked["offset"], more["series"], more["hours"])
        tx.execute(_ADD_CHANGES, {**asked, **more})


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

_STANDING = """
SELECT coalesce(amended_content, content), voided_offset IS NOT NULL, event_time
  FROM usage_identity
 WHERE tenant_id = %(tenant)s AND identity = %(identity)s::uuid AND partition = %(partition)s
"""

_VOID_VALUES = """
UPDATE usage_value v
   SET voided_offset = %(offset)s
  FROM usage_identity i
  JOIN usage_series s ON s.tenant_id = i.tenant_id AND s.customer_id = i.customer_id
 WHERE i.tenant_id = %(tenant)s AND i.identity = %(identity)s::uuid
   AND v.tenant_id = s.tenant_id AND v.series = s.series AND v.event_time = i.event_time
   AND v.partition = i.partition AND v.record_offset = i.record_offset AND v.batch_index = i.batch_index
   AND v.voided_offset IS NULL
RETURNING v.series, date_bin('1 hour', v.event_time, timestamptz 'epoch')
"""

# Least and greatest cannot be taken out of a sum: the hour's rows tell anew.
_COUNT_WINDOWS_AGAIN = """
UPDATE usage_window w
   SET events = r.events,
       total = CASE WHEN w.total IS NOT NULL THEN r.total END,
       lowest = r.lowest,
       highest = r.highest,
       last_offset = greatest(w.last_offset, %(offset)s)
  FROM (SELECT t.series, t.hour, count(v.series) AS events, coalesce(sum(v.number), 0) AS total,
               min(v.number) AS lowest, max(v.number) AS highest
          FROM unnest(%(series)s::bigint[], %(hours)s::timestamptz[]) AS t (series, hour)
          LEFT JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = t.series AND v.voided_offset IS NULL
                                 AND v.partition = %(partition)s
                                 AND v.event_time >= t.hour AND v.event_time < t.hour + interval '1 hour'
         GROUP BY t.series, t.hour) r
 WHERE w.tenant_id = %(tenant)s AND w.series = r.series AND w.hour = r.hour AND w.partition = %(partition)s
"""

_ADD_CHANGES = """
INSERT INTO usage_changed (tenant_id, customer_id, meter)
SELECT DISTINCT tenant_id, customer_id, meter
  FROM usage_series
 WHERE tenant_id = %(tenant)s AND series = ANY (%(series)s::bigint[])
 ORDER BY tenant_id, customer_id, meter
    ON CONFLICT (tenant_id, customer_id, meter) DO UPDATE
   SET version = nextval('app.usage_change'), changed_in = pg_current_xact_id()
"""

_MARK_VOIDED = """
UPDATE usage_identity
   SET voided_offset = %(offset)s
 WHERE tenant_id = %(tenant)s AND identity = %(identity)s::uuid
"""

_MARK_AMENDED = """
UPDATE usage_identity
   SET amended_content = %(content)s::uuid, amended_at = %(appended)s, customer_id = %(customer)s,
       event_time = %(time)s, record_offset = %(offset)s, batch_index = %(index)s
 WHERE tenant_id = %(tenant)s AND identity = %(identity)s::uuid
"""
