"""Subscriptions: where each stands, and which of them something is due for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from billing.envelope import EventEnvelope
from billing.plan_change import (
    AddOnAdded,
    AddOnRemoved,
    BillingAnchorChanged,
    BillingZoneChanged,
    SubscriptionMigrated,
    SubscriptionPlanChanged,
)
from billing.plan_change import Event as PricingChange
from billing.segments import Segment
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
                    "trial_ends_at": e.trial_ends_at,
                    "ends_at": e.ends_at,
                },
            )
        case SubscriptionActivated(subscription_id=subscription, first=first):
            _begin(tx, at, subscription, first, envelope.meta.occurred_at)
        case BillingPeriodClosed(subscription_id=subscription, next=following) if following is not None:
            _begin(tx, at, subscription, following, envelope.meta.occurred_at)
        case SubscriptionPlanChanged(terms=terms) as e:
            _change(tx, at, e, envelope.meta.occurred_at, "plan", (terms.plan, terms.price_book_version, None, None))
        case SubscriptionMigrated(terms=terms) as e:
            _change(tx, at, e, envelope.meta.occurred_at, "version", (terms.plan, terms.price_book_version, None, None))
        case AddOnAdded() as e:
            _change(tx, at, e, envelope.meta.occurred_at, "add_on", (None, None, e.add_on, e.quantity))
        case AddOnRemoved() as e:
            _change(tx, at, e, envelope.meta.occurred_at, "add_on", (None, None, e.add_on, 0))
        case BillingAnchorChanged() as e:
            tx.execute(_CUT, {**at, "subscription": e.subscription_id, "effective_at": e.effective_at})
        case BillingZoneChanged() as e:
            named = {**at, "subscription": e.subscription_id, "zone": e.zone, "end": e.period_end}
            tx.execute(_WAIT, named)
            tx.execute(_MOVE, named)
        case BillingPeriodClosed(subscription_id=subscription):
            tx.execute(_TOUCH, {**at, "subscription": subscription})
        case SubscriptionCanceled(subscription_id=subscription, ends_at=ends_at):
            tx.execute(_CANCEL, {**at, "subscription": subscription, "ends_at": ends_at})
        case SubscriptionEnded(subscription_id=subscription, ended_at=ended_at):
            tx.execute(_END, {**at, "subscription": subscription, "ended_at": ended_at})


def _begin(tx: Tx, at: dict[str, object], subscription: str, opened: Segment, now: datetime) -> None:
    """Begin a period under its pricing, or under what was changed in it before it was opened."""
    period, pricing = opened.period, opened.pricing
    named = {**at, "subscription": subscription, "now": now}
    tx.execute(
        _BEGIN,
        {
            **named,
            "start": period.start,
            "end": period.end,
            "plan": pricing.plan,
            "version": pricing.price_book_version,
            "add_ons": json.dumps({each.add_on: each.quantity for each in pricing.add_ons}),
        },
    )
    tx.execute(_FORGET, {**named, "start": period.start})
    tx.execute(_IN_FORCE, named)
    tx.execute(_ADDED, named)


def _change(
    tx: Tx,
    at: dict[str, object],
    e: PricingChange,
    now: datetime,
    kind: str,
    what: tuple[str | None, int | None, str | None, int | None],
) -> None:
    """Keep a change, instead of what it replaces; it is in force at once if its time has come."""
    plan, version, add_on, quantity = what
    named = {**at, "subscription": e.subscription_id, "now": now, "effective_at": e.effective_at, "add_on": add_on}
    tx.execute(_REPLACE, {**named, "replaced": ["plan", "version"] if kind == "plan" else [kind]})
    tx.execute(_CHANGE, {**named, "kind": kind, "plan": plan, "version": version, "quantity": quantity})
    tx.execute(_TOUCH, named)
    tx.execute(_IN_FORCE, named)
    tx.execute(_ADDED, named)


_CREATE = """
INSERT INTO subscriptions (tenant_id, subscription_id, customer_id, plan, price_book_version, currency, status,
                           zone, anchor, interval, alignment, starts_at, trial_ends_at, ends_at, next_boundary,
                           sequence)
VALUES (%(tenant)s, %(subscription)s, %(customer)s, %(plan)s, %(version)s, %(currency)s, 'scheduled',
        %(zone)s, %(anchor)s, %(interval)s, %(alignment)s, %(starts_at)s, %(trial_ends_at)s, %(ends_at)s, %(starts_at)s,
        %(sequence)s)
"""

_BEGIN = """
UPDATE subscriptions
   SET status = 'active',
       plan = %(plan)s,
       price_book_version = %(version)s,
       add_ons = %(add_ons)s::jsonb,
       period_start = %(start)s,
       period_end = %(end)s,
       next_boundary = least(%(end)s, ends_at),
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

_FORGET = """
DELETE FROM subscription_changes
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s AND effective_at <= %(start)s
"""

_REPLACE = """
DELETE FROM subscription_changes
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s AND effective_at >= %(effective_at)s
   AND kind = ANY(%(replaced)s) AND add_on IS NOT DISTINCT FROM %(add_on)s
"""

_CHANGE = """
INSERT INTO subscription_changes (tenant_id, subscription_id, effective_at, sequence, kind, plan, price_book_version,
                                  add_on, quantity)
VALUES (%(tenant)s, %(subscription)s, %(effective_at)s, %(sequence)s, %(kind)s, %(plan)s, %(version)s, %(add_on)s,
        %(quantity)s)
"""

_IN_FORCE = """
UPDATE subscriptions s
   SET plan = c.plan,
       price_book_version = c.price_book_version
  FROM (SELECT plan, price_book_version
          FROM subscription_changes
         WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s AND effective_at <= %(now)s
           AND plan IS NOT NULL
         ORDER BY effective_at DESC, sequence DESC
         LIMIT 1) c
 WHERE s.tenant_id = %(tenant)s AND s.subscription_id = %(subscription)s AND s.status = 'active'
"""

_ADDED = """
UPDATE subscriptions s
   SET add_ons = (
       SELECT coalesce(jsonb_object_agg(added.key, added.value), '{}')
         FROM jsonb_each(s.add_ons || c.quantities) AS added
        WHERE added.value <> '0')
  FROM (SELECT jsonb_object_agg(add_on, quantity ORDER BY effective_at, sequence) AS quantities
          FROM subscription_changes
         WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s AND effective_at <= %(now)s
           AND add_on IS NOT NULL
        HAVING count(*) > 0) c
 WHERE s.tenant_id = %(tenant)s AND s.subscription_id = %(subscription)s AND s.status = 'active'
"""

_TOUCH = """
UPDATE subscriptions
   SET sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

# A change of the anchor that does not wait for the period's end brings it forward.
_CUT = """
UPDATE subscriptions
   SET next_boundary = least(next_boundary, %(effective_at)s),
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

# What waits for the period's end moves with it; so does the end of a trial, which is a period.
_WAIT = """
UPDATE subscription_changes c
   SET effective_at = %(end)s
  FROM subscriptions s
 WHERE c.tenant_id = %(tenant)s AND c.subscription_id = %(subscription)s
   AND s.tenant_id = c.tenant_id AND s.subscription_id = c.subscription_id AND c.effective_at = s.period_end
"""

_MOVE = """
UPDATE subscriptions
   SET zone = %(zone)s,
       period_end = %(end)s,
       trial_ends_at = CASE trial_ends_at WHEN period_end THEN %(end)s ELSE trial_ends_at END,
       ends_at = CASE ends_at WHEN period_end THEN %(end)s ELSE ends_at END,
       next_boundary = CASE next_boundary WHEN period_end THEN %(end)s ELSE least(next_boundary, %(end)s) END,
       sequence = %(sequence)s
 WHERE tenant_id = %(tenant)s AND subscription_id = %(subscription)s
"""

# A scheduled subscription ends with the next event; until then its boundary stays.
_CANCEL = """
UPDATE subscriptions
   SET ends_at = %(ends_at)s,
       next_boundary = CASE status WHEN 'active' THEN least(next_boundary, %(ends_at)s) ELSE next_boundary END,
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
