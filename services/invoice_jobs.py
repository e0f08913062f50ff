"""Invoice jobs: written from the log, claimed tenant by tenant, in the order of the log.

A tenant's jobs are worked on by one worker at a time, so that its invoices are numbered in the order in which their
periods were closed; different tenants go in parallel. What a worker says about a job counts only if nobody claimed
it since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from billing.envelope import EventEnvelope
from billing.ids import TenantId
from billing.invoicing import BillingRun
from billing.subscription import BillingPeriodClosed, SubscriptionActivated
from infra import postgres
from schemas.codec import decode_event

LEASE: Final = timedelta(seconds=60)  # longer than rating and issuing a batch takes
BATCH_MAX: Final = 100

WANTED: Final = (SubscriptionActivated, BillingPeriodClosed)


@dataclass(frozen=True, slots=True)
class Job:
    """An invoice to be made, that this worker claimed."""

    tenant_id: TenantId
    sequence: int
    """Of the event that asks for it."""
    run: BillingRun
    correlation_id: str
    causation_id: str
    """Id of that event."""
    tries: int
    """Times it was claimed, this one included."""


def apply(tx: postgres.Cursor, envelope: EventEnvelope, value: bytes) -> None:
    """Write the job of an event that asks for an invoice. Repeating it changes nothing."""
    run = envelope.event.run
    if run is None:
        return
    tx.execute(
        _WRITE,
        {
            "tenant": envelope.meta.tenant,
            "invoice": run.invoice_id,
            "sequence": envelope.meta.sequence,
            "subscription": run.subscription_id,
            "customer": run.customer_id,
            "event": value,
        },
    )


_WRITE = """
INSERT INTO app.invoice_job (tenant_id, invoice_id, sequence, subscription_id, customer_id, event)
VALUES (%(tenant)s, %(invoice)s, %(sequence)s, %(subscription)s, %(customer)s, %(event)s)
    ON CONFLICT (tenant_id, invoice_id) DO NOTHING
"""


class InvoiceJobs:
    """The jobs as invoicing workers see them."""

    def __init__(self, pool: postgres.Pool, lease: timedelta = LEASE) -> None:
        self._pool = pool
        self._lease = lease

    def claim(self) -> list[Job]:
        """The oldest open jobs of one tenant, in order, for the time of a lease; empty if no tenant has any to do."""
        with postgres.transaction(self._pool) as tx:
            rows = tx.execute(_CLAIM, {"lease": self._lease, "limit": BATCH_MAX}).fetchall()
        return sorted((_job(row) for row in rows), key=lambda job: job.sequence)

    def release(self, jobs: Sequence[Job], pause: timedelta, detail: str) -> None:
        """Give `jobs` back, to be claimed again after `pause`."""
        self._settle(_RELEASE, jobs, {"pause": pause, "detail": detail})

    def done(self, jobs: Sequence[Job]) -> None:
        """The invoices of `jobs` are in the log."""
        self._settle(_DONE, jobs, {})

    def park(self, job: Job, detail: str) -> None:
        """Set `job` aside until a person looks at it; those behind it go on."""
        self._settle(_PARK, [job], {"detail": detail})

    def _settle(self, statement: str, jobs: Sequence[Job], more: dict[str, Any]) -> None:
        if not jobs:
            return
        with postgres.transaction(self._pool) as tx:
            tx.executemany(
                statement,
                [{**more, "tenant": job.tenant_id, "invoice": job.run.invoice_id, "tries": job.tries} for job in jobs],
            )


# The head of each tenant's open jobs, found by skipping from tenant to tenant along the index. While somebody works
# on a tenant its head is claimed, and its not_before is the end of that lease.
_CLAIM = """
WITH RECURSIVE heads AS (
    (SELECT tenant_id, invoice_id, sequence, not_before
       FROM app.invoice_job
      WHERE state IN ('waiting', 'claimed')
      ORDER BY tenant_id, sequence
      LIMIT 1)
    UNION ALL
    SELECT next.*
      FROM heads
     CROSS JOIN LATERAL (
           SELECT tenant_id, invoice_id, sequence, not_before
             FROM app.invoice_job
            WHERE state IN ('waiting', 'claimed') AND tenant_id > heads.tenant_id
            ORDER BY tenant_id, sequence
            LIMIT 1) next
), head AS (
    SELECT j.tenant_id, j.sequence
      FROM app.invoice_job j
      JOIN heads USING (tenant_id, invoice_id)
     WHERE j.state IN ('waiting', 'claimed') AND j.not_before <= clock_timestamp()
     ORDER BY j.not_before
     LIMIT 1
       FOR UPDATE OF j SKIP LOCKED
), batch AS (
    SELECT j.tenant_id, j.invoice_id
      FROM app.invoice_job j
      JOIN head USING (tenant_id)
     WHERE j.state IN ('waiting', 'claimed') AND j.sequence >= head.sequence
     ORDER BY j.sequence
     LIMIT %(limit)s
)
UPDATE app.invoice_job j
   SET state = 'claimed', tries = j.tries + 1, not_before = clock_timestamp() + %(lease)s
  FROM batch
 WHERE (j.tenant_id, j.invoice_id) = (batch.tenant_id, batch.invoice_id) AND j.state IN ('waiting', 'claimed')
RETURNING j.tenant_id, j.sequence, j.event, j.tries
"""

_RELEASE = """
UPDATE app.invoice_job
   SET state = 'waiting', not_before = clock_timestamp() + %(pause)s, detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND state = 'claimed' AND tries = %(tries)s
"""

# Whoever holds the claim: an invoice that is in the log is done.
_DONE = """
UPDATE app.invoice_job
   SET state = 'done', done_at = clock_timestamp(), detail = ''
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND state <> 'done'
"""

_PARK = """
UPDATE app.invoice_job
   SET state = 'parked', detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND state = 'claimed' AND tries = %(tries)s
"""


@dataclass(frozen=True, slots=True)
class ParkedJob:
    """A job that waits for a person."""

    tenant_id: str
    invoice_id: str
    subscription_id: str
    customer_id: str
    reason: str
    tries: int
    written_at: datetime


def parked(tx: postgres.Cursor, tenant: str | None = None) -> list[ParkedJob]:
    """Every parked job, of `tenant` or of all, oldest first."""
    return [ParkedJob(*row) for row in tx.execute(_PARKED, {"tenant": tenant}).fetchall()]


_PARKED = """
SELECT tenant_id, invoice_id, subscription_id, customer_id, detail, tries, written_at
  FROM app.invoice_job
 WHERE state = 'parked' AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
 ORDER BY tenant_id, sequence
"""


def unpark(tx: postgres.Cursor, tenant: str, invoice: str | None = None) -> int:
    """Put a parked job, or all of the tenant's, back to work; how many there were."""
    return tx.execute(_UNPARK, {"tenant": tenant, "invoice": invoice}).rowcount


_UNPARK = """
UPDATE app.invoice_job
   SET state = 'waiting', not_before = clock_timestamp(), detail = 'unparked'
 WHERE tenant_id = %(tenant)s AND state = 'parked'
   AND (%(invoice)s::text IS NULL OR invoice_id = %(invoice)s)
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much is to be done."""

    open: int
    parked: int
    oldest_s: int
    """Age of the oldest open job in seconds."""


def backlog(tx: postgres.Cursor, tenant: str | None = None) -> Backlog:
    """Open and parked jobs, of `tenant` or of all."""
    row = tx.execute(_BACKLOG, {"tenant": tenant}).fetchone()
    assert row is not None
    return Backlog(*map(int, row))


_BACKLOG = """
SELECT count(*) FILTER (WHERE state <> 'parked'),
       count(*) FILTER (WHERE state = 'parked'),
       coalesce(extract(epoch FROM clock_timestamp() - min(written_at) FILTER (WHERE state <> 'parked')), 0)::bigint
  FROM app.invoice_job
 WHERE state IN ('waiting', 'claimed', 'parked') AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
"""


def _job(row: tuple[Any, ...]) -> Job:
    tenant, sequence, event, tries = row
    envelope = decode_event(bytes(event))
    return Job(
        tenant_id=TenantId(tenant),
        sequence=sequence,
        run=envelope.event.run,
        correlation_id=envelope.meta.correlation_id,
        causation_id=envelope.meta.event_id,
        tries=tries,
    )
