"""Price books: every published version, whole and for ever."""

from __future__ import annotations

from functools import lru_cache

from billing.catalog import PriceBookPublished
from billing.envelope import EventEnvelope
from projections.generation import Tx
from schemas.codec import decode_event, encode_event


def apply(tx: Tx, envelope: EventEnvelope) -> None:
    """Keep a published version."""
    match envelope.event:
        case PriceBookPublished() as e:
            tx.execute(
                _KEEP,
                {
                    "tenant": envelope.meta.tenant,
                    "version": e.version,
                    "effective_at": e.effective_at,
                    "meters": [meter.key for meter in e.meters],
                    "plans": [plan.key for plan in e.plans],
                    "coupons": [coupon.code for coupon in e.coupons],
                    "published_at": envelope.meta.recorded_at,
                    "sequence": envelope.meta.sequence,
                    "body": encode_event(envelope),
                },
            )


_KEEP = """
INSERT INTO price_books (tenant_id, version, effective_at, meter_keys, plan_keys, coupon_codes, published_at,
                         sequence, body)
VALUES (%(tenant)s, %(version)s, %(effective_at)s, %(meters)s, %(plans)s, %(coupons)s, %(published_at)s,
        %(sequence)s, %(body)s)
"""


def book(tx: Tx, tenant: str, version: int) -> PriceBookPublished:
    """Version `version` of the tenant's price book.

    Raises:
        LookupError: it has not been published, or not been projected yet.
    """
    row = tx.execute("SELECT body FROM price_books WHERE tenant_id = %s AND version = %s", (tenant, version)).fetchone()
    if row is None:
        raise LookupError(f"tenant {tenant} has no price book {version}")
    return decoded(bytes(row[0]))


def newest(tx: Tx, tenant: str) -> PriceBookPublished | None:
    """The tenant's newest price book; None before the first."""
    row = tx.execute(
        "SELECT body FROM price_books WHERE tenant_id = %s ORDER BY version DESC LIMIT 1", (tenant,)
    ).fetchone()
    return None if row is None else decoded(bytes(row[0]))


@lru_cache(maxsize=256)
def decoded(body: bytes) -> PriceBookPublished:
    """The price book in `body`. Cached by its bytes: a version is asked for again and again, and never changes."""
    published = decode_event(body).event
    assert isinstance(published, PriceBookPublished)
    return published
