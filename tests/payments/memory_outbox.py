"""The payment outbox in memory, for the loop on a clock that a test moves; `test_outbox.py` holds it to Postgres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from billing.customer import PaymentMethodAttached, Provider
from billing.envelope import EventEnvelope
from billing.payment import DunningExhausted, PaymentAttemptStarted, PaymentDeclined, PaymentDue, PaymentSucceeded
from infra.clock import Clock
from services.payment_outbox import LEASE, PaymentTask, Started


@dataclass(slots=True)
class Row:
    task: PaymentTask
    state: str
    due_at: datetime
    not_before: datetime
    detail: str = ""


class MemoryOutbox:
    """Rows by tenant, invoice and attempt."""

    def __init__(self, clock: Clock, tenant_now: Callable[[str], datetime], lease: timedelta = LEASE) -> None:
        self._clock = clock
        self._tenant_now = tenant_now
        self._lease = lease
        self.rows: dict[tuple[str, str, int], Row] = {}

    def apply(self, envelope: EventEnvelope) -> None:
        tenant = envelope.meta.tenant
        match envelope.event:
            case PaymentDue() as e:
                task = PaymentTask(
                    tenant_id=tenant,
                    invoice_id=e.invoice_id,
                    customer_id=e.customer_id,
                    attempt=e.attempt,
                    provider=e.method.provider,
                    tries=0,
                    started=None,
                )
                self._open(task, e.due_at)
            case PaymentAttemptStarted() as e:
                row = self.rows[tenant, e.invoice_id, e.attempt]
                if row.state == "closed":
                    return
                started = Started(key=e.key, amount=e.amount, token=e.method.token, started_at=e.started_at)
                row.task = replace(row.task, provider=e.method.provider, tries=0, started=started)
                row.state, row.not_before = "started", self._clock.now()
            case PaymentDeclined() as e:
                row = self.rows[tenant, e.invoice_id, e.attempt]
                row.state = "closed"
                if e.retry_at is not None:
                    self._open(replace(row.task, attempt=e.attempt + 1, tries=0, started=None), e.retry_at)
            case PaymentSucceeded(invoice_id=invoice) | DunningExhausted(invoice_id=invoice):
                for (of, which, _), row in self.rows.items():
                    if (of, which) == (tenant, invoice):
                        row.state = "closed"
            case PaymentMethodAttached(customer_id=customer, payment_method=method):
                for (of, _, _), row in self.rows.items():
                    if of == tenant and row.task.customer_id == customer and row.state in ("manual", "due"):
                        row.task = replace(row.task, provider=method.provider)
                        row.state = "manual" if method.provider is Provider.MANUAL else "due"

    def take(self) -> PaymentTask | None:
        now = self._clock.now()
        for row in sorted(self.rows.values(), key=lambda each: (each.state != "started", each.not_before)):
            due = row.state == "started" or (row.state == "due" and row.due_at <= self._tenant_now(row.task.tenant_id))
            if due and row.not_before <= now:
                row.task = replace(row.task, tries=row.task.tries + 1)
                row.not_before = now + self._lease
                return row.task
        return None

    def again(self, task: PaymentTask, pause: timedelta, detail: str = "") -> None:
        if row := self._held(task):
            row.not_before, row.detail = self._clock.now() + pause, detail

    def park(self, task: PaymentTask, detail: str) -> None:
        if row := self._held(task):
            row.state, row.detail = "parked", detail

    def states(self) -> list[str]:
        return [row.state for row in self.rows.values()]

    def _open(self, task: PaymentTask, due_at: datetime) -> None:
        state = "manual" if task.provider is Provider.MANUAL else "due"
        self.rows.setdefault(
            (task.tenant_id, task.invoice_id, task.attempt), Row(task, state, due_at, self._clock.now())
        )

    def _held(self, task: PaymentTask) -> Row | None:
        row = self.rows[task.tenant_id, task.invoice_id, task.attempt]
        same = row.task.tries == task.tries and row.state == ("started" if task.started else "due")
        return row if same else None
