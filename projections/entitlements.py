"""Entitlements: what each customer may use in its current period, by the plans it subscribes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing.entitlement import Entitlement, EntitlementKind, LimitKind, WhenUnknown
from billing.envelope import EventEnvelope
from billing.period import Period
from billing.plan_change import (
    AddOnAdded,
    AddOnRemoved,
    BillingZoneChanged,
    SubscriptionMigrated,
    SubscriptionPlanChanged,
)
from billing.pricing import AddOnQuantity, Pricing
from billing.pricing import entitlements as granted_by
from billing.subscription import BillingPeriodClosed, SubscriptionActivated, SubscriptionEnded
from projections import price_books
from projections.generation import Tx

Key = tuple[str, str, str]
"""Tenant, customer, feature."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One feature that one subscription grants to a customer, or used to."""

    tenant: str
    customer_id: str
    feature: str
    subscription_id: str
    entitlement: Entitlement
    book_version: int
    """Price book that defines the meter."""
    period: Period
    """The current period, whose usage counts toward the limit."""
    revoked_at: datetime | None
    version: int
    """Sequence of the tenant's event that changed it last."""


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Grant the features of the plan in force, follow its periods, revoke what a later plan or the end takes away."""
    tenant, sequence = envelope.meta.tenant, envelope.meta.sequence
    match envelope.event:
        case SubscriptionActivated() as e:
            _grant_plan(tx, tenant, e.subscription_id, e.activated_at, sequence)
        case BillingPeriodClosed(next=following) as e if following is not None:
            period = following.period
            tx.execute(_NEXT_PERIOD, (period.start, period.end, sequence, tenant, e.subscription_id))
            if _features(e.run.pricing) != _features(following.pricing):
                _grant_plan(tx, tenant, e.subscription_id, period.start, sequence)
        case (SubscriptionPlanChanged() | SubscriptionMigrated() | AddOnAdded() | AddOnRemoved()) as e if (
            e.effective_at <= envelope.meta.occurred_at
        ):
            _grant_plan(tx, tenant, e.subscription_id, e.effective_at, sequence)
        case BillingZoneChanged() as e:
            tx.execute(_MOVED_END, (e.period_end, sequence, tenant, e.subscription_id))
        case SubscriptionEnded() as e:
            tx.execute(_REVOKE, (e.ended_at, sequence, tenant, e.subscription_id))


def _grant_plan(tx: Tx, tenant: str, subscription: str, at: datetime, sequence: int) -> None:
    """Grant what the plan in force has, as `subscriptions` stands; what it has not is revoked as of `at`."""
    row = tx.execute(_TERMS, (tenant, subscription)).fetchone()
    assert row is not None
    customer, version, plan, currency, added, start, end = row
    if start is None:
        return  # not started: nothing is granted yet
    add_ons = tuple(AddOnQuantity(add_on=key, quantity=added[key]) for key in sorted(added))
    pricing = Pricing(plan=plan, price_book_version=version, currency=currency, add_ons=add_ons)
    granted = granted_by(pricing, price_books.book(tx, tenant, version))
    tx.executemany(
        _GRANT,
        [
            (tenant, customer, each.feature, subscription, *_terms(each), version, start, end, sequence)
            for each in granted
        ],
    )
    tx.execute(_REVOKE_OTHERS, (at, sequence, tenant, subscription, [each.feature for each in granted]))


def _features(pricing: Pricing) -> tuple[object, ...]:
    """What decides which features are granted."""
    return pricing.plan, pricing.price_book_version, pricing.add_ons


def _terms(granted: Entitlement) -> tuple[object, ...]:
    return granted.kind, granted.meter, granted.limit, granted.limit_kind, granted.when_unknown


_TERMS = """
SELECT customer_id, price_book_version, plan, currency, add_ons, period_start, period_end
  FROM subscriptions
 WHERE tenant_id = %s AND subscription_id = %s
"""

_GRANT = """
INSERT INTO entitlements (tenant_id, customer_id, feature, subscription_id, kind, meter, limit_quantity, limit_kind,
                          when_unknown, book_version, period_start, period_end, version)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, customer_id, feature, subscription_id) DO UPDATE
   SET kind = EXCLUDED.kind,
       meter = EXCLUDED.meter,
       limit_quantity = EXCLUDED.limit_quantity,
       limit_kind = EXCLUDED.limit_kind,
       when_unknown = EXCLUDED.when_unknown,
       book_version = EXCLUDED.book_version,
       period_start = EXCLUDED.period_start,
       period_end = EXCLUDED.period_end,
       revoked_at = NULL,
       version = EXCLUDED.version
"""

_REVOKE_OTHERS = """
UPDATE entitlements
   SET revoked_at = %s, version = %s
 WHERE tenant_id = %s AND subscription_id = %s AND revoked_at IS NULL AND feature <> ALL(%s)
"""

_NEXT_PERIOD = """
UPDATE entitlements
   SET period_start = %s, period_end = %s, version = %s
 WHERE tenant_id = %s AND subscription_id = %s AND revoked_at IS NULL
"""

_MOVED_END = """
UPDATE entitlements
   SET period_end = %s, version = %s
 WHERE tenant_id = %s AND subscription_id = %s AND revoked_at IS NULL
"""

_REVOKE = """
UPDATE entitlements
   SET revoked_at = %s, version = %s
 WHERE tenant_id = %s AND subscription_id = %s AND revoked_at IS NULL
"""

_COLUMNS = """
SELECT tenant_id, customer_id, feature, subscription_id, kind, meter, limit_quantity, limit_kind,
       when_unknown, book_version, period_start, period_end, revoked_at, version
  FROM entitlements
"""


def of_all(tx: Tx, keys: Sequence[Key]) -> dict[Key, list[Grant]]:
    """All grants of features to customers, revoked ones too; what was never granted is missing."""
    found: dict[Key, list[Grant]] = {}
    for row in tx.execute(_COLUMNS + _OF_ALL, _columns(keys)).fetchall():
        grant = _grant(row)
        found.setdefault((grant.tenant, grant.customer_id, grant.feature), []).append(grant)
    return found


_OF_ALL = """
  JOIN unnest(%s::text[], %s::text[], %s::text[]) AS asked (tenant_id, customer_id, feature)
 USING (tenant_id, customer_id, feature)
 ORDER BY subscription_id
"""


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    return [[row[number] for row in rows] for number in range(3)]


def _grant(row: Sequence[object]) -> Grant:
    tenant, customer, feature, subscription, kind, meter, limit, limit_kind, policy, *rest = row
    book, start, end, revoked, version = rest
    assert isinstance(start, datetime)
    assert isinstance(end, datetime)
    assert isinstance(limit, Decimal | None)
    return Grant(
        tenant=str(tenant),
        customer_id=str(customer),
        feature=str(feature),
        subscription_id=str(subscription),
        entitlement=Entitlement(
            feature=str(feature),
            kind=EntitlementKind(str(kind)),
            meter=None if meter is None else str(meter),
            limit=limit,
            limit_kind=LimitKind(str(limit_kind)),
            when_unknown=WhenUnknown(str(policy)),
        ),
        book_version=int(str(book)),
        period=Period(start, end),
        revoked_at=revoked if isinstance(revoked, datetime) else None,
        version=int(str(version)),
    )


def changed_since(tx: Tx, tenant: str, version: int) -> list[tuple[str, str]]:
    """(customer, feature) whose grants changed after `version` of the tenant's events."""
    return tx.execute(
        """
        SELECT DISTINCT customer_id, feature
          FROM entitlements
         WHERE tenant_id = %s AND version > %s
         ORDER BY customer_id, feature
        """,
        (tenant, version),
    ).fetchall()


def counted_by(tx: Tx, meters: Sequence[tuple[str, str, str]]) -> list[Key]:
    """Features whose limit is counted by any of these (tenant, customer, meter)."""
    return tx.execute(_COUNTED_BY, _columns(meters)).fetchall()


_COUNTED_BY = """
SELECT DISTINCT tenant_id, customer_id, feature
  FROM entitlements
  JOIN unnest(%s::text[], %s::text[], %s::text[]) AS asked (tenant_id, customer_id, meter)
 USING (tenant_id, customer_id, meter)
 WHERE revoked_at IS NULL
"""
