"""Subscriptions: where each stands, and which of them something is due for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from billing.envelope import EventEnvelope
from billing.subscription import (
    BillingPeriodClosed,
    SubscriptionActivated,
    SubscriptionCanceled,
    SubscriptionCreated,
    SubscriptionEnded,
)
from projections.generation import Tx


@dataclass(frozen=True, slots=True)
class Due:
    """A subscription whose stored boundary has passed by its tenant's clock."""

    tenant: str
    subscription_id: str
    customer_id: str
    scheduled: bool
    """True: it is to be activated. False: its current period is to be closed."""
    boundary: datetime
    """Its start, or the end of the period to close."""
    now: datetime
    """The tenant's present."""


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Move a subscription to where the event leaves it."""
    at = {"tenant": envelope.meta.tenant, "sequence": envelope.meta.sequence}
    match envelope.event:
        case SubscriptionCreated() as e:
            tx.execute(
                _CREATE,
                {
                    **at,
                    "subscription": e.subscription_id,
                    "customer": e.customer_id,
                    "plan": e.plan,
                    "version": e.price_book_version,
                    "currency": e.currency,
                    "zone": e.zone,
                    "anchor": e.anchor,
                    "interval": e.interval,
                    "alignment": e.alignment,
                    "starts_at": e.starts_at,
                },
            )
        case SubscriptionActivated(subscription_id=subscription, span=span):
            period = span.period
            tx.execute(_BEGIN, {**at, "subscription": subscription, "start": period.start, "end": period.end})
        case BillingPeriodClosed(subscription_id=subscription, next=following) if following is not None:
            period = following.period
            tx.execute(_BEGIN, {**at, "subscription": subscription, "start": period.start, "end": period.end})
        case BillingPeriodClosed(subscription_id=subscription):
            tx.execute(_TOUCH, {**at, "subscription": subscription})
        case SubscriptionCanceled(subscription_id=subscription, ends_at=ends_at):
            tx.execute(_CANCEL, {**at, "subscription": subscription, "ends_at": ends_at})
        case SubscriptionEnded(subscription_id=subscription, ended_at=ended_at):
            tx.execute(_END, {**at, "subscription": subscription, "ended_at": ended_at})


_CREATE = """
INSERT INTO subscriptions (tenant_id, subscription_id, customer_id, plan, price_book_version, currency, status,
                           zone, anchor, interval, alignment, starts_at, next_boundary, sequence)
VALUES (%(tenant)s, %(subscription)s, %(customer)s, %(plan)s, %(version)s, %(currency)s, 'scheduled',
        %(zone)s, %(anchor)s, %(interval)s, %(alignment)s, %(starts_at)s, %(starts_at)s, %(sequence)s)
"""

_BEGIN = """
UPDATE subscriptions
   SET status = 'active',
       period_start = %(start)s,
       period_end = %(end)s,
       next_boundary = least(%(end)s, ends_at),
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

_TOUCH = """
UPDATE subscriptions
   SET sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

# A scheduled subscription ends with the next event; until then its boundary stays.
_CANCEL = """
UPDATE subscriptions
   SET ends_at = %(ends_at)s,
       next_boundary = CASE status WHEN 'active' THEN least(period_end, %(ends_at)s) ELSE next_boundary END,
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

_END = """
UPDATE subscriptions
   SET status = 'ended',
       ended_at = %(ended_at)s,
       next_boundary = NULL,
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""


def due(tx: Tx, limit: int, wall: datetime) -> list[Due]:
    """Subscriptions to activate or to close, the most overdue first.

    `wall` is the present of tenants on the real clock. A period is closed only when the tenant's
    grace for late usage is over; a start waits for nothing.
    """
    rows = tx.execute(_DUE, {"wall": wall, "limit": limit}).fetchall()
    return [Due(*row) for row in rows]


_DUE = """
SELECT t.tenant_id, s.subscription_id, s.customer_id, s.status = 'scheduled', s.next_boundary, s.present
  FROM tenants t
 CROSS JOIN LATERAL (
       SELECT s.subscription_id, s.customer_id, s.status, s.next_boundary,
              coalesce(t.test_clock, %(wall)s) AS present
         FROM subscriptions s
        WHERE s.tenant_id = t.tenant_id
          AND s.next_boundary <= coalesce(t.test_clock, %(wall)s)
          AND (s.status = 'scheduled'
               OR s.next_boundary <= coalesce(t.test_clock, %(wall)s) - t.invoice_grace_minutes * interval '1 minute')
        ORDER BY s.next_boundary
        LIMIT %(limit)s) s
 ORDER BY s.next_boundary, t.tenant_id, s.subscription_id
 LIMIT %(limit)s
"""
