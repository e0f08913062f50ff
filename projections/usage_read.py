"""Reading usage: exact quantities up to a cut, late usage, what changed. Every call sees the transaction's snapshot."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import Measured, Meter
from billing.period import Period
from projections import generation, usage_backfill
from projections.usage import SET, TOPIC, Tx
from projections.usage_quantities import EVER, measure
from projections.usage_quantities import totals as totals_of


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
    return {need: measure(tx, tenant, customer, need, transactions) for need in dict.fromkeys(needs)}


def totals(tx: Tx, tenant: TenantId, customers: Collection[CustomerId], need: Need) -> dict[CustomerId, Decimal]:
    """The total of `quantities` for each of `customers`, read together; who has nothing is missing."""
    return {CustomerId(each): total for each, total in totals_of(tx, tenant, customers, need).items()}


def current(tx: Tx, tenant: TenantId, customer: CustomerId, meter: Meter, period: Period) -> Measured:
    """What `meter` measured in `period` by now, without the events' own values."""
    number = generation.current(tx, SET)
    stored = generation.checkpoints(tx, SET, number, TOPIC)
    positions = tuple(PartitionPosition(partition=each, offset=stored[each]) for each in sorted(stored))
    return measure(tx, tenant, customer, Need(meter, period, positions), ())


def has_late(
    tx: Tx,
    tenant: TenantId,
    customer: CustomerId,
    period: Period,
    since: Sequence[PartitionPosition],
    until: Sequence[PartitionPosition],
    *,
    earlier: bool = False,
) -> bool:
    """Whether usage of `period` came, or was voided, from `since` on and below `until`: after the period's last cut.

    `earlier`: or of any time before it, which a level carries over into it.
    """
    row = tx.execute(
        _LATE,
        {
            "tenant": tenant,
            "customer": customer,
            "start": EVER if earlier else period.start,
            "end": period.end,
            "since_partitions": [each.partition for each in since],
            "since_offsets": [each.offset for each in since],
            "partitions": [each.partition for each in until],
            "offsets": [each.offset for each in until],
        },
    ).fetchone()
    assert row is not None
    return bool(row[0])


def passed(tx: Tx, tenant: TenantId, positions: Sequence[PartitionPosition]) -> bool:
    """Whether the current generation holds everything below `positions`, and what was asked for there is backfilled."""
    stored = generation.checkpoints(tx, SET, generation.current(tx, SET), TOPIC)
    return all(stored.get(each.partition, 0) >= each.offset for each in positions) and not usage_backfill.is_pending(
        tx, tenant, {each.partition: each.offset for each in positions}
    )


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
    voided: int = 0
    """Of the counted ones, those that do not count any more."""
    amended: int = 0
    """Amendments; an event may have several."""
    repeated: int = 0
    """Corrections that changed nothing."""


def fates(tx: Tx) -> dict[str, FateCounts]:
    """What became of all events so far, by tenant; under the empty name, of those that do not tell their tenant."""
    rows = tx.execute(
        """
        SELECT tenant_id, sum(received)::bigint, sum(counted)::bigint, sum(duplicate)::bigint,
               sum(conflict)::bigint, sum(rejected)::bigint,
               sum(voided)::bigint, sum(amended)::bigint, sum(repeated)::bigint
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


# Windows tell at once that most hours hold nothing late; the rows decide about the others. OFFSET 0: as in
# `usage_statements`.
_LATE = """
WITH bounds AS (
         SELECT u.partition, coalesce(s.since, 0) AS since, u.below
           FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[]) AS u (partition, below)
           LEFT JOIN unnest(%(since_partitions)s::integer[], %(since_offsets)s::bigint[]) AS s (partition, since)
                  ON s.partition = u.partition
          WHERE coalesce(s.since, 0) < u.below)
SELECT EXISTS (
         SELECT FROM usage_series s
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_window
                               WHERE tenant_id = s.tenant_id AND series = s.series
                                 AND hour > %(start)s::timestamptz - interval '1 hour' AND hour < %(end)s
                              OFFSET 0) AS w
           JOIN bounds b ON b.partition = w.partition AND w.last_offset >= b.since AND w.first_offset < b.below
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_value
                               WHERE tenant_id = s.tenant_id AND series = s.series
                                 AND event_time >= greatest(w.hour, %(start)s)
                                 AND event_time < least(w.hour + interval '1 hour', %(end)s)
                              OFFSET 0) AS v
          WHERE s.tenant_id = %(tenant)s
            AND s.customer_id = %(customer)s
            AND v.partition = w.partition
            AND (coalesce(v.counts_from, v.record_offset) < b.since
                 AND coalesce(v.voided_offset >= b.since, true))
             <> (coalesce(v.counts_from, v.record_offset) < b.below
                 AND coalesce(v.voided_offset >= b.below, true)))
"""
