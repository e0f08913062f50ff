"""One usage event from the log to the invoice: where it lies, what it measured, and which invoices billed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing.errors import Rejected
from billing.invoicing import BillingRun, PartitionPosition
from infra.postgres import Cursor
from projections import generation
from schemas.codec import decode_event
from services.usage_intake import identity_of


@dataclass(frozen=True, slots=True)
class Contribution:
    """What the event added to one meter."""

    meter: str
    dimensions: dict[str, str]
    number: Decimal | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Billed:
    """An invoice whose usage includes the event."""

    invoice_id: str
    number: str | None
    """None while the invoice is being made."""
    late: bool
    """True if the period was already closed when the event came."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The way of one event."""

    source: str
    id: str
    customer: str
    time: datetime
    partition: int
    offset: int
    index: int
    """Place in its batch, from 0."""
    contributions: tuple[Contribution, ...]
    subscribed: bool
    """False: no subscription covers the event's time; it is unmatched and never billed."""
    billed: tuple[Billed, ...]


def trace(tx: Cursor, tenant: str, source: str, id: str) -> Trace:
    """The way of the event (`source`, `id`) of `tenant`. `tx` reads the current projections.

    Raises:
        Rejected: no such event is counted; it may have been rejected, or not have arrived.
    """
    generation.enter_all(tx)
    row = tx.execute(_IDENTITY, {"tenant": tenant, "identity": identity_of(source, id)}).fetchone()
    if row is None:
        raise Rejected("unknown_event", f"no event ({source}, {id}) is counted for tenant {tenant}", field="id")
    customer, time, partition, offset, index = row
    at = {
        "tenant": tenant,
        "customer": customer,
        "time": time,
        "partition": partition,
        "offset": offset,
        "index": index,
    }
    contributions = tuple(
        Contribution(meter, dict(zip(names, values, strict=True)), number, text)
        for meter, names, values, number, text in tx.execute(_VALUES, at).fetchall()
    )
    subscribed = tx.execute(_SUBSCRIBED, at).fetchone() is not None
    return Trace(
        source=source,
        id=id,
        customer=customer,
        time=time,
        partition=partition,
        offset=offset,
        index=index,
        contributions=contributions,
        subscribed=subscribed,
        billed=tuple(_billed(tx, at, time, partition, offset)),
    )


def _billed(tx: Cursor, at: dict[str, object], time: datetime, partition: int, offset: int) -> Iterator[Billed]:
    for invoice_id, number, body in tx.execute(_RUNS, at).fetchall():
        run: BillingRun = decode_event(bytes(body)).event.run
        if not _below(run.cut.positions, partition, offset):
            continue
        if run.arrears is not None and time in run.arrears.period:
            yield Billed(invoice_id, number, late=False)
        for each in run.late:
            if time in each.span.period and not _below(each.since, partition, offset):
                yield Billed(invoice_id, number, late=True)


def _below(positions: tuple[PartitionPosition, ...], partition: int, offset: int) -> bool:
    return any(each.partition == partition and offset < each.offset for each in positions)


_IDENTITY = """
SELECT customer_id, event_time, partition, record_offset, batch_index
  FROM usage_identity
 WHERE tenant_id = %(tenant)s AND identity = %(identity)s
"""

_VALUES = """
SELECT s.meter, s.dimension_names, s.dimension_values, v.number, v.text_value
  FROM usage_series s
  JOIN usage_value v USING (tenant_id, series)
 WHERE s.tenant_id = %(tenant)s
   AND s.customer_id = %(customer)s
   AND v.event_time = %(time)s
   AND (v.partition, v.record_offset, v.batch_index) = (%(partition)s, %(offset)s, %(index)s)
 ORDER BY s.meter
"""

_SUBSCRIBED = """
SELECT 1
  FROM subscriptions
 WHERE tenant_id = %(tenant)s
   AND customer_id = %(customer)s
   AND starts_at <= %(time)s
   AND %(time)s < coalesce(ended_at, 'infinity')
"""

_RUNS = """
SELECT r.invoice_id, i.number, r.body
  FROM runs r
  LEFT JOIN invoices i USING (tenant_id, invoice_id)
 WHERE r.tenant_id = %(tenant)s
   AND r.customer_id = %(customer)s
   AND r.arrears_end > %(time)s
 ORDER BY r.sequence
"""
