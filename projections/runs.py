"""Billing runs: every invoice to be made, with all its inputs but the quantities."""

from __future__ import annotations

from billing.envelope import EventEnvelope
from billing.invoice import InvoiceFinalized, InvoiceOmitted
from billing.invoicing import BillingRun
from billing.subscription import BillingPeriodClosed, SubscriptionActivated
from projections.generation import Tx
from schemas.codec import decode_event, encode_event


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Keep a run when it is fixed, and mark it when its invoice is issued or omitted."""
    match envelope.event:
        case SubscriptionActivated(run=run) | BillingPeriodClosed(run=run) if run is not None:
            tx.execute(
                _FIX,
                {
                    "tenant": envelope.meta.tenant,
                    "invoice": run.invoice_id,
                    "subscription": run.subscription_id,
                    "customer": run.customer_id,
                    "reason": run.reason,
                    "currency": run.currency,
                    "plan": run.plan,
                    "version": run.price_book_version,
                    "engine": run.rating_engine,
                    "arrears_start": run.arrears.period.start if run.arrears else None,
                    "arrears_end": run.arrears.period.end if run.arrears else None,
                    "advance_start": run.advance.period.start if run.advance else None,
                    "advance_end": run.advance.period.end if run.advance else None,
                    "cut_until": run.cut.until,
                    "fixed_at": envelope.meta.occurred_at,
                    "sequence": envelope.meta.sequence,
                    "body": encode_event(envelope),
                },
            )
        case InvoiceFinalized(invoice_id=invoice):
            tx.execute(_ISSUED, ("issued", envelope.meta.sequence, envelope.meta.tenant, invoice))
        case InvoiceOmitted(invoice_id=invoice):
            tx.execute(_ISSUED, ("omitted", envelope.meta.sequence, envelope.meta.tenant, invoice))


_FIX = """
INSERT INTO runs (tenant_id, invoice_id, subscription_id, customer_id, reason, currency, plan, price_book_version,
                  rating_engine, arrears_start, arrears_end, advance_start, advance_end, cut_until, state, fixed_at,
                  sequence, body)
VALUES (%(tenant)s, %(invoice)s, %(subscription)s, %(customer)s, %(reason)s, %(currency)s, %(plan)s, %(version)s,
        %(engine)s, %(arrears_start)s, %(arrears_end)s, %(advance_start)s, %(advance_end)s, %(cut_until)s, 'awaited',
        %(fixed_at)s, %(sequence)s, %(body)s)
"""

_ISSUED = """
UPDATE runs
   SET state = %s, issued_sequence = %s
 WHERE tenant_id = %s AND invoice_id = %s
"""


def run(tx: Tx, tenant: str, invoice_id: str) -> BillingRun:
    """The run of an invoice, with every input.

    Raises:
        LookupError: there is no such run, or it has not been projected yet.
    """
    row = tx.execute("SELECT body FROM runs WHERE tenant_id = %s AND invoice_id = %s", (tenant, invoice_id)).fetchone()
    if row is None:
        raise LookupError(f"tenant {tenant} has no run for invoice {invoice_id}")
    return decoded(bytes(row[0]))


def decoded(body: bytes) -> BillingRun:
    """The run in the event `body`."""
    fixed = decode_event(body).event
    assert isinstance(fixed.run, BillingRun)
    return fixed.run
