"""Customers: how each pays, the coupons it redeemed, and its unused credit."""

from __future__ import annotations

from billing.customer import (
    CouponRedeemed,
    CustomerCreated,
    CustomerCredited,
    JurisdictionSet,
    PaymentMethodAttached,
    PriceOverrideSet,
)
from billing.envelope import EventEnvelope
from billing.invoice import InvoiceFinalized
from billing.money import Money
from billing.prepaid import CreditExpired, CreditGranted
from projections.generation import Tx
from schemas.codec import encode_event


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Record what a customer pays with, and what invoices take of its coupons and credit."""
    tenant, sequence = envelope.meta.tenant, envelope.meta.sequence
    match envelope.event:
        case CustomerCreated() as e:
            method = e.payment_method
            pays = (method.provider, method.token, e.jurisdiction)
            tx.execute(_CREATE, (tenant, e.customer_id, *pays, envelope.meta.occurred_at, sequence))
        case PaymentMethodAttached() as e:
            method = e.payment_method
            tx.execute(_ATTACH, (method.provider, method.token, sequence, tenant, e.customer_id))
        case JurisdictionSet() as e:
            tx.execute(_TAXED_IN, (e.jurisdiction, sequence, tenant, e.customer_id))
        case CouponRedeemed() as e:
            tx.execute(_REDEEM, (tenant, e.customer_id, e.coupon.code, e.redeemed_at))
            _touch(tx, tenant, e.customer_id, sequence)
        case PriceOverrideSet() as e:
            named = (tenant, e.customer_id, e.override.plan, e.override.currency)
            tx.execute(_PRICES, (*named, envelope.meta.occurred_at, sequence, encode_event(envelope)))
            _touch(tx, tenant, e.customer_id, sequence)
        case CreditGranted() as e:
            terms = (e.priority, e.kind, e.expires_at, e.reason, e.granted_at)
            sums = (e.amount.currency, e.amount.minor, e.amount.minor)
            tx.execute(_GRANT, (tenant, e.customer_id, e.grant_id, *sums, *terms))
            _credit(tx, tenant, e.customer_id, e.amount)
            _touch(tx, tenant, e.customer_id, sequence)
        case CreditExpired() as e:
            tx.execute(_USE_GRANT, (e.amount.minor, tenant, e.customer_id, e.grant_id))
            tx.execute(_USE_CREDIT, (e.amount.minor, tenant, e.customer_id, e.amount.currency))
            _touch(tx, tenant, e.customer_id, sequence)
        case CustomerCredited() as e:
            _credit(tx, tenant, e.customer_id, e.amount)
            _touch(tx, tenant, e.customer_id, sequence)
        case InvoiceFinalized() as e:
            for each in e.discounts:
                tx.execute(_DISCOUNTED, (tenant, e.customer_id, each.coupon))
            for used in e.credits:
                tx.execute(_USE_GRANT, (used.amount.minor, tenant, e.customer_id, used.grant_id))
            if e.credit_applied.minor:
                tx.execute(_USE_CREDIT, (e.credit_applied.minor, tenant, e.customer_id, e.credit_applied.currency))


def _touch(tx: Tx, tenant: str, customer: str, sequence: int) -> None:
    tx.execute(
        "UPDATE customers SET sequence = %s WHERE tenant_id = %s AND customer_id = %s", (sequence, tenant, customer)
    )


def _credit(tx: Tx, tenant: str, customer: str, amount: Money) -> None:
    tx.execute(_ADD_CREDIT, (tenant, customer, amount.currency, amount.minor))


_CREATE = """
INSERT INTO customers (tenant_id, customer_id, provider, payment_token, jurisdiction, created_at, sequence)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""

_TAXED_IN = "UPDATE customers SET jurisdiction = %s, sequence = %s WHERE tenant_id = %s AND customer_id = %s"

_ATTACH = """
UPDATE customers
   SET provider = %s, payment_token = %s, sequence = %s
 WHERE tenant_id = %s AND customer_id = %s
"""

_REDEEM = """
INSERT INTO customer_coupons (tenant_id, customer_id, coupon, redeemed_at)
VALUES (%s, %s, %s, %s)
"""

_PRICES = """
INSERT INTO customer_prices (tenant_id, customer_id, plan, currency, set_at, sequence, body)
VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, customer_id, plan, currency) DO UPDATE
   SET set_at = EXCLUDED.set_at,
       sequence = EXCLUDED.sequence,
       body = EXCLUDED.body
"""

_DISCOUNTED = """
UPDATE customer_coupons
   SET invoices = invoices + 1
 WHERE tenant_id = %s AND customer_id = %s AND coupon = %s
"""

_ADD_CREDIT = """
INSERT INTO customer_credits (tenant_id, customer_id, currency, minor)
VALUES (%s, %s, %s, %s)
    ON CONFLICT (tenant_id, customer_id, currency) DO UPDATE
   SET minor = customer_credits.minor + EXCLUDED.minor
"""

_GRANT = """
INSERT INTO customer_grants (tenant_id, customer_id, grant_id, currency, amount_minor, left_minor, priority, kind,
                             expires_at, reason, granted_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

_USE_GRANT = """
UPDATE customer_grants
   SET left_minor = left_minor - %s
 WHERE tenant_id = %s AND customer_id = %s AND grant_id = %s
"""

_USE_CREDIT = """
UPDATE customer_credits
   SET minor = minor - %s
 WHERE tenant_id = %s AND customer_id = %s AND currency = %s
"""
