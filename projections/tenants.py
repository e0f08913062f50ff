"""Tenants: how each bills, its present, and the sequence of its last applied event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from billing.backfilling import MeterBackfillOrdered
from billing.envelope import EventEnvelope
from billing.tenant import ClockAdvanced, TenantRegistered, TenantSettingsChanged, UsageSpreadSet
from projections.generation import Tx


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Record how a tenant bills and what its test clock says."""
    tenant = envelope.meta.tenant
    match envelope.event:
        case TenantRegistered() as e:
            tx.execute(
                _REGISTER,
                {
                    "tenant": tenant,
                    "name": e.name,
                    "currency": e.currency,
                    "zone": e.zone,
                    "clock": e.test_clock,
                    "grace": e.policies.invoice_grace_minutes,
                    "terms": e.policies.payment_terms_days,
                    "retry": list(e.policies.retry_days),
                    "prefix": e.policies.number_prefix,
                    "oldest": e.bounds.oldest_days,
                    "ahead": e.bounds.ahead_minutes,
                    "at": envelope.meta.recorded_at,
                    "sequence": envelope.meta.sequence,
                },
            )
        case TenantSettingsChanged(policies=policies):
            tx.execute(
                _CHANGE,
                (
                    policies.invoice_grace_minutes,
                    policies.payment_terms_days,
                    list(policies.retry_days),
                    policies.number_prefix,
                    tenant,
                ),
            )
        case ClockAdvanced(to=to):
            tx.execute("UPDATE tenants SET test_clock = %s WHERE tenant_id = %s", (to, tenant))
        case UsageSpreadSet():
            pass  # in app.usage_spread, which the publisher of meters writes
        case MeterBackfillOrdered():
            pass  # in usage_backfill, once the usage log was told


_REGISTER = """
INSERT INTO tenants (tenant_id, name, currency, zone, test_clock, invoice_grace_minutes, payment_terms_days, retry_days,
                     number_prefix, usage_oldest_days, usage_ahead_minutes, registered_at, last_sequence)
VALUES (%(tenant)s, %(name)s, %(currency)s, %(zone)s, %(clock)s, %(grace)s, %(terms)s, %(retry)s,
        %(prefix)s, %(oldest)s, %(ahead)s, %(at)s, %(sequence)s)
"""

_CHANGE = """
UPDATE tenants
   SET invoice_grace_minutes = %s, payment_terms_days = %s, retry_days = %s, number_prefix = %s
 WHERE tenant_id = %s
"""


def sequences(tx: Tx, tenants: Iterable[str]) -> dict[str, int]:
    """Tenant -> sequence of its last applied event; a tenant without events is missing."""
    rows = tx.execute(
        "SELECT tenant_id, last_sequence FROM tenants WHERE tenant_id = ANY (%s)", (list(tenants),)
    ).fetchall()
    return dict(rows)


def sequence(tx: Tx, tenant: str) -> int:
    """Sequence of the tenant's last applied event, 0 if none: what a reader of its own writes waits for."""
    return sequences(tx, [tenant]).get(tenant, 0)


def all_sequences(tx: Tx) -> dict[str, int]:
    """Tenant -> sequence of its last applied event, for all tenants."""
    return dict(tx.execute("SELECT tenant_id, last_sequence FROM tenants").fetchall())


def reached(tx: Tx, last: Mapping[str, int]) -> None:
    """Record that the events of each tenant are applied up to a sequence."""
    tx.executemany(
        "UPDATE tenants SET last_sequence = %s WHERE tenant_id = %s",
        [(number, tenant) for tenant, number in sorted(last.items())],
    )


def now(tx: Tx, tenant: str, wall: datetime) -> datetime:
    """The tenant's present: its test clock if it has one, else `wall`."""
    row = tx.execute("SELECT coalesce(test_clock, %s) FROM tenants WHERE tenant_id = %s", (wall, tenant)).fetchone()
    return wall if row is None else row[0]
