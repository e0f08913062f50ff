"""Entitlements in process: right within a moment of a change, and honest about where they come from."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from billing.entitlement import Entitlement, EntitlementKind, LimitKind, WhenUnknown
from infra import redis_cache
from infra.redis_cache import Entry, RedisCache
from infra.settings import Settings
from services.entitlements import Standing, best, decoded, encoded, policy
from tallybook_sdk import entitlements as sdk
from tallybook_sdk.entitlement_sources import AS_OF_KEY, RedisSource, channel, judged, key_of
from tallybook_sdk.entitlements import EntitlementClient
from tests.stack import Stack
from tests.waiting import eventually

NOBODY_REDIS, NOBODY_HTTP = "redis://127.0.0.1:1/0", "http://127.0.0.1:1"

standings = st.lists(
    st.builds(
        Standing,
        st.one_of(
            st.builds(Entitlement, feature=st.just("f"), when_unknown=st.sampled_from(WhenUnknown)),
            st.builds(
                Entitlement,
                feature=st.just("f"),
                kind=st.just(EntitlementKind.METERED),
                meter=st.just("m"),
                limit=st.integers(0, 9).map(Decimal),
                limit_kind=st.sampled_from(LimitKind),
            ),
        ),
        st.integers(0, 9).map(Decimal),
    ),
    max_size=4,
)


@given(standings)
def test_the_sdk_judges_as_the_server_does(given: list[Standing]) -> None:
    body = encoded(given)
    known, access = judged(body, (1, 2)), best(decoded("f", body))
    assert (known.allowed, known.reason, known.used, known.limit, known.remaining, known.when_unknown) == (
        *(access.allowed, access.reason, access.used, access.limit, access.remaining),
        policy(given),
    )


def test_the_sdk_looks_where_the_publisher_writes() -> None:
    for names in (("acme", "c-1", "calls"), ("a:b", "c/d é", "%")):
        assert key_of(*names) == redis_cache.entitlement_key(*names)
    assert channel("a:b") == redis_cache.channel("a:b")
    assert redis_cache._AS_OF == AS_OF_KEY


class Publisher:
    """Writes entitlements as the real one does, and lives until told otherwise."""

    def __init__(self, settings: Settings, tenant: str) -> None:
        self.url = settings.redis
        self.tenant = tenant
        self.cache = RedisCache(settings, timeout=timedelta(seconds=5))
        self.server = redis.Redis.from_url(settings.redis)
        self.version = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def grant(self, used: int, limit: int = 1000, **more: Any) -> None:
        self.version += 1
        kind = EntitlementKind.METERED
        granted = Entitlement(feature="calls", kind=kind, meter="m", limit=Decimal(limit), **more)
        body = encoded([Standing(granted, Decimal(used))])
        now = datetime.now(UTC)
        assert self.cache.publish([Entry(self.tenant, "ann", "calls", 1, self.version, body, now)]) == 1

    def _live(self) -> None:
        epoch = self.cache.epoch()
        while not self._stop.wait(0.05):
            self.cache.mark(epoch, {}, 0, datetime.now(UTC))

    def die(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def publisher(stack: Stack, tenant: str) -> Iterator[Publisher]:
    url = stack.settings.redis.rsplit("/", 1)[0] + "/9"
    redis.Redis.from_url(url).flushdb()
    made = Publisher(stack.settings.model_copy(update={"redis": url}), tenant)
    yield made
    made.die()
    made.cache.close()


@pytest.fixture
def client(publisher: Publisher) -> Iterator[EntitlementClient]:
    with EntitlementClient(publisher.tenant, redis=publisher.url) as made:
        yield made


def test_a_check_comes_from_redis_once_and_from_memory_then(publisher: Publisher, client: EntitlementClient) -> None:
    publisher.grant(400)
    first = client.check("ann", "calls")
    assert (first.source, first.stale) == ("redis", False)
    assert (first.allowed, first.reason, first.used, first.remaining) == (True, "within_limit", 400, 600)
    eventually(lambda: client.trusted)
    client.check("ann", "calls")
    assert client.check("ann", "calls").source == "cache"


def test_every_change_is_pushed_into_memory(publisher: Publisher, client: EntitlementClient) -> None:
    """How soon is measured by `benchmarks/sdk_entitlements.py`."""
    publisher.grant(0)
    client.check("ann", "calls")
    eventually(lambda: client.trusted)
    client.check("ann", "calls")
    for used in range(1, 30):
        publisher.grant(used)
        eventually(lambda used=used: seen(client, used))  # type: ignore[misc]
    publisher.grant(1000)
    eventually(lambda: not client.check("ann", "calls").allowed)


def seen(client: EntitlementClient, used: int) -> bool:
    answer = client.check("ann", "calls")
    assert answer.source == "cache", "the change was pushed into memory, not asked for"
    return answer.used == used


def test_a_check_in_memory_asks_nobody(
    publisher: Publisher, client: EntitlementClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.grant(0)
    client.check("ann", "calls")
    eventually(lambda: client.trusted)
    client.check("ann", "calls")
    monkeypatch.setattr(RedisSource, "get", lambda *_: pytest.fail("Redis was asked"))
    answers = {client.check("ann", "calls") for _ in range(1000)}
    assert [(each.source, each.allowed, each.stale) for each in answers] == [("cache", True, False)]


def test_what_changed_while_nothing_was_pushed_is_seen_afterwards(
    publisher: Publisher, client: EntitlementClient
) -> None:
    publisher.grant(1)
    client.check("ann", "calls")
    eventually(lambda: client.trusted)
    client.check("ann", "calls")
    body = json.loads(publisher.server.hget(key_of(publisher.tenant, "ann", "calls"), "body") or "")  # type: ignore[arg-type]
    body[0]["used"] = "2"
    publisher.server.hset(key_of(publisher.tenant, "ann", "calls"), "body", json.dumps(body))  # and nobody is told
    assert client.check("ann", "calls").used == 1
    publisher.server.client_kill_filter(_type="pubsub")
    eventually(lambda: client.check("ann", "calls").used == 2)
    eventually(lambda: client.trusted)


def test_a_dead_publisher_is_noticed(
    publisher: Publisher, client: EntitlementClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.grant(1)
    client.check("ann", "calls")
    eventually(lambda: client.trusted)
    monkeypatch.setattr(sdk, "PUBLISHER_S", 0.5)
    publisher.die()
    eventually(lambda: not client.trusted)
    old = eventually(lambda: (answer := client.check("ann", "calls")).stale and answer)
    assert (old.allowed, old.source, old.detail) == (True, "redis", "Redis: not published lately")


@contextmanager
def api(answer: Callable[[str], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """An API that gives `answer` to each path, until it is left."""
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the base class asks for this name
            status, told = (503, {}) if gone.is_set() else answer(self.path)
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        gone.set()  # connections that are kept outlive the server
        server.shutdown()
        server.server_close()


TOLD = {
    "allowed": True,
    "reason": "within_limit",
    "used": "7",
    "limit": "10",
    "remaining": "3",
    "source": "database",
    "stale": False,
    "as_of": None,
    "version": "3-4",
    "when_unknown": "closed",
}


def test_without_redis_the_api_answers() -> None:
    asked: list[str] = []
    with (
        api(lambda path: (asked.append(path), (200, TOLD))[1]) as url,
        EntitlementClient("acme", redis=NOBODY_REDIS, http=url, lone_ttl=timedelta(minutes=1)) as client,
    ):
        answer = client.check("c/1", "calls")
        assert (answer.source, answer.stale, answer.used, answer.remaining) == ("http", False, 7, 3)
        assert client.check("c/1", "calls").source == "cache"
    assert asked == ["/v1/customers/c%2F1/entitlements/calls"]


def test_an_empty_redis_lets_the_api_answer(publisher: Publisher) -> None:
    with (
        api(lambda _: (200, TOLD)) as url,
        EntitlementClient(publisher.tenant, redis=publisher.url, http=url) as client,
    ):
        assert client.check("ann", "calls").source == "http"


@pytest.mark.parametrize(
    ("status", "told"), [(401, {}), (503, {}), (200, []), (200, {"allowed": 1}), (200, {**TOLD, "source": "policy"})]
)
def test_where_nobody_answers_the_policy_of_the_feature_does(status: int, told: Any) -> None:
    with (
        api(lambda _: (status, told)) as url,
        EntitlementClient("acme", redis=NOBODY_REDIS, http=url, fail_open={"export"}) as client,
    ):
        closed, opened = client.check("ann", "calls"), client.check("ann", "export")
    assert (closed.allowed, closed.reason, closed.source, closed.stale) == (False, "unknown", "policy", True)
    assert (opened.allowed, opened.reason, opened.source, opened.stale) == (True, "unknown", "policy", True)
    assert "HTTP: " in closed.detail
    assert "Redis: " in closed.detail


def test_what_was_known_lately_stands_in_and_says_so() -> None:
    with api(lambda _: (200, TOLD)) as url:
        client = EntitlementClient("acme", http=url, lone_ttl=timedelta(0))
        assert client.check("ann", "calls").source == "http"
    answer = client.check("ann", "calls")
    assert (answer.allowed, answer.used, answer.source, answer.stale) == (True, 7, "cache", True)
    assert answer.detail


@pytest.mark.parametrize("when_unknown", ["open", "closed"])
def test_the_policy_of_the_plan_decides_once_it_was_known(when_unknown: str) -> None:
    with api(lambda _: (200, {**TOLD, "when_unknown": when_unknown})) as url:
        client = EntitlementClient("acme", http=url, lone_ttl=timedelta(0), stale_for=timedelta(0))
        client.check("ann", "calls")
    answer = client.check("ann", "calls")
    assert (answer.allowed, answer.source) == (when_unknown == "open", "policy")


def test_the_child_of_a_fork_listens_for_itself(publisher: Publisher, client: EntitlementClient) -> None:
    publisher.grant(1)
    eventually(lambda: client.check("ann", "calls").source == "cache" and client.trusted)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            first = client.check("ann", "calls").source
            eventually(lambda: client.trusted)
            client.check("ann", "calls")
            code = 0 if (first, client.check("ann", "calls").source) == ("redis", "cache") else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    publisher.grant(2)
    eventually(lambda: client.check("ann", "calls").used == 2)


def test_redis_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r"tallybook-sdk\[entitlements\]"):
        EntitlementClient("acme", redis=NOBODY_REDIS)
    with pytest.raises(ValueError, match="give redis, http, or both"):
        EntitlementClient("acme")
