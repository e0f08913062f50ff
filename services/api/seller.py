"""What usage is judged by before it is taken: the tenant's meters, its time bounds and its present."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from billing.metering import Meter
from billing.tenant import UsageBounds
from infra.postgres import Cursor
from projections import price_books


@dataclass(frozen=True, slots=True)
class Seller:
    """What a tenant accepts now."""

    meters: tuple[Meter, ...]
    bounds: UsageBounds
    now: datetime


def seller(tx: Cursor, tenant: str, wall: datetime) -> Seller | None:
    """What `tenant` accepts; None if it is not registered. `wall` is the present of tenants on the real clock."""
    row = tx.execute(
        "SELECT usage_oldest_days, usage_ahead_minutes, coalesce(test_clock, %s) FROM tenants WHERE tenant_id = %s",
        (wall, tenant),
    ).fetchone()
    if row is None:
        return None
    oldest, ahead, now = row
    book = price_books.newest(tx, tenant)
    return Seller(book.meters if book else (), UsageBounds(oldest_days=oldest, ahead_minutes=ahead), now)
