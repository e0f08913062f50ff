"""Where entitlements are asked for: Redis, as Tallybook publishes them, and Tallybook's API with Postgres behind it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from tallybook_sdk.http_calls import HttpCalls, NoAnswer

Key = tuple[str, str]
"""Customer and feature."""
Version = tuple[int, int]
"""Of the grants and of the usage: the greater pair is the newer."""

AS_OF_KEY = "tb:entitlements:as-of"
OPEN, CLOSED = "open", "closed"


class SourceDown(Exception):
    """Nobody answers there, or not in a way that says anything. Says what happened."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a source knows about one feature of one customer."""

    allowed: bool
    reason: str
    """`granted`, `within_limit`, `limit_exceeded` or `not_granted`."""
    used: Decimal | None
    limit: Decimal | None
    remaining: Decimal | None
    when_unknown: str
    """What its plan says to answer when nobody can be asked: `open` or `closed`."""
    version: Version


def channel(tenant: str) -> str:
    """Where every change of the tenant's entitlements is told."""
    return f"tallybook:entitlements:{tenant}"


def key_of(tenant: str, customer: str, feature: str) -> str:
    """Where an entitlement lies in Redis."""
    tenant, customer, feature = (quote(each, safe="") for each in (tenant, customer, feature))
    return f"tb:{tenant}:entitlement:{customer}:{feature}"


def judged(body: str, version: Version) -> Known:
    """The answer that serves the customer best, of those that its subscriptions give, as the server would judge."""
    standings = json.loads(body)
    when_unknown = OPEN if any(each.get("when_unknown") == OPEN for each in standings) else CLOSED
    best: Known | None = None
    for each in standings:
        made = _access(each, when_unknown, version)
        if best is None or _rank(made) > _rank(best):
            best = made
    return best or Known(False, "not_granted", None, None, None, when_unknown, version)


def _access(standing: dict[str, Any], when_unknown: str, version: Version) -> Known:
    if standing["kind"] == "boolean":
        return Known(True, "granted", None, None, None, when_unknown, version)
    limit, used = Decimal(standing["limit"]), Decimal(standing["used"])
    remaining = max(limit - used, Decimal(0))
    if used < limit:
        return Known(True, "within_limit", used, limit, remaining, when_unknown, version)
    return Known(standing["limit_kind"] == "soft", "limit_exceeded", used, limit, remaining, when_unknown, version)


def _rank(known: Known) -> tuple[bool, bool, Decimal]:
    return known.allowed, known.limit is None, known.remaining or Decimal(0)


class RedisSource:
    """Redis or Valkey, as `tallybook run entitlements` fills it."""

    def __init__(self, url: str, tenant: str, timeout: timedelta) -> None:
        """Raises `ImportError` without the extra `entitlements`."""
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as e:
            raise ImportError("Redis needs an extra: pip install 'tallybook-sdk[entitlements]'") from e
        self._failures = (redis.RedisError, OSError)
        self._tenant = tenant
        seconds = timeout.total_seconds()
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,  # under 3, redis-py cannot tell a pong from a message
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),  # a check that waits is no check
        )

    def get(self, keys: Sequence[Key]) -> list[tuple[Known | None, int]]:
        """What is published about each (None: nothing), and at which microsecond since 1970 it was known to hold.

        Raises:
            SourceDown: Redis is away or slow.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for customer, feature in keys:
                    pipeline.hmget(key_of(self._tenant, customer, feature), "body", "version", "usage_version", "as_of")
                pipeline.get(AS_OF_KEY)
                *rows, checked_at = pipeline.execute()
        except self._failures as e:
            raise SourceDown(f"Redis: {e}") from e
        return [
            (
                None if body is None else judged(body, (int(version), int(usage))),
                max(int(written_at or 0), int(checked_at or 0)),
            )
            for body, version, usage, written_at in rows
        ]

    def as_of(self) -> str | None:
        """A mark that moves while the publisher lives. Raises `SourceDown`."""
        try:
            mark = self._redis.get(AS_OF_KEY)
        except self._failures as e:
            raise SourceDown(f"Redis: {e}") from e
        return None if mark is None else str(mark)

    def subscribe(self) -> Subscription:
        """Every change from now on. Raises `SourceDown`."""
        try:
            pubsub: Any = self._redis.pubsub()  # type: ignore[no-untyped-call]
            pubsub.subscribe(channel(self._tenant))
        except self._failures as e:
            raise SourceDown(f"Redis: {e}") from e
        return Subscription(pubsub, self._failures)

    def close(self) -> None:
        self._redis.close()


class Subscription:
    """Changes as they are told."""

    def __init__(self, pubsub: Any, failures: tuple[type[Exception], ...]) -> None:
        self._pubsub = pubsub
        self._failures = failures

    def next(self, timeout_s: float) -> Key | str | None:
        """The next change, `subscribe` or `pong`; None at the timeout. Raises `SourceDown`: changes may be missed."""
        try:
            message = self._pubsub.get_message(timeout=timeout_s)
        except self._failures as e:
            raise SourceDown(f"Redis: {e}") from e
        if message is None:
            return None
        if message["type"] != "message":
            return str(message["type"])
        told = json.loads(message["data"])
        return told["customer"], told["feature"]

    def ping(self) -> None:
        """Ask for a `pong`: once it is here, so is every change before it. Raises `SourceDown`."""
        try:
            self._pubsub.ping()
        except self._failures as e:
            raise SourceDown(f"Redis: {e}") from e

    def close(self) -> None:
        self._pubsub.close()


class HttpSource:
    """Tallybook's API."""

    def __init__(self, url: str, api_key: str, timeout: timedelta) -> None:
        self._calls = HttpCalls(url, api_key, timeout)

    def get(self, customer: str, feature: str) -> Known:
        """What the API says, of the tenant whose key it is.

        Raises:
            SourceDown: it does not answer, refuses, or could itself ask nobody.
        """
        path = f"/v1/customers/{quote(customer, safe='')}/entitlements/{quote(feature, safe='')}"
        try:
            status, body, _ = self._calls.call("GET", path)
        except NoAnswer as e:
            raise SourceDown(str(e)) from e
        if status != http.client.OK:
            raise SourceDown(f"HTTP: {status} {body[:200].decode(errors='replace')}")
        try:
            told = json.loads(body)
            if told["source"] == "policy":
                raise SourceDown("HTTP: the server can ask nobody either")
            used, limit, remaining = (
                None if told[each] is None else Decimal(str(told[each])) for each in ("used", "limit", "remaining")
            )
            grants, _, usage = str(told.get("version") or "0-0").partition("-")
            version = (int(grants), int(usage or 0))
            policy = told.get("when_unknown", CLOSED)
            return Known(told["allowed"], told["reason"], used, limit, remaining, policy, version)
        except (ValueError, KeyError, TypeError) as e:
            raise SourceDown(f"HTTP: an answer that is none of ours: {body[:100]!r}") from e

    def close(self) -> None:
        """Close all connections."""
        self._calls.close()
