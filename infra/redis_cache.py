"""Redis or Valkey as a cache of absolute values: the only module that talks to its client library.

A value carries the version of the Postgres rows it was made of, and a script refuses an older one; so a repeated, late
or doubled write is harmless, and the client may repeat any call. Nothing here is the truth: whoever finds nothing, or
nobody, reads Postgres.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import quote

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import Transient
from infra.settings import Settings

_EPOCH = "tb:epoch"
_MARKS = "tb:entitlements:marks"
_USAGE_MARK = "tb:entitlements:usage-mark"
_AS_OF = "tb:entitlements:as-of"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about one feature of one customer, as of a version."""

    tenant: str
    customer: str
    feature: str
    version: int
    """Of the grants: sequence of the tenant's event that changed them last."""
    usage_version: int
    """Of the usage that counts toward them, at the same grants."""
    body: str
    """JSON."""
    as_of: datetime
    """When Postgres said so."""

    @property
    def shown(self) -> str:
        """The version as readers see it."""
        return f"{self.version}-{self.usage_version}"


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis holds about one feature of one customer."""

    body: str
    version: str
    """`GRANTS-USAGE`: of two, the greater pair of numbers is the newer."""
    as_of: datetime
    """It held at that moment: when it was written, or when the publisher last found nothing newer."""


class RedisCache:
    """Entitlements in Redis, and how far they have been published."""

    def __init__(self, settings: Settings, *, timeout: timedelta = timedelta(milliseconds=500)) -> None:
        """Connects with the first call. `timeout` is per call: a slow cache is worse than none."""
        self._redis = redis.Redis.from_url(settings.require("redis"), retry=Retry(NoBackoff(), 0), **_options(timeout))
        self._put = self._redis.register_script(_PUT)
        self._begin = self._redis.register_script(_BEGIN)
        self._mark = self._redis.register_script(_MARK)

    def entitlement(self, tenant: str, customer: str, feature: str) -> Found | None:
        """What was published; None if nothing was.

        Raises:
            Transient: Redis is away or slow.
        """
        key = entitlement_key(tenant, customer, feature)

        def ask() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(key, *_FIELDS)
                pipeline.get(_AS_OF)
                return pipeline.execute()

        return _found(*self._try(ask))

    def publish(self, entries: Iterable[Entry]) -> int:
        """Write what is newer than what is there, and tell who listens; returns how many were. Raises `Transient`."""

        def write() -> list[int]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for each in entries:
                    key = entitlement_key(each.tenant, each.customer, each.feature)
                    told = json.dumps({"customer": each.customer, "feature": each.feature, "version": each.shown})
                    values: list[Any] = [each.version, each.usage_version, each.body, _micros(each.as_of)]
                    self._put(keys=[key], args=[*values, channel(each.tenant), told], client=pipeline)
                return cast("list[int]", pipeline.execute())

        return sum(cast("list[int]", self._try(write)))

    def epoch(self) -> str:
        """What changes when Redis starts again or is emptied; an emptied one forgets its marks. Raises `Transient`."""

        def ask() -> str:
            run: str = self._redis.info("server")["run_id"]
            return f"{run} {self._begin(keys=[_EPOCH, _MARKS, _USAGE_MARK, _AS_OF], args=[secrets.token_hex(8)])}"

        return cast("str", self._try(ask))

    def marks(self) -> tuple[dict[str, int], int]:
        """How far this Redis has been told: tenant -> sequence of its events, and the mark of usage (0: never).

        They live beside the values they speak of, and are lost with them. Raises `Transient`.
        """
        of_tenants = cast("dict[str, str]", self._try(lambda: self._redis.hgetall(_MARKS)))
        usage = cast("str | None", self._try(lambda: self._redis.get(_USAGE_MARK)))
        return {tenant: int(mark) for tenant, mark in of_tenants.items()}, int(usage or 0)

    def mark(self, epoch: str, tenants: Mapping[str, int], usage: int, as_of: datetime) -> None:
        """Remember that these marks are reached, and that everything here held at `as_of`.

        Not if Redis was emptied or started again since `epoch`: it may have come back with older values.

        Raises:
            Transient: Redis is away or slow.
        """
        pairs = [text for tenant, mark in tenants.items() for text in (tenant, str(mark))]
        run, began = epoch.split()
        values: list[Any] = [run, began, usage, _micros(as_of), *pairs]
        self._try(lambda: self._mark(keys=[_EPOCH, _MARKS, _USAGE_MARK, _AS_OF], args=values))

    def close(self) -> None:
        """Close its connections."""
        self._redis.close()

    def _try(self, call: Any) -> Any:
        with _translated():
            return call()


class LoopCache:
    """The same entitlements, for one event loop: a reader holds no thread while it waits.

    What is asked for while an answer is under way goes together in the next round trip: the more there is to do, the
    less each costs.
    """

    def __init__(self, settings: Settings, *, timeout: timedelta = timedelta(milliseconds=500)) -> None:
        """Connects with the first call. `timeout` is per round trip: a slow cache is worse than none."""
        retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        self._redis = redis.asyncio.Redis.from_url(settings.require("redis"), retry=retry, **_options(timeout))
        self._asked: list[tuple[str, asyncio.Future[Found | None]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def entitlement(self, tenant: str, customer: str, feature: str) -> Found | None:
        """What was published; None if nothing was.

        Raises:
            Transient: Redis is away or slow.
        """
        answer: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        self._asked.append((entitlement_key(tenant, customer, feature), answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        """One round trip after the other, until nothing is asked for."""
        try:
            while self._asked:
                asked, self._asked = self._asked[:_TOGETHER], self._asked[_TOGETHER:]
                waiting = [answer for _, answer in asked]
                try:
                    found = await self._found([key for key, _ in asked])
                except Exception as error:  # theirs who asked
                    for answer in waiting:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for answer, each in zip(waiting, found, strict=True):
                    if not answer.done():
                        answer.set_result(each)
        finally:
            self._asking = None

    async def _found(self, keys: Sequence[str]) -> list[Found | None]:
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(key, *_FIELDS)
                pipeline.get(_AS_OF)
                *fields, checked_at = await pipeline.execute()
        return [_found(each, checked_at) for each in fields]

    async def close(self) -> None:
        """Close its connections."""
        await self._redis.aclose()


_TOGETHER = 500
_FIELDS = ("body", "version", "usage_version", "as_of")


def _options(timeout: timedelta) -> dict[str, Any]:
    """How both clients connect."""
    seconds = timeout.total_seconds()
    return {
        "decode_responses": True,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "health_check_interval": 10,
    }


def _found(fields: Sequence[str | None], checked_at: str | None) -> Found | None:
    body, version, usage, written_at = fields
    if body is None:
        return None
    return Found(body, f"{version}-{usage}", _instant(max(int(written_at or 0), int(checked_at or 0))))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Transient(f"Redis: {error}") from error
    except redis.ResponseError as error:  # out of memory, loading, read-only replica: a state, not a bug of ours
        raise Transient(f"Redis: {error}") from error


def entitlement_key(tenant: str, customer: str, feature: str) -> str:
    """Where an entitlement lies. Every key of a tenant's data begins with the tenant."""
    if not tenant:
        raise ValueError("a key needs a tenant")
    # Ids are chosen by people: a colon in one must not make it look like two.
    tenant, customer, feature = (quote(each, safe="") for each in (tenant, customer, feature))
    return f"tb:{tenant}:entitlement:{customer}:{feature}"


def channel(tenant: str) -> str:
    """Where every change of a tenant's entitlements is told: JSON with `customer`, `feature` and `version`."""
    return f"tallybook:entitlements:{tenant}"


def _micros(instant: datetime) -> int:
    return (instant - _EPOCH_OF_TIME) // _MICROSECOND


def _instant(micros: int) -> datetime:
    return _EPOCH_OF_TIME + micros * _MICROSECOND


_EPOCH_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Grants first: usage versions compare only while the grants are the same.
_PUT = """
local have = redis.call('HMGET', KEYS[1], 'version', 'usage_version', 'body')
if have[1] then
    local version, usage = tonumber(have[1]), tonumber(have[2])
    if version > tonumber(ARGV[1]) or (version == tonumber(ARGV[1]) and usage > tonumber(ARGV[2])) then
        return 0
    end
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'usage_version', ARGV[2], 'body', ARGV[3], 'as_of', ARGV[4])
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] ~= ARGV[3] then
    redis.call('PUBLISH', ARGV[5], ARGV[6])
end
return 1
"""

# Marks without the values they speak of would hide that those are gone.
_BEGIN = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
    redis.call('SET', KEYS[1], ARGV[1])
    epoch = ARGV[1]
end
return epoch
"""

_MARK = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if run ~= ARGV[1] or redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
redis.call('SET', KEYS[3], ARGV[3])
redis.call('SET', KEYS[4], ARGV[4])
for i = 5, #ARGV, 2 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return 1
"""
