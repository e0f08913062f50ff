"""Identifiers: typed, and derived from meaning wherever meaning is unique.

A derived id makes a repetition find what the first run made: billing a period twice finds the same
invoice, and a payment retried after a timeout carries the same idempotency key.
"""

from __future__ import annotations

from datetime import datetime
from typing import NewType
from uuid import UUID, uuid5

from billing.errors import Rejected

TenantId = NewType("TenantId", str)
CustomerId = NewType("CustomerId", str)
SubscriptionId = NewType("SubscriptionId", str)
InvoiceId = NewType("InvoiceId", str)

ID_LENGTH_MAX = 128

_NAMESPACE = UUID(
    "6f1d9c52-0f0e-5f6b-9b0c-7a11b00c0001"
)  # any constant works; changing it would make every invoice new


def check_id(value: str, field: str) -> None:
    """Refuse an id that is empty, too long to be indexed, or cannot be shown.

    Raises:
        Rejected: naming `field`.
    """
    if not 0 < len(value) <= ID_LENGTH_MAX or not value.isprintable():
        raise Rejected("invalid_id", f"allowed are 1 to {ID_LENGTH_MAX} printable characters", field=field)


def invoice_id(
    tenant: TenantId, subscription: SubscriptionId, reason: str, start: datetime, end: datetime, revision: int = 0
) -> InvoiceId:
    """The one invoice of `subscription` for (`reason`, period, `revision`); SEMANTICS 24."""
    name = "|".join((tenant, subscription, reason, start.isoformat(), end.isoformat(), str(revision)))
    return InvoiceId(f"inv_{uuid5(_NAMESPACE, name).hex}")


def payment_key(invoice: InvoiceId, attempt: int) -> str:
    """Idempotency key of one collection attempt at the payment provider; every retry of the call reuses it."""
    return f"{invoice}-attempt-{attempt}"


def event_id(tenant: TenantId, sequence: int) -> str:
    """Id of the tenant's event number `sequence`; the CloudEvents id on the wire."""
    return f"{tenant}:{sequence}"
