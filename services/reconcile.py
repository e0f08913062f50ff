"""Promise 1, counted: per tenant nothing is lost and nothing is billed that was not counted.

    received = counted + unmatched + duplicate + conflict + rejected          counted = billed + unbilled + voided

`received` is counted here from the log itself. What is billed follows from the invoices in `billing.events` and their
cuts, not from the projection that made them. Everything is taken at one position of the usage log.

What is gone cannot be counted again, and the report says from where on it is (`Reconciliation.notes`): records that
the log's retention removed are taken from the hourly counts, and so are events whose identities passed the horizon
(`pruned`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from billing.invoice import InvoiceFinalized
from billing.invoicing import BillingRun
from billing.metering import UsageAmended, UsageControl, UsageVoided
from billing.subscription import SubscriptionCanceled, SubscriptionCreated, SubscriptionEnded
from infra import kafka, postgres
from infra.kafka import KafkaConfig, Record
from infra.settings import Settings
from projections import generation, usage, usage_pruning, usage_read
from schemas.codec import decode_event, decode_usage_records
from schemas.errors import DecodeError
from services.usage_intake import misaddressed
from services.usage_judged import told_tenant

BILLING = "billing.events"
NO_END = datetime(9999, 12, 31, tzinfo=UTC)

Progress = Callable[[str, int, int], None]
"""What is being read, how many records are done, and how many there are."""


@dataclass(slots=True)
class TenantCount:
    """What became of one tenant's events."""

    tenant: str
    """Empty for records that do not tell."""
    received: int = 0
    """Events in the log."""
    counted: int = 0
    """Within a subscription's span."""
    unmatched: int = 0
    """Accepted, but no subscription bills that customer at that time."""
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    billed: int = 0
    """In a period that an invoice bills, below its cut."""
    unbilled: int = 0
    voided: int = 0
    """Counted within a subscription's span, and voided since; an invoice may have billed it before."""
    pruned: int = 0
    """Counted once, but no more looked at one by one: neither matched with subscriptions nor with invoices here."""
    differences: list[str] = field(default_factory=list)
    """What does not balance, for people."""


@dataclass(slots=True)
class Reconciliation:
    """Every tenant, at one position of the usage log."""

    positions: dict[int, int]
    """Partition -> offset up to which everything was counted."""
    tenants: list[TenantCount]
    notes: list[str] = field(default_factory=list)
    """From where on was counted again, where that is not the beginning; for people."""

    @property
    def balanced(self) -> bool:
        return not any(each.differences for each in self.tenants)


def reconcile(settings: Settings, progress: Progress = lambda *_: None, tenant: str | None = None) -> Reconciliation:
    """Count everything again and compare. `tenant`: only this one is reported.

    Raises:
        Transient: Kafka or Postgres is away.
    """
    config = KafkaConfig.of(settings)
    # The invoices first: every cut in them was passed by the aggregator, so the snapshot below holds what they bill.
    billing = _billing(config, settings, progress)
    with postgres.worker_pool(settings, size=1) as pool, postgres.transaction(pool) as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        tx.execute("SET LOCAL statement_timeout = 0")
        number = generation.enter(tx, usage.SET)
        positions = generation.checkpoints(tx, usage.SET, number, usage.TOPIC)
        stored = _stored(tx, billing)
    received, notes = _received(config, positions, stored.hours, progress)
    names = sorted(received.keys() | stored.fates.keys() | stored.identities.keys())
    counts = [_tenant(name, received[name], stored) for name in names if tenant in (None, name)]
    marks = [note for each, note in stored.marks if tenant in (None, each)]
    return Reconciliation(positions, counts, notes + marks)


@dataclass(slots=True)
class _Billing:
    """Spans of subscriptions, and of what invoices bill."""

    spans: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    """(tenant, subscription) -> [customer, start, end]."""
    billed: dict[tuple[str, str, datetime, datetime], dict[int, int]] = field(default_factory=dict)
    """(tenant, customer, start, end) -> partition -> offset below which usage is billed."""

    def apply(self, tenant: str, event: Any) -> None:
        match event:
            case SubscriptionCreated():
                span = [event.customer_id, event.starts_at, event.ends_at or NO_END]
                self.spans[tenant, event.subscription_id] = span
            case SubscriptionCanceled():
                self.spans[tenant, event.subscription_id][2] = event.ends_at
            case SubscriptionEnded():
                self.spans[tenant, event.subscription_id][2] = event.ended_at
            case InvoiceFinalized():
                self._bill(tenant, event.run)

    def _bill(self, tenant: str, run: BillingRun) -> None:
        periods = [run.arrears.period] if run.arrears else []
        for period in (*periods, *(each.period for each in run.late)):
            below = self.billed.setdefault((tenant, run.customer_id, period.start, period.end), {})
            for each in run.cut.positions:
                below[each.partition] = max(below.get(each.partition, 0), each.offset)


def _billing(config: KafkaConfig, settings: Settings, progress: Progress) -> _Billing:
    billing = _Billing()
    ends = kafka.end_offsets(config, BILLING, range(settings.billing_partitions))
    done = 0
    for records in kafka.scan(config, BILLING, dict.fromkeys(ends, 0), ends):
        for record in records:
            envelope = decode_event(record.value)
            billing.apply(envelope.meta.tenant, envelope.event)
        done += len(records)
        progress(f"reading {BILLING}", done, sum(ends.values()))
    return billing


def _received(
    config: KafkaConfig,
    positions: Mapping[int, int],
    hours: Sequence[tuple[str, int, datetime, int]],
    progress: Progress,
) -> tuple[Counter[str], list[str]]:
    """Events in the log by tenant, up to `positions`, and notes.

    Where retention removed the beginning of a partition, the hours up to that of its first record are taken from
    `hours`: (tenant, partition, hour of the append, received).
    """
    starts = kafka.start_offsets(config, usage.TOPIC, list(positions))
    trusted: dict[int, datetime] = {each: NO_END for each, start in starts.items() if start > 0}
    notes = []
    received: Counter[str] = Counter()
    done, total = 0, sum(positions.values())
    for records in kafka.scan(config, usage.TOPIC, starts, positions):
        for record in records:
            upto = trusted.get(record.partition)
            if upto is NO_END:
                upto = trusted[record.partition] = hour_of(record.appended_at)
                start = starts[record.partition]
                notes.append(
                    f"{usage.TOPIC}/{record.partition} begins at offset {start}: events appended up to the end of hour"
                    f" {upto:%Y-%m-%d %H}:00 UTC are taken from the hourly counts, later ones were counted again"
                )
            if upto is not None and hour_of(record.appended_at) <= upto:
                continue
            tenant, events = events_in(record)
            if events:
                received[tenant] += events
        done += len(records)
        progress(f"reading {usage.TOPIC}", done, total)
    notes += [
        f"{usage.TOPIC}/{each} holds nothing below {positions[each]}: all of it is taken from the hourly counts"
        for each, upto in trusted.items()
        if upto is NO_END
    ]
    for tenant, partition, hour, count in hours:
        if partition in trusted and hour <= trusted[partition]:
            received[tenant] += count
    return received, notes


def hour_of(instant: datetime) -> datetime:
    """The beginning of its hour."""
    return instant.replace(minute=0, second=0, microsecond=0)


def events_in(record: Record) -> tuple[str, int]:
    """The tenant that a record tells and how many events it holds; what cannot be read counts as one."""
    try:
        content = decode_usage_records(record.value)
    except DecodeError:
        return "", 1
    tenant = told_tenant(content.tenant)
    if isinstance(content, UsageVoided | UsageAmended):
        return tenant, 0
    if isinstance(content, UsageControl):
        return tenant, 0 if misaddressed(record, content.tenant) is None else 1
    return tenant, max(1, len(content.events))


@dataclass(slots=True)
class _Stored:
    """What the aggregator's tables say, by tenant."""

    fates: dict[str, usage_read.FateCounts]
    identities: dict[str, int]
    matched: dict[str, int]
    billed: dict[str, int]
    unbilled: dict[str, int]
    voided: dict[str, int]
    voids: dict[str, int]
    """Of all identities, matched or not."""
    refused: dict[str, int]
    values: dict[str, int]
    windows: dict[str, int]
    pruned: dict[str, int]
    hours: list[tuple[str, int, datetime, int]]
    """(Tenant, partition, hour of the append, received)."""
    marks: list[tuple[str, str]]
    """(Tenant, how far its identities are pruned)."""


def _stored(tx: postgres.Cursor, billing: _Billing) -> _Stored:
    spans = [(tenant, *span) for (tenant, _), span in billing.spans.items()]
    billed = [(*key, partition, offset) for key, below in billing.billed.items() for partition, offset in below.items()]
    asked = {
        f"{name}_{place}": [row[place] for row in rows]
        for name, rows, width in (("span", spans, 4), ("billed", billed, 6))
        for place in range(width)
    }

    def counted(statement: str) -> dict[str, int]:
        return dict(tx.execute(statement, asked).fetchall())

    return _Stored(
        fates=usage_read.fates(tx),
        identities=counted(_EVENTS.format(where="true")),
        matched=counted(_EVENTS.format(where=_MATCHED)),
        billed=counted(_EVENTS.format(where=f"{_COUNTS} AND {_MATCHED} AND {_BILLED}")),
        unbilled=counted(_EVENTS.format(where=f"{_COUNTS} AND {_MATCHED} AND NOT {_BILLED}")),
        voided=counted(_EVENTS.format(where=f"NOT {_COUNTS} AND {_MATCHED}")),
        voids=counted(f"SELECT i.tenant_id, count(*) FROM usage_identity i WHERE NOT {_COUNTS} GROUP BY i.tenant_id"),
        refused=counted("SELECT tenant_id, sum(events)::bigint FROM usage_rejected GROUP BY tenant_id"),
        values=counted(f"SELECT i.tenant_id, count(*) FROM usage_value i WHERE {_COUNTS} GROUP BY i.tenant_id"),
        windows=counted("SELECT tenant_id, sum(events)::bigint FROM usage_window GROUP BY tenant_id"),
        pruned=counted(_PRUNED),
        hours=tx.execute("SELECT tenant_id, partition, hour, received FROM usage_fate").fetchall(),
        marks=[
            (
                tenant,
                f"{tenant}, partition {partition}: events appended before {before:%Y-%m-%d %H}:00 UTC are beyond the"
                " dedupe horizon; their counts and sums were checked, not each of them",
            )
            for (tenant, partition), before in usage_pruning.marks(tx).items()
        ],
    )


_EVENTS = """
SELECT i.tenant_id, count(*)
  FROM usage_identity i
  LEFT JOIN usage_pruned p USING (tenant_id, partition)
 WHERE i.appended_at >= coalesce(p.before, '-infinity') AND {where}
 GROUP BY i.tenant_id
"""

_COUNTS = "(i.voided_offset IS NULL)"

_PRUNED = """
SELECT f.tenant_id, sum(f.counted)::bigint
  FROM usage_fate f
  JOIN usage_pruned p USING (tenant_id, partition)
 WHERE f.hour < p.before
 GROUP BY f.tenant_id
"""

_MATCHED = """
EXISTS (SELECT FROM unnest(%(span_0)s::text[], %(span_1)s::text[], %(span_2)s::timestamptz[], %(span_3)s::timestamptz[])
                 AS s (tenant_id, customer_id, start, stop)
         WHERE s.tenant_id = i.tenant_id AND s.customer_id = i.customer_id
           AND i.event_time >= s.start AND i.event_time < s.stop)
"""

_BILLED = """
EXISTS (SELECT FROM unnest(%(billed_0)s::text[], %(billed_1)s::text[], %(billed_2)s::timestamptz[],
                           %(billed_3)s::timestamptz[], %(billed_4)s::integer[], %(billed_5)s::bigint[])
                 AS b (tenant_id, customer_id, start, stop, partition, below)
         WHERE b.tenant_id = i.tenant_id AND b.customer_id = i.customer_id AND b.partition = i.partition
           AND i.event_time >= b.start AND i.event_time < b.stop AND i.record_offset < b.below)
"""


def _tenant(name: str, received: int, stored: _Stored) -> TenantCount:
    nothing = usage_read.FateCounts(0, 0, 0, 0, 0)
    fates = stored.fates.get(name, nothing)
    identities, matched = stored.identities.get(name, 0), stored.matched.get(name, 0)
    made = TenantCount(
        tenant=name,
        received=received,
        counted=matched,
        unmatched=identities - matched,
        duplicate=fates.duplicate,
        conflict=fates.conflict,
        rejected=fates.rejected,
        billed=stored.billed.get(name, 0),
        unbilled=stored.unbilled.get(name, 0),
        voided=stored.voided.get(name, 0),
        pruned=stored.pruned.get(name, 0),
    )
    accounted = made.counted + made.unmatched + made.duplicate + made.conflict + made.rejected + made.pruned
    for said, one, other in (
        ("received, and accounted for", received, accounted),
        ("received, and received by the hourly counts", received, fates.received),
        ("counted once, and counted by the hourly counts", identities + made.pruned, fates.counted),
        ("counted, and billed + unbilled + voided", made.counted, made.billed + made.unbilled + made.voided),
        ("rejected + conflict, and refusals kept", fates.rejected + fates.conflict, stored.refused.get(name, 0)),
        ("values, and values in hourly windows", stored.values.get(name, 0), stored.windows.get(name, 0)),
    ):
        if one != other:
            made.differences.append(f"{said}: {one:,} and {other:,} differ by {abs(one - other):,}")
    if not made.pruned and (voids := stored.voids.get(name, 0)) != fates.voided:
        said = f"voided one by one, and by the hourly counts: {voids:,} and {fates.voided:,}"
        made.differences.append(f"{said} differ by {abs(voids - fates.voided):,}")
    return made
