"""May this customer use the feature? Answered from memory, as long as the memory is known to be right.

A thread listens to what Tallybook publishes, and fetches what changed of that which was asked before; a check then is a
look into a dictionary. The memory is trusted only while the subscription answers pings and the publisher is seen to
live. Else every check asks: Redis, then the API; and where nobody answers, what was known lately, then the declared
policy. Each answer says which it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from time import monotonic, time
from types import TracebackType
from typing import Self

from tallybook_sdk.entitlement_sources import OPEN, HttpSource, Key, Known, RedisSource, SourceDown, Subscription
from tallybook_sdk.living import watch

LEASE_S = 3.0  # trust in the memory, from the ping whose pong came
PING_S = 0.5
PUBLISHER_S = 5.0  # its mark moves several times a second; the server distrusts it after as long
SPARED_S = 1.0  # a source that failed is not asked again for so long
AT_ONCE = 500  # changes fetched in one round trip
CACHE, REDIS, HTTP, POLICY = "cache", "redis", "http", "policy"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """The answer."""

    allowed: bool
    reason: str
    """`granted`, `within_limit`, `limit_exceeded`, `not_granted`, or `unknown`: the policy decided."""
    used: Decimal | None
    limit: Decimal | None
    remaining: Decimal | None
    source: str
    """`cache` (this process), `redis`, `http`, or `policy`: nobody could be asked."""
    stale: bool
    """True if nobody could be asked whether it still holds."""
    detail: str = ""
    """Why nobody could be asked; else empty."""


class _Entry:
    """What is remembered of one feature of one customer."""

    __slots__ = ("answer", "at", "known", "lone_until", "until")

    def __init__(self, known: Known, at: float, until: float, lone_until: float) -> None:
        self.known = known
        self.answer = _answer(known, CACHE)
        self.at = at
        """When it was known to hold."""
        self.until = until
        """Good until then while the memory is trusted."""
        self.lone_until = lone_until
        """Good until then in any case."""


class _Troubles:
    """What went wrong while asking."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stale = False

    def may_ask(self, spared: dict[str, float], source: str) -> bool:
        if monotonic() >= spared[source]:
            return True
        self.said.append(f"{source} failed a moment ago")
        return False

    def note(self, spared: dict[str, float], source: str, down: SourceDown) -> None:
        spared[source] = monotonic() + SPARED_S
        log.warning("entitlements cannot be asked for: %s", down)
        self.said.append(str(down))


class EntitlementClient:
    """Entitlements of one tenant's customers. Safe to share between threads; the child of a fork begins anew.

    >>> client = EntitlementClient("acme", redis="redis://cache:6379", http="https://tallybook", api_key=key)
    >>> client.check("c-1", "export").allowed
    """

    def __init__(
        self,
        tenant: str,
        *,
        redis: str | None = None,
        http: str | None = None,
        api_key: str = "",
        fail_open: Collection[str] = (),
        ttl: timedelta = timedelta(seconds=60),
        lone_ttl: timedelta = timedelta(seconds=1),
        stale_for: timedelta = timedelta(minutes=15),
        timeout: timedelta = timedelta(milliseconds=500),
        capacity: int = 100_000,
    ) -> None:
        """`fail_open`: features that are allowed when nobody can be asked; the others as their plan says, if it is
        known, else refused. `ttl`: longest life of an answer in memory, should a push be lost. `lone_ttl`: its life
        while the memory is not trusted. `stale_for`: how long the last answer stands in when nobody can be asked.
        `timeout`: of each call. `capacity`: answers in memory.

        Raises:
            ValueError: neither `redis` nor `http` is given.
        """
        if redis is None and http is None:
            raise ValueError("give redis, http, or both")
        self._tenant = tenant
        self._redis_url = redis
        self._timeout = timeout
        self._http = None if http is None else HttpSource(http, api_key, timeout)
        self._fail_open = frozenset(fail_open)
        self._ttl_s = ttl.total_seconds()
        self._lone_s = lone_ttl.total_seconds()
        self._stale_s = stale_for.total_seconds()
        self._capacity = capacity
        self._closed = threading.Event()
        self._begin()
        watch(self)

    def _begin(self) -> None:
        """Everything that is of this process."""
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry] = {}
        self._pending: dict[Key, int] = {}
        """Keys that are being asked for, by how many: their change must not be missed."""
        self._trusted_until = 0.0
        self._epoch = 0
        """Grows when changes may have been missed."""
        self._spared = {REDIS: 0.0, HTTP: 0.0}
        self._listening: threading.Thread | None = None
        self._redis = None if self._redis_url is None else RedisSource(self._redis_url, self._tenant, self._timeout)

    def forget(self) -> None:
        """In the child of a fork: connections and thread are the parent's."""
        self._begin()

    def check(self, customer: str, feature: str) -> Entitlement:
        """Whether one more unit of `feature` may be used. Never raises for want of an answer: see `source`, `stale`."""
        entry = self._entries.get((customer, feature))
        if entry is not None:
            now = monotonic()
            if now < entry.lone_until or (now < entry.until and now < self._trusted_until):
                return entry.answer
        return self._ask((customer, feature), entry)

    @property
    def trusted(self) -> bool:
        """Whether changes are being pushed, so that the memory may answer."""
        return monotonic() < self._trusted_until

    def close(self, timeout: timedelta = timedelta(seconds=2)) -> None:
        """Stop listening."""
        self._closed.set()
        if self._listening is not None:
            self._listening.join(timeout.total_seconds())
        for source in (self._redis, self._http):
            if source is not None:
                source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, key: Key, entry: _Entry | None) -> Entitlement:
        if self._listening is None and self._redis is not None and not self._closed.is_set():
            self._begin_listening()
        with self._lock:
            self._pending[key] = self._pending.get(key, 0) + 1
            epoch = self._epoch
        try:
            found, source, troubles = self._asked(key)
            if found is not None and not troubles.stale:
                self._remember(key, found, epoch)
                return _answer(found, source)
        finally:
            with self._lock:
                self._pending[key] -= 1
                if not self._pending[key]:
                    del self._pending[key]
        detail = "; ".join(troubles.said)
        if found is not None:
            return replace(_answer(found, source), stale=True, detail=detail)
        if entry is not None and monotonic() - entry.at < self._stale_s:
            return replace(entry.answer, stale=True, detail=detail)
        plan_is_open = entry is not None and entry.known.reason != "not_granted" and entry.known.when_unknown == OPEN
        allowed = key[1] in self._fail_open or plan_is_open
        return Entitlement(allowed, "unknown", None, None, None, POLICY, True, detail)

    def _asked(self, key: Key) -> tuple[Known | None, str, _Troubles]:
        """What Redis knows, if the publisher vouches for it, else what the API says, else what Redis knew."""
        troubles = _Troubles()
        old = None
        if self._redis is not None and troubles.may_ask(self._spared, REDIS):
            try:
                ((known, as_of_us),) = self._redis.get([key])
                if known is not None and (self.trusted or time() - as_of_us / 1e6 < PUBLISHER_S):
                    return known, REDIS, troubles
                troubles.said.append("Redis: nothing published" if known is None else "Redis: not published lately")
                old = known
            except SourceDown as down:
                troubles.note(self._spared, REDIS, down)
        if self._http is not None and troubles.may_ask(self._spared, HTTP):
            try:
                return self._http.get(*key), HTTP, troubles
            except SourceDown as down:
                troubles.note(self._spared, HTTP, down)
        troubles.stale = True
        return old, REDIS, troubles

    def _remember(self, key: Key, known: Known, epoch: int) -> None:
        now = monotonic()
        with self._lock:
            have = self._entries.get(key)
            if have is not None and have.known.version > known.version:
                return  # a change that was pushed meanwhile
            # Changes may have been missed since it was asked for: then only for a moment.
            until = now + self._ttl_s if epoch == self._epoch else 0.0
            if have is None and len(self._entries) >= self._capacity:
                self._entries.pop(next(iter(self._entries)))
            self._entries[key] = _Entry(known, now, until, 0.0 if self.trusted else now + self._lone_s)

    def _begin_listening(self) -> None:
        with self._lock:
            if self._listening is None:
                self._listening = threading.Thread(target=self._listen, name="tallybook-entitlements", daemon=True)
                self._listening.start()

    def _listen(self) -> None:
        """Keep a subscription alive for ever; while there is none, there is no trust."""
        redis, closed = self._redis, self._closed
        assert redis is not None
        while not closed.is_set():
            try:
                subscription = redis.subscribe()
                try:
                    self._follow(redis, subscription)
                finally:
                    self._trusted_until = 0.0
                    subscription.close()
            except SourceDown as down:
                log.warning("entitlements are no longer pushed: %s", down)
                closed.wait(SPARED_S)

    def _follow(self, redis: RedisSource, subscription: Subscription) -> None:
        """Trust from ping to pong, and fetch what changes, until closed. Raises `SourceDown`."""
        with self._lock:
            self._epoch += 1  # what changed before is unknown
            for entry in self._entries.values():
                entry.until = 0.0
        mark, moved_at, pinged_at, waits_since = redis.as_of(), 0.0, 0.0, 0.0
        while not self._closed.is_set():
            now = monotonic()
            if now - pinged_at >= PING_S and not waits_since:
                if (seen := redis.as_of()) != mark and seen is not None:
                    mark, moved_at = seen, now
                subscription.ping()
                pinged_at = waits_since = now
            if waits_since and now - waits_since > LEASE_S:
                raise SourceDown("Redis: no answer to a ping")
            changed: dict[Key, None] = {}
            told = subscription.next(PING_S / 5)
            while isinstance(told, tuple):
                changed[told] = None
                told = subscription.next(0) if len(changed) < AT_ONCE else None
            self._refresh(redis, list(changed))
            if told == "pong":  # every change before it is here, and was fetched
                self._trusted_until = waits_since + LEASE_S if moved_at and now - moved_at < PUBLISHER_S else 0.0
                waits_since = 0.0

    def _refresh(self, redis: RedisSource, changed: list[Key]) -> None:
        """Fetch what changed, as far as it was ever asked for: checks go on with what was known until it is here."""
        wanted = [each for each in changed if each in self._entries or each in self._pending]
        if not wanted:
            return
        epoch = self._epoch
        for key, (known, _) in zip(wanted, redis.get(wanted), strict=True):
            if known is not None:
                self._remember(key, known, epoch)
            else:
                self._entries.pop(key, None)


def _answer(known: Known, source: str) -> Entitlement:
    return Entitlement(known.allowed, known.reason, known.used, known.limit, known.remaining, source, False)
