"""The payment outbox: rows written from the log, taken and given back by payment workers.

Only the log opens, starts and closes a row. A worker takes one for the time of a lease, and what it says about it
afterwards counts only if nobody took the row since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from billing.customer import PaymentMethodAttached, Provider
from billing.envelope import EventEnvelope
from billing.ids import CustomerId, InvoiceId, TenantId
from billing.money import Money
from billing.payment import DunningExhausted, PaymentAttemptStarted, PaymentDeclined, PaymentDue, PaymentSucceeded
from infra import postgres
from projections import generation

LEASE: Final = timedelta(seconds=60)  # longer than a look-up and a charge (20 s each) and a command (10 s)

WANTED: Final = (
    PaymentDue,
    PaymentAttemptStarted,
    PaymentDeclined,
    PaymentSucceeded,
    DunningExhausted,
    PaymentMethodAttached,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the log says about the start of an attempt."""

    key: str
    amount: Money
    token: str
    started_at: datetime
    """First use of the key, by the real clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentTask:
    """An attempt that this worker took."""

    tenant_id: TenantId
    invoice_id: InvoiceId
    customer_id: CustomerId
    attempt: int
    provider: Provider
    tries: int
    """Times it was taken in its present state, this one included."""
    started: Started | None
    """None: the right to ask the provider is still to be claimed."""


def apply(tx: postgres.Cursor, envelope: EventEnvelope, _value: bytes) -> None:
    """Write what one event means for the rows of its invoice. Repeating it changes nothing."""
    at = {"tenant": envelope.meta.tenant}
    match envelope.event:
        case PaymentDue() as e:
            row = {"attempt": e.attempt, "customer": e.customer_id, "provider": e.method.provider, "due_at": e.due_at}
            tx.execute(_OPEN, {**at, "invoice": e.invoice_id, **row})
        case PaymentAttemptStarted() as e:
            tx.execute(
                _START,
                {
                    **at,
                    "invoice": e.invoice_id,
                    "attempt": e.attempt,
                    "provider": e.method.provider,
                    "key": e.key,
                    "currency": e.amount.currency,
                    "minor": e.amount.minor,
                    "token": e.method.token,
                    "started_at": e.started_at,
                },
            )
        case PaymentDeclined() as e:
            declined = {**at, "invoice": e.invoice_id, "attempt": e.attempt}
            tx.execute(_DECLINE, {**declined, "detail": e.code})
            if e.retry_at is not None:
                tx.execute(_OPEN_NEXT, {**declined, "due_at": e.retry_at})
        case PaymentSucceeded(invoice_id=invoice):
            tx.execute(_CLOSE, {**at, "invoice": invoice, "detail": "collected"})
        case DunningExhausted(invoice_id=invoice):
            tx.execute(_CLOSE, {**at, "invoice": invoice, "detail": "exhausted"})
        case PaymentMethodAttached(customer_id=customer, payment_method=method):
            tx.execute(_SWITCH, {**at, "customer": customer, "provider": method.provider})


_OPEN = """
INSERT INTO app.payment_outbox (tenant_id, invoice_id, attempt, customer_id, provider, due_at, state)
VALUES (%(tenant)s, %(invoice)s, %(attempt)s, %(customer)s, %(provider)s, %(due_at)s,
        CASE %(provider)s WHEN 'manual' THEN 'manual' ELSE 'due' END)
    ON CONFLICT (tenant_id, invoice_id, attempt) DO NOTHING
"""

_START = """
UPDATE app.payment_outbox
   SET state = 'started', provider = %(provider)s, key = %(key)s, currency = %(currency)s, amount_minor = %(minor)s,
       token = %(token)s, started_at = %(started_at)s, tries = 0, not_before = clock_timestamp(), detail = ''
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
   AND state IN ('manual', 'due', 'parked')
"""

_DECLINE = """
UPDATE app.payment_outbox
   SET state = 'closed', closed_at = clock_timestamp(), detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s AND state <> 'closed'
"""

_OPEN_NEXT = """
INSERT INTO app.payment_outbox (tenant_id, invoice_id, attempt, customer_id, provider, due_at, state)
SELECT tenant_id, invoice_id, attempt + 1, customer_id, provider, %(due_at)s, 'due'
  FROM app.payment_outbox
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
    ON CONFLICT (tenant_id, invoice_id, attempt) DO NOTHING
"""

_CLOSE = """
UPDATE app.payment_outbox
   SET state = 'closed', closed_at = clock_timestamp(), detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND state <> 'closed'
"""

# An attempt that has begun keeps the method it began with; the others take the new one.
_SWITCH = """
UPDATE app.payment_outbox
   SET provider = %(provider)s,
       state = CASE %(provider)s WHEN 'manual' THEN 'manual' ELSE 'due' END,
       not_before = clock_timestamp()
 WHERE tenant_id = %(tenant)s AND customer_id = %(customer)s AND state IN ('manual', 'due')
"""


class PaymentOutbox:
    """The rows as payment workers see them."""

    def __init__(self, pool: postgres.Pool, lease: timedelta = LEASE) -> None:
        self._pool = pool
        self._lease = lease

    def take(self) -> PaymentTask | None:
        """An attempt that is due and that nobody works on, for the time of a lease; None if there is none.

        A retry is due by its tenant's clock; started attempts come first.
        """
        with postgres.transaction(self._pool) as tx:
            generation.enter(tx, "billing")
            row = tx.execute(_TAKE, {"lease": self._lease}).fetchone()
        return None if row is None else _task(row)

    def again(self, task: PaymentTask, pause: timedelta, detail: str = "") -> None:
        """Give `task` back, to be taken again after `pause`."""
        with postgres.transaction(self._pool) as tx:
            tx.execute(_AGAIN, {**_row(task), "pause": pause, "detail": detail})

    def park(self, task: PaymentTask, detail: str) -> None:
        """Set `task` aside until a person looks at it."""
        with postgres.transaction(self._pool) as tx:
            tx.execute(_PARK, {**_row(task), "detail": detail})


# The lease is the row's own not_before: a worker that dies gives its rows back by doing nothing.
_TAKE = """
WITH due AS (
    SELECT o.tenant_id, o.invoice_id, o.attempt
      FROM app.payment_outbox o
      JOIN tenants t USING (tenant_id)
     WHERE o.state IN ('due', 'started')
       AND o.not_before <= clock_timestamp()
       AND (o.state = 'started' OR o.due_at <= coalesce(t.test_clock, clock_timestamp()))
     ORDER BY o.state DESC, o.not_before
     LIMIT 1
       FOR UPDATE OF o SKIP LOCKED
)
UPDATE app.payment_outbox o
   SET tries = o.tries + 1, not_before = clock_timestamp() + %(lease)s
  FROM due
 WHERE (o.tenant_id, o.invoice_id, o.attempt) = (due.tenant_id, due.invoice_id, due.attempt)
RETURNING o.tenant_id, o.invoice_id, o.customer_id, o.attempt, o.provider, o.tries, o.state,
          o.key, o.currency, o.amount_minor, o.token, o.started_at
"""

_AGAIN = """
UPDATE app.payment_outbox
   SET not_before = clock_timestamp() + %(pause)s, detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
   AND tries = %(tries)s AND state = %(state)s
"""

_PARK = """
UPDATE app.payment_outbox
   SET state = 'parked', detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
   AND tries = %(tries)s AND state = %(state)s
"""


def unpark(tx: postgres.Cursor, tenant: str, invoice: str) -> int:
    """Put the parked attempts of an invoice back to work; how many there were."""
    return tx.execute(_UNPARK, {"tenant": tenant, "invoice": invoice}).rowcount


_UNPARK = """
UPDATE app.payment_outbox
   SET state = CASE WHEN key IS NULL THEN 'due' ELSE 'started' END, not_before = clock_timestamp(), detail = ''
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND state = 'parked'
"""


def parked(tx: postgres.Cursor, tenant: str | None = None) -> list[tuple[str, str, int, str]]:
    """Tenant, invoice, attempt and reason of every parked attempt."""
    rows = tx.execute(_PARKED, {"tenant": tenant}).fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


_PARKED = """
SELECT tenant_id, invoice_id, attempt, detail
  FROM app.payment_outbox
 WHERE state = 'parked' AND (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
 ORDER BY tenant_id, invoice_id, attempt
"""


def _row(task: PaymentTask) -> dict[str, Any]:
    return {
        "tenant": task.tenant_id,
        "invoice": task.invoice_id,
        "attempt": task.attempt,
        "tries": task.tries,
        "state": "started" if task.started else "due",
    }


def _task(row: tuple[Any, ...]) -> PaymentTask:
    tenant, invoice, customer, attempt, provider, tries, state, key, currency, minor, token, started_at = row
    started = None
    if state == "started":
        started = Started(key=key, amount=Money(minor, currency), token=token, started_at=started_at)
    return PaymentTask(
        tenant_id=TenantId(tenant),
        invoice_id=InvoiceId(invoice),
        customer_id=CustomerId(customer),
        attempt=attempt,
        provider=Provider(provider),
        tries=tries,
        started=started,
    )
