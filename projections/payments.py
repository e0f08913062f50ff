"""Payments: what is still to be collected, and every attempt at it."""

from __future__ import annotations

from typing import Any

from billing.envelope import EventEnvelope
from billing.payment import (
    DunningExhausted,
    PaymentAttemptStarted,
    PaymentDeclined,
    PaymentDue,
    PaymentOutcomeUnknown,
    PaymentSucceeded,
)
from projections.generation import Tx


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Move a payment, and its attempt, to where the event leaves them."""
    event = envelope.event
    at: dict[str, Any] = {
        "tenant": envelope.meta.tenant,
        "sequence": envelope.meta.sequence,
        "at": envelope.meta.occurred_at,
    }
    match event:
        case PaymentDue() as e:
            at |= {"customer": e.customer_id, "currency": e.amount.currency, "minor": e.amount.minor}
            at |= {"invoice": e.invoice_id, "attempt": e.attempt, "provider": e.method.provider, "due_at": e.due_at}
            tx.execute(_DUE, at)
        case PaymentAttemptStarted() as e:
            at |= {"invoice": e.invoice_id, "attempt": e.attempt, "key": e.key, "provider": e.method.provider}
            at |= {"currency": e.amount.currency, "minor": e.amount.minor, "started_at": e.started_at}
            tx.execute(_START, at)
            tx.execute(_PENDING, at)
        case PaymentSucceeded() as e:
            at |= {"invoice": e.invoice_id, "attempt": e.attempt, "reference": e.reference}
            tx.execute(_COLLECTED, at)
            tx.execute(_SUCCEEDED, at)
        case PaymentDeclined() as e:
            at |= {"invoice": e.invoice_id, "attempt": e.attempt, "kind": e.kind, "code": e.code}
            at |= {"retry_at": e.retry_at}
            tx.execute(_RETRY if e.retry_at else _REFUSED, at)
            tx.execute(_DECLINED, at)
        case PaymentOutcomeUnknown() as e:
            at |= {"invoice": e.invoice_id, "attempt": e.attempt, "detail": e.detail}
            tx.execute(_UNKNOWN, at)
            tx.execute(_ATTEMPT_UNKNOWN, at)
        case DunningExhausted() as e:
            tx.execute(_EXHAUSTED, at | {"invoice": e.invoice_id})


_DUE = """
INSERT INTO payments (tenant_id, invoice_id, customer_id, currency, amount_minor, state, attempt, provider,
                      next_attempt_at, sequence)
VALUES (%(tenant)s, %(invoice)s, %(customer)s, %(currency)s, %(minor)s, 'due', %(attempt)s, %(provider)s,
        %(due_at)s, %(sequence)s)
"""

_START = """
INSERT INTO payment_attempts (tenant_id, invoice_id, attempt, key, provider, currency, amount_minor, state, started_at)
VALUES (%(tenant)s, %(invoice)s, %(attempt)s, %(key)s, %(provider)s, %(currency)s, %(minor)s, 'pending', %(started_at)s)
"""

_PENDING = """
UPDATE payments
   SET state = 'pending',
       attempt = %(attempt)s,
       provider = %(provider)s,
       next_attempt_at = NULL,
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""

_COLLECTED = """
UPDATE payments
   SET state = 'collected',
       attempt = %(attempt)s,
       next_attempt_at = NULL,
       reference = %(reference)s,
       settled_at = %(at)s,
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""

_SUCCEEDED = """
UPDATE payment_attempts
   SET state = 'succeeded', reference = %(reference)s, answered_at = %(at)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
"""

_RETRY = """
UPDATE payments
   SET state = 'due', attempt = %(attempt)s + 1, next_attempt_at = %(retry_at)s, sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""

_REFUSED = """
UPDATE payments
   SET state = 'declined', next_attempt_at = NULL, sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""

_DECLINED = """
UPDATE payment_attempts
   SET state = 'declined',
       decline_kind = %(kind)s,
       decline_code = %(code)s,
       answered_at = %(at)s,
       retry_at = %(retry_at)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
"""

_UNKNOWN = """
UPDATE payments
   SET state = 'unknown', sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""

_ATTEMPT_UNKNOWN = """
UPDATE payment_attempts
   SET state = 'unknown', detail = %(detail)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s AND attempt = %(attempt)s
"""

_EXHAUSTED = """
UPDATE payments
   SET state = 'exhausted', sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND invoice_id = %(invoice)s
"""
