"""Reading about backfills: how far they are, and what one would change."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from projections.usage import Tx


class Progress(NamedTuple):
    """A backfill in one partition."""

    version: int
    partition: int
    control: bytes
    meter: str
    begins_at: datetime
    ends_at: datetime
    appended_at: datetime
    state: str
    detail: str
    events: int
    unmeasured: int
    to_read: int
    """Offsets of the log from the first event that is counted again; 0 while it has not begun."""
    read: int


def progress(tx: Tx, tenant: str, meter: str | None = None) -> list[Progress]:
    """Every backfill of `tenant`, of `meter` or of all, the newest first, by partition."""
    rows = tx.execute(
        """
        SELECT version, partition, control, meter, begins_at, ends_at, appended_at, state, detail, events, unmeasured,
               coalesce(record_offset - first_offset, 0), coalesce(next_offset - first_offset, 0)
          FROM usage_backfill
         WHERE tenant_id = %s AND meter = coalesce(%s, meter)
         ORDER BY version DESC, partition
        """,
        (tenant, meter),
    ).fetchall()
    return [Progress(version, partition, bytes(control), *rest) for version, partition, control, *rest in rows]


def newest_before(
    tx: Tx, tenant: str, partition: int, offset: int, begins: datetime, ends: datetime
) -> datetime | None:
    """Time of the newest event of the span that stands in the partition before `offset`; None if none does."""
    row = tx.execute(
        """
        SELECT max(event_time)
          FROM usage_identity
         WHERE tenant_id = %s AND partition = %s AND event_time >= %s AND event_time < %s
           AND record_offset < %s AND voided_offset IS NULL
        """,
        (tenant, partition, begins, ends, offset),
    ).fetchone()
    return None if row is None else row[0]


class Counted(NamedTuple):
    """What an event counts for a meter now."""

    customer: str
    names: list[str]
    values: list[str]
    time: datetime
    number: Decimal | None
    text: str | None
    place: tuple[int, int, int]


def counted(
    tx: Tx, tenant: str, meter: str, begins: datetime, ends: datetime, events_max: int | None = None
) -> Iterator[Counted]:
    """What every event of the span counts for `meter`. `events_max`: of one more than these, if there are."""
    rows = tx.execute(
        """
        SELECT s.customer_id, s.dimension_names, s.dimension_values, v.event_time, trim_scale(v.number), v.text_value,
               v.partition, v.record_offset, v.batch_index
          FROM usage_series s
          JOIN usage_value v ON v.tenant_id = s.tenant_id AND v.series = s.series
         WHERE s.tenant_id = %s AND s.meter = %s AND v.event_time >= %s AND v.event_time < %s
           AND v.voided_offset IS NULL
         LIMIT %s
        """,
        (tenant, meter, begins, ends, None if events_max is None else events_max + 1),
    )
    for *what, partition, offset, index in rows:
        customer, names, values, time, number, text = what
        yield Counted(customer, names, values, time, number, text, (partition, offset, index))
