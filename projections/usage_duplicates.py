"""Copies of counted events: told one by one, each by its position in the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from billing.period import Period
from projections.usage import Tx
from projections.usage_events import Key, Place
from projections.usage_rows import Repeat

COPIES_MAX = 20
"""So many of one event are told one by one."""
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_SPAN = timedelta(hours=1)
_GROWTH = 4


class Copy(NamedTuple):
    """An event that came again, with the same content."""

    place: Place
    received_at: datetime
    """When the broker took it."""


class Copies(NamedTuple):
    """Those of one event."""

    total: int
    newest: tuple[Copy, ...]
    """At most `COPIES_MAX`, the newest first."""


def add(tx: Tx, partition: int, copies: Sequence[Repeat]) -> None:
    """Note where events came again. What came once costs nothing."""
    rows = sorted((each.identity, each.place.offset, each.batch_index) for each in copies)
    if rows:
        records = {each.place.offset: each.place for each in copies}.values()
        asked = {
            "partition": partition,
            "identities": [identity.hex() for identity, _, _ in rows],
            "offsets": [offset for _, offset, _ in rows],
            "indexes": [index for _, _, index in rows],
            "records": [each.offset for each in records],
            "tenants": [each.tenant for each in records],
            "appended": [_EPOCH + timedelta(microseconds=each.appended_us) for each in records],
        }
        tx.execute(_ADD, asked)


def of(tx: Tx, tenant: str, identity: str) -> Copies:
    """The copies of the event with this identity (32 hex digits), as far as they are kept."""
    rows = tx.execute(_OF, {"tenant": tenant, "identity": identity, "limit": COPIES_MAX}).fetchall()
    return Copies(rows[0][-1] if rows else 0, tuple(Copy(Place(*row[:3]), row[3]) for row in rows))


def at(tx: Tx, tenant: str, identities: Sequence[str], partition: int, offset: int) -> set[int]:
    """Which places in the record at this position hold a copy of the events with these identities."""
    asked = {"tenant": tenant, "identities": list(identities), "partition": partition, "offset": offset}
    return {index for (index,) in tx.execute(_AT, asked).fetchall()}


def listed(tx: Tx, tenant: str, period: Period, *, before: Key | None = None, limit: int) -> list[Copy]:
    """The newest copies that the brokers took in `period`, older than `before`: at most `limit`."""
    row = tx.execute("SELECT min(appended_at) FROM usage_duplicate WHERE tenant_id = %s", (tenant,)).fetchone()
    assert row is not None
    if row[0] is None:
        return []
    conditions = _OLDER if before else ""
    place = list(before.place) if before else [0, 0, 0]
    asked = {"tenant": tenant, "before": before.time if before else period.end, "place": place}
    found: list[Copy] = []
    # Step by step into the past, each step longer, as `usage_events.counted`.
    upto, span = min(period.end, before.time + timedelta(microseconds=1)) if before else period.end, _SPAN
    while upto > max(period.start, row[0]) and len(found) < limit:
        start = max(period.start, upto - span)
        bounds = {"start": start, "end": upto, "limit": limit - len(found)}
        rows = tx.execute(_LISTED.format(conditions=conditions), asked | bounds).fetchall()
        found += [Copy(Place(*each[:3]), each[3]) for each in rows]
        upto, span = start, span * _GROWTH
    return found


_ADD = """
INSERT INTO usage_duplicate (tenant_id, identity, partition, record_offset, batch_index, appended_at)
SELECT r.tenant_id, c.identity, %(partition)s, c.record_offset, c.batch_index, r.appended_at
  FROM unnest(%(identities)s::uuid[], %(offsets)s::bigint[], %(indexes)s::integer[])
       AS c (identity, record_offset, batch_index)
  JOIN unnest(%(records)s::bigint[], %(tenants)s::text[], %(appended)s::timestamptz[])
       AS r (record_offset, tenant_id, appended_at) USING (record_offset)
"""

_OF = """
SELECT partition, record_offset, batch_index, appended_at, count(*) OVER ()
  FROM usage_duplicate
 WHERE tenant_id = %(tenant)s AND identity = %(identity)s::uuid
 ORDER BY appended_at DESC, partition DESC, record_offset DESC, batch_index DESC
 LIMIT %(limit)s
"""

_AT = """
SELECT batch_index
  FROM usage_duplicate
 WHERE tenant_id = %(tenant)s AND identity = ANY (%(identities)s::uuid[])
   AND partition = %(partition)s AND record_offset = %(offset)s
"""

_OLDER = (
    "AND (appended_at, partition, record_offset, batch_index) < (%(before)s, (%(place)s::bigint[])[1],"
    " (%(place)s::bigint[])[2], (%(place)s::bigint[])[3])"
)

_LISTED = """
SELECT partition, record_offset, batch_index, appended_at
  FROM usage_duplicate
 WHERE tenant_id = %(tenant)s AND appended_at >= %(start)s AND appended_at < %(end)s {conditions}
 ORDER BY appended_at DESC, partition DESC, record_offset DESC, batch_index DESC
 LIMIT %(limit)s
"""
