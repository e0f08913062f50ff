"""May this customer use the feature, and how much of it is left? Redis first, Postgres where Redis does not know.

    Redis, checked within 5 s --> `cache`        else Postgres --> `database`        else, Postgres away:
    Redis, checked within 15 min --> `cache`, stale        else --> `policy`: open or closed, as the feature says

Both answers come from the same sentence: the grants of the customer's subscriptions and what each has used of its
current period (`standing`), judged by `billing.entitlement.access`. The publisher writes that sentence to Redis.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from threading import Lock

from billing.entitlement import (
    NOT_GRANTED,
    Access,
    Entitlement,
    EntitlementKind,
    LimitKind,
    WhenUnknown,
    access,
    unverified,
)
from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import Meter
from billing.period import Period
from infra import postgres, telemetry
from infra.clock import Clock, SystemClock
from infra.errors import Transient
from infra.redis_cache import Entry, Found, LoopCache, RedisCache
from projections import entitlements, generation, price_books, usage_read
from projections.entitlements import Grant, Key
from projections.usage import SET, TOPIC

log = telemetry.logger("services.entitlements")

ANSWERS = telemetry.counter("entitlement_answers_total", "Entitlement checks answered, by where from.", "source")

CACHE, DATABASE, POLICY = "cache", "database", "policy"
FRESH = timedelta(seconds=5)
"""What Redis says counts as present if it was held against Postgres that lately."""
TRUSTED = timedelta(minutes=15)
"""And as long as this while Postgres does not answer: meanwhile nothing can be counted or granted anyway."""
REMEMBERED_MAX = 100_000
_SPARED_S = 1.0
"""How long somebody who did not answer is not asked again: a check never waits for the same outage twice."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One grant, and what is used of it."""

    entitlement: Entitlement
    used: Decimal


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what it rests on."""

    access: Access
    source: str
    """`cache`, `database`, or `policy`: nobody could be asked, so the feature's own rule decided."""
    stale: bool
    """Nobody could be asked whether it still holds."""
    as_of: datetime | None
    """Everything counted and granted by then is in it; None: nothing is known."""
    version: str
    """Grows with each change of what it rests on; empty if nothing is known."""
    when_unknown: WhenUnknown
    """What a client that reaches nobody is to answer."""


class Entitlements:
    """Answers for one tenant at a time; safe to use from several threads."""

    def __init__(
        self, cache: RedisCache, pool: postgres.Pool, clock: Clock | None = None, loop_cache: LoopCache | None = None
    ) -> None:
        """`pool` should give up within a second or two: a check that waits is no check. `loop_cache`: for `at_once`."""
        self._cache = cache
        self._loop_cache = loop_cache
        self._pool = pool
        self._clock = clock or SystemClock()
        self._remembered = _Remembered(REMEMBERED_MAX)
        self._spared = {CACHE: 0.0, DATABASE: 0.0}

    def access(self, tenant: str, customer: str, feature: str) -> Answer:
        """The answer. Never fails: where nobody can be asked, the feature's policy decides, and the answer says so."""
        answer = self._answer(tenant, customer, feature)
        ANSWERS.labels(answer.source).inc()
        return answer

    async def at_once(self, tenant: str, customer: str, feature: str) -> Answer | None:
        """The answer of Redis, if it is one that counts: without a thread. None: ask `access`. Never fails either."""
        if self._loop_cache is None or self._is_spared(CACHE):
            return None
        try:
            found = await self._loop_cache.entitlement(tenant, customer, feature)
        except Transient as error:
            self._spare(CACHE, error)
            return None
        answer = _of_found(feature, found)
        if answer is None or self._is_older(answer, FRESH):
            return None
        ANSWERS.labels(CACHE).inc()
        return self._remembered.put((tenant, customer, feature), answer)

    def _answer(self, tenant: str, customer: str, feature: str) -> Answer:
        key = (tenant, customer, feature)
        cached = self._asked(CACHE, *key)
        if cached is not None and not self._is_older(cached, FRESH):
            return self._remembered.put(key, cached)
        stored = self._asked(DATABASE, *key)
        if stored is not None:
            return self._remembered.put(key, stored)
        if cached is not None and not self._is_older(cached, TRUSTED):
            return self._remembered.put(key, replace(cached, stale=True))
        known = cached or self._remembered.get(key)
        was_granted = known is not None and known.access.reason != NOT_GRANTED.reason
        if known is None or not was_granted:
            as_of, version = (None, "") if known is None else (known.as_of, known.version)
            return Answer(unverified(None), POLICY, True, as_of, version, WhenUnknown.CLOSED)
        return replace(known, access=unverified(known.when_unknown), source=POLICY, stale=True)

    def _is_older(self, answer: Answer, age: timedelta) -> bool:
        return answer.as_of is None or self._clock.now() - answer.as_of > age

    def _asked(self, source: str, tenant: str, customer: str, feature: str) -> Answer | None:
        if self._is_spared(source):
            return None
        try:
            return (self._from_cache if source == CACHE else self._from_database)(tenant, customer, feature)
        except Transient as error:
            self._spare(source, error)
            return None

    def _is_spared(self, source: str) -> bool:
        return self._clock.monotonic_s() < self._spared[source]

    def _spare(self, source: str, error: Transient) -> None:
        log.warning("entitlements not read", source=source, reason=str(error))
        self._spared[source] = self._clock.monotonic_s() + _SPARED_S

    def _from_cache(self, tenant: str, customer: str, feature: str) -> Answer | None:
        return _of_found(feature, self._cache.entitlement(tenant, customer, feature))

    def _from_database(self, tenant: str, customer: str, feature: str) -> Answer:
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            (made,) = entries(tx, [(tenant, customer, feature)])
        standings = decoded(feature, made.body)
        return Answer(best(standings), DATABASE, False, made.as_of, made.shown, policy(standings))


def _of_found(feature: str, found: Found | None) -> Answer | None:
    if found is None:
        return None
    standings = decoded(feature, found.body)
    return Answer(best(standings), CACHE, False, found.as_of, found.version, policy(standings))


class _Remembered:
    """The last answers, so that a policy is known when nobody else answers; the least asked go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[tuple[str, str, str], Answer] = OrderedDict()
        self._lock = Lock()

    def put(self, key: tuple[str, str, str], answer: Answer) -> Answer:
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)
        return answer

    def get(self, key: tuple[str, str, str]) -> Answer | None:
        with self._lock:
            return self._answers.get(key)


def best(standings: Sequence[Standing]) -> Access:
    """The answer that serves the customer best, of those that its subscriptions give."""
    answers = [access(each.entitlement, each.used) for each in standings]
    if not answers:
        return NOT_GRANTED
    # Granted without a limit stands above any limit, and much left above little.
    return max(answers, key=lambda each: (each.allowed, each.limit is None, each.remaining or 0))


def policy(standings: Sequence[Standing]) -> WhenUnknown:
    """What is answered while nobody can tell: open if any of the grants says so."""
    is_open = any(each.entitlement.when_unknown is WhenUnknown.OPEN for each in standings)
    return WhenUnknown.OPEN if is_open else WhenUnknown.CLOSED


def entries(tx: postgres.Cursor, keys: Sequence[Key]) -> list[Entry]:
    """What is to be said about features of customers; `tx` has entered both sets.

    Where its statements see different moments, the version is of the oldest: whoever compares versions asks again.
    """
    row = tx.execute("SELECT now()").fetchone()
    assert row is not None
    grants = entitlements.of_all(tx, keys)
    versions = _usage_versions(tx, keys)
    counter = _Counter(tx)
    counter.read([each for given in grants.values() for each in given])
    made = []
    for key in keys:
        tenant, customer, _ = key
        given = grants.get(key, [])
        usage = [versions.get((tenant, customer, each.entitlement.meter or ""), 0) for each in given]
        standings = counter.standings(given)
        version = max((each.version for each in given), default=0)
        made.append(Entry(*key, version, max(usage, default=0), encoded(standings), row[0]))
    return made


def standings_of(tx: postgres.Cursor, key: Key) -> list[Standing]:
    """What is granted of a feature, and used; `tx` has entered both sets."""
    grants = entitlements.of_all(tx, [key]).get(key, [])
    counter = _Counter(tx)
    counter.read(grants)
    return counter.standings(grants)


def _usage_versions(tx: postgres.Cursor, keys: Sequence[Key]) -> dict[Key, int]:
    """(tenant, customer, meter) -> version of its usage."""
    customers = sorted({(tenant, customer) for tenant, customer, _ in keys})
    rows = tx.execute(_USAGE_VERSIONS, [list(each) for each in zip(*customers, strict=True)]).fetchall()
    return {(tenant, customer, meter): version for tenant, customer, meter, version in rows}


_USAGE_VERSIONS = """
SELECT u.tenant_id, u.customer_id, u.meter, u.version
  FROM unnest(%s::text[], %s::text[]) AS asked (tenant_id, customer_id)
  JOIN usage_changed u USING (tenant_id, customer_id)
"""


_Counted = tuple[str, int, str, Period]
"""Tenant, version of its price book, meter and period: what grants of several customers have in common."""


class _Counter:
    """What grants' meters measured in their current periods, as far as usage has been counted."""

    def __init__(self, tx: postgres.Cursor) -> None:
        self._tx = tx
        self._positions: tuple[PartitionPosition, ...] | None = None
        self._meters: dict[tuple[str, int], dict[str, Meter]] = {}
        self._used: dict[_Counted, dict[CustomerId, Decimal]] = {}

    def read(self, grants: Sequence[Grant]) -> None:
        """Measure what counts toward `grants`: customers that share meter and period are read together."""
        asked: dict[_Counted, set[CustomerId]] = {}
        for each in grants:
            if each.revoked_at is None and (counted := _counted_of(each)) is not None:
                asked.setdefault(counted, set()).add(CustomerId(each.customer_id))
        for counted, customers in asked.items():
            tenant, book_version, meter, period = counted
            need = Need(self._meter(tenant, book_version, meter), period, self._positions_now())
            self._used[counted] = usage_read.totals(self._tx, TenantId(tenant), customers, need)

    def standings(self, grants: Sequence[Grant]) -> list[Standing]:
        """Of `grants` that were read, those in force and what is used of them."""
        return [Standing(each.entitlement, self._used_of(each)) for each in grants if each.revoked_at is None]

    def _used_of(self, grant: Grant) -> Decimal:
        counted = _counted_of(grant)
        return Decimal(0) if counted is None else self._used[counted].get(CustomerId(grant.customer_id), Decimal(0))

    def _meter(self, tenant: str, book_version: int, key: str) -> Meter:
        place = (tenant, book_version)
        if place not in self._meters:
            self._meters[place] = {each.key: each for each in price_books.book(self._tx, *place).meters}
        return self._meters[place][key]

    def _positions_now(self) -> tuple[PartitionPosition, ...]:
        if self._positions is None:
            stored = generation.checkpoints(self._tx, SET, generation.current(self._tx, SET), TOPIC)
            self._positions = tuple(PartitionPosition(partition=each, offset=stored[each]) for each in sorted(stored))
        return self._positions


def _counted_of(grant: Grant) -> _Counted | None:
    meter = grant.entitlement.meter
    return None if meter is None else (grant.tenant, grant.book_version, meter, grant.period)


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
                "when_unknown": each.entitlement.when_unknown.value,
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
                when_unknown=WhenUnknown(each.get("when_unknown", WhenUnknown.CLOSED)),
            ),
            Decimal(each["used"]),
        )
        for each in json.loads(body)
    ]
