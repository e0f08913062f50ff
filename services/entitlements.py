"""May this customer use the feature, and how much of it is left? Redis first, Postgres where Redis does not know.

Both answers come from the same sentence: the grants of the customer's subscriptions and what each has used of its
current period (`standing`), judged by `billing.entitlement.access`. The publisher writes that sentence to Redis.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing.entitlement import NOT_GRANTED, Access, Entitlement, EntitlementKind, LimitKind, access
from billing.ids import CustomerId, TenantId
from infra import postgres, telemetry
from infra.errors import Transient
from infra.redis_cache import Entry, RedisCache
from projections import entitlements, generation, price_books, usage_read
from projections.entitlements import Grant

log = telemetry.logger("services.entitlements")

CACHE, DATABASE = "cache", "database"


@dataclass(frozen=True, slots=True)
class Standing:
    """One grant, and what is used of it."""

    entitlement: Entitlement
    used: Decimal


class Entitlements:
    """Answers for one tenant at a time; safe to use from several threads."""

    def __init__(self, cache: RedisCache, pool: postgres.Pool) -> None:
        self._cache = cache
        self._pool = pool

    def access(self, tenant: str, customer: str, feature: str) -> tuple[Access, str]:
        """The answer, and where it came from: `cache` or `database`.

        Raises:
            Transient: neither Redis nor Postgres answers.
        """
        try:
            body = self._cache.entitlement(tenant, customer, feature)
        except Transient as error:
            log.warning("entitlements read from Postgres", reason=str(error))
            body = None
        if body is not None:
            return best(decoded(feature, body)), CACHE
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            return best(_granted(tx, entitlements.of(tx, tenant, customer, feature))), DATABASE


def best(standings: Sequence[Standing]) -> Access:
    """The answer that serves the customer best, of those that its subscriptions give."""
    answers = [access(each.entitlement, each.used) for each in standings]
    if not answers:
        return NOT_GRANTED
    # Granted without a limit stands above any limit, and much left above little.
    return max(answers, key=lambda each: (each.allowed, each.limit is None, each.remaining or 0))


def entry(tx: postgres.Cursor, tenant: str, customer: str, feature: str) -> Entry:
    """What to publish about a feature of a customer; `tx` has entered both sets, in one snapshot."""
    grants = entitlements.of(tx, tenant, customer, feature)
    meters = sorted({each.entitlement.meter for each in grants if each.entitlement.meter is not None})
    row = tx.execute(_USAGE_VERSION, (tenant, customer, meters)).fetchone()
    assert row is not None
    version = max((each.version for each in grants), default=0)
    return Entry(tenant, customer, feature, version, int(row[0]), encoded(_granted(tx, grants)))


_USAGE_VERSION = """
SELECT coalesce(max(version), 0)
  FROM usage_changed
 WHERE tenant_id = %s AND customer_id = %s AND meter = ANY (%s)
"""


def _granted(tx: postgres.Cursor, grants: Sequence[Grant]) -> list[Standing]:
    return [Standing(each.entitlement, _used(tx, each)) for each in grants if each.revoked_at is None]


def _used(tx: postgres.Cursor, grant: Grant) -> Decimal:
    """What the grant's meter measured in its current period, as far as usage has been counted."""
    if grant.entitlement.meter is None:
        return Decimal(0)
    book = price_books.book(tx, grant.tenant, grant.book_version)
    meter = next(each for each in book.meters if each.key == grant.entitlement.meter)
    return usage_read.current(tx, TenantId(grant.tenant), CustomerId(grant.customer_id), meter, grant.period).total


def encoded(standings: Sequence[Standing]) -> str:
    """The body of a cache entry."""
    return json.dumps(
        [
            {
                "kind": each.entitlement.kind.value,
                "meter": each.entitlement.meter,
                "limit": None if each.entitlement.limit is None else format(each.entitlement.limit, "f"),
                "limit_kind": each.entitlement.limit_kind.value,
                "used": format(each.used, "f"),
            }
            for each in standings
        ],
        separators=(",", ":"),
    )


def decoded(feature: str, body: str) -> list[Standing]:
    """The standings in the body of a cache entry."""
    return [
        Standing(
            Entitlement(
                feature=feature,
                kind=EntitlementKind(each["kind"]),
                meter=each["meter"],
                limit=None if each["limit"] is None else Decimal(each["limit"]),
                limit_kind=LimitKind(each["limit_kind"]),
            ),
            Decimal(each["used"]),
        )
        for each in json.loads(body)
    ]
