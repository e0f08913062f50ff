"""Redis or Valkey as a cache of absolute values: the only module that talks to its client library.

A value carries the version of the Postgres rows it was made of, and a script refuses an older one; so a repeated, late
or doubled write is harmless, and the client may repeat any call. Nothing here is the truth: whoever finds nothing, or
nobody, reads Postgres.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.errors import Transient
from infra.settings import Settings

_EPOCH = "tb:epoch"
_MARKS = "tb:entitlements:marks"
_USAGE_MARK = "tb:entitlements:usage-mark"


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


class RedisCache:
    """Entitlements in Redis, and how far they have been published."""

    def __init__(self, settings: Settings, *, timeout: timedelta = timedelta(milliseconds=500)) -> None:
        """Connects with the first call. `timeout` is per call: a slow cache is worse than none."""
        seconds = timeout.total_seconds()
        self._redis = redis.Redis.from_url(
            settings.require("redis"),
            decode_responses=True,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=10,
        )
        self._put = self._redis.register_script(_PUT)
        self._begin = self._redis.register_script(_BEGIN)
        self._mark = self._redis.register_script(_MARK)

    def entitlement(self, tenant: str, customer: str, feature: str) -> str | None:
        """The body of what was published; None if nothing was.

        Raises:
            Transient: Redis is away or slow.
        """
        return cast(
            "str | None", self._try(lambda: self._redis.hget(entitlement_key(tenant, customer, feature), "body"))
        )

    def publish(self, entries: Iterable[Entry]) -> int:
        """Write what is newer than what is there; returns how many were. Raises `Transient`."""

        def write() -> list[int]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for each in entries:
                    key = entitlement_key(each.tenant, each.customer, each.feature)
                    self._put(keys=[key], args=[each.version, each.usage_version, each.body], client=pipeline)
                return cast("list[int]", pipeline.execute())

        return sum(cast("list[int]", self._try(write)))

    def epoch(self) -> str:
        """What changes when Redis starts again or is emptied; an emptied one forgets its marks. Raises `Transient`."""

        def ask() -> str:
            run: str = self._redis.info("server")["run_id"]
            return f"{run} {self._begin(keys=[_EPOCH, _MARKS, _USAGE_MARK], args=[secrets.token_hex(8)])}"

        return cast("str", self._try(ask))

    def marks(self) -> tuple[dict[str, int], int]:
        """How far this Redis has been told: tenant -> sequence of its events, and the mark of usage (0: never).

        They live beside the values they speak of, and are lost with them. Raises `Transient`.
        """
        of_tenants = cast("dict[str, str]", self._try(lambda: self._redis.hgetall(_MARKS)))
        usage = cast("str | None", self._try(lambda: self._redis.get(_USAGE_MARK)))
        return {tenant: int(mark) for tenant, mark in of_tenants.items()}, int(usage or 0)

    def mark(self, epoch: str, tenants: Mapping[str, int], usage: int) -> None:
        """Remember that these marks are reached; not if Redis was emptied since `epoch`. Raises `Transient`."""
        pairs = [text for tenant, mark in tenants.items() for text in (tenant, str(mark))]
        began = epoch.split()[-1]
        self._try(lambda: self._mark(keys=[_EPOCH, _MARKS, _USAGE_MARK], args=[began, usage, *pairs]))

    def close(self) -> None:
        """Close its connections."""
        self._redis.close()

    def _try(self, call: Any) -> Any:
        try:
            return call()
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


# Grants first: usage versions compare only while the grants are the same.
_PUT = """
local have = redis.call('HMGET', KEYS[1], 'version', 'usage_version')
if have[1] then
    local version, usage = tonumber(have[1]), tonumber(have[2])
    if version > tonumber(ARGV[1]) or (version == tonumber(ARGV[1]) and usage > tonumber(ARGV[2])) then
        return 0
    end
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'usage_version', ARGV[2], 'body', ARGV[3])
return 1
"""

# Marks without the values they speak of would hide that those are gone.
_BEGIN = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then
    redis.call('DEL', KEYS[2], KEYS[3])
    redis.call('SET', KEYS[1], ARGV[1])
    epoch = ARGV[1]
end
return epoch
"""

_MARK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[3], ARGV[2])
for i = 3, #ARGV, 2 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return 1
"""
