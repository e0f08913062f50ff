"""Entitlements: from Redis, from Postgres where Redis does not know, and never an older answer over a newer one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
import redis

from billing.entitlement import Access
from infra import postgres
from infra.redis_cache import Entry, RedisCache, entitlement_key
from infra.settings import Settings
from services.entitlement_publisher import Publisher
from services.entitlements import CACHE, DATABASE, Entitlements, encoded
from tests.projections.history import START, History
from tests.projections.log import append
from tests.projections.test_replay import project_log
from tests.projections.usage_log import calls, count_log, measure_from_now_on, send
from tests.stack import Stack
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("topics")

LIMIT = Decimal(1000)


def within(used: int) -> Access:
    return Access(True, "within_limit", Decimal(used), LIMIT, LIMIT - used)


@pytest.fixture
def own_redis(fresh: Settings) -> Settings:
    """Settings whose Redis database is this test's own: it is emptied."""
    url = fresh.redis.rsplit("/", 1)[0] + "/7"
    redis.Redis.from_url(url).flushdb()
    return fresh.model_copy(update={"redis": url})


@pytest.fixture
def cache(own_redis: Settings) -> Iterator[RedisCache]:
    made = RedisCache(own_redis, timeout=timedelta(seconds=5))
    yield made
    made.close()


@pytest.fixture
def subscribed(fresh: Settings, pool: postgres.Pool) -> History:
    """Ann, on a plan with single sign-on and 1000 calls a month, of which she made 400."""
    history = History("acme").register().subscribe("ann")
    append(fresh, history.events)
    measure_from_now_on(fresh, "acme", START)
    send(fresh, "acme", calls("ann", 400, START))
    project_log(fresh, pool)
    count_log(fresh, pool)
    return history


@pytest.fixture
def answers(cache: RedisCache, api: postgres.Pool) -> Entitlements:
    return Entitlements(cache, api)


def test_postgres_answers_until_redis_knows(
    subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    assert answers.access("acme", "ann", "calls") == (within(400), DATABASE)
    assert Publisher(pool, cache).step() == 2
    assert answers.access("acme", "ann", "calls") == (within(400), CACHE)
    assert answers.access("acme", "ann", "sso") == (Access(True, "granted"), CACHE)
    assert answers.access("acme", "ann", "unheard of") == (Access(False, "not_granted"), DATABASE)
    assert answers.access("bolt", "ann", "calls") == (Access(False, "not_granted"), DATABASE)


def test_usage_moves_the_answer_up_to_the_limit(
    fresh: Settings, subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    publisher = Publisher(pool, cache)
    publisher.step()
    send(fresh, "acme", calls("ann", 600, START + timedelta(hours=1)))
    count_log(fresh, pool)
    assert publisher.step() == 1
    exceeded = Access(False, "limit_exceeded", LIMIT, LIMIT, Decimal(0))
    assert answers.access("acme", "ann", "calls") == (exceeded, CACHE)
    assert publisher.step() == 0  # nothing changed


def test_a_new_period_starts_at_zero_and_an_ended_subscription_grants_nothing(
    fresh: Settings, subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    publisher = Publisher(pool, cache)
    publisher.step()
    known = len(subscribed.events)
    subscribed.issue_awaited()
    subscribed.close("ann")
    append(fresh, subscribed.events[known:])
    project_log(fresh, pool)
    published(publisher, answers, within(0))
    known = len(subscribed.events)
    subscribed.cancel("ann").issue_awaited()
    subscribed.close("ann")
    append(fresh, subscribed.events[known:])
    project_log(fresh, pool)
    published(publisher, answers, Access(False, "not_granted"))


def published(publisher: Publisher, answers: Entitlements, expected: Access) -> None:
    """Publish until the answer is `expected`: a change is seen once every older transaction on the server has ended."""

    def arrived() -> bool:
        publisher.step()
        return answers.access("acme", "ann", "calls") == (expected, CACHE)

    eventually(arrived, within_s=20)


def test_an_emptied_redis_is_told_everything_again(
    own_redis: Settings, subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    publisher = Publisher(pool, cache)
    publisher.step()
    redis.Redis.from_url(own_redis.redis).flushdb()
    assert answers.access("acme", "ann", "calls") == (within(400), DATABASE)
    assert publisher.step() == 2
    assert answers.access("acme", "ann", "calls") == (within(400), CACHE)


def test_a_new_publisher_goes_on_from_the_mark(subscribed: History, cache: RedisCache, pool: postgres.Pool) -> None:
    Publisher(pool, cache).step()
    assert Publisher(pool, cache).step() in (0, 1)  # what usage changed lately may come twice
    assert cache.marks()[0] == {"acme": len(subscribed.events)}


def test_an_older_value_is_refused(cache: RedisCache) -> None:
    def entry(version: int, usage: int) -> Entry:
        return Entry("acme", "ann", "calls", version, usage, f"{version}.{usage}")

    assert cache.publish([entry(5, 20)]) == 1
    assert cache.publish([entry(5, 19), entry(4, 99)]) == 0
    assert cache.entitlement("acme", "ann", "calls") == "5.20"
    assert cache.publish([entry(6, 1)]) == 1  # another plan, another meter: its usage counts from elsewhere
    assert cache.entitlement("acme", "ann", "calls") == "6.1"


def test_marks_of_an_emptied_redis_are_not_written(own_redis: Settings, cache: RedisCache) -> None:
    epoch = cache.epoch()
    redis.Redis.from_url(own_redis.redis).flushdb()
    cache.mark(epoch, {"acme": 9}, 7)
    assert cache.marks() == ({}, 0)
    assert cache.epoch() != epoch


def test_ids_with_colons_keep_apart() -> None:
    assert entitlement_key("t", "a:b", "c") != entitlement_key("t", "a", "b:c")
    with pytest.raises(ValueError, match="needs a tenant"):
        entitlement_key("", "a", "b")


def test_every_key_holds_values_of_its_own_tenant(
    own_redis: Settings, subscribed: History, fresh: Settings, cache: RedisCache, pool: postgres.Pool
) -> None:
    append(fresh, History("bolt").register().subscribe("zoe").events)
    project_log(fresh, pool)
    Publisher(pool, cache).step()
    keys = {key.decode() for key in redis.Redis.from_url(own_redis.redis).scan_iter("tb:*:entitlement:*")}
    assert keys == {
        "tb:acme:entitlement:ann:calls",
        "tb:acme:entitlement:ann:sso",
        "tb:bolt:entitlement:zoe:calls",
        "tb:bolt:entitlement:zoe:sso",
    }


def test_without_redis_postgres_answers(fresh: Settings, subscribed: History, api: postgres.Pool) -> None:
    nobody = RedisCache(fresh.model_copy(update={"redis": "redis://127.0.0.1:1/0"}))
    assert Entitlements(nobody, api).access("acme", "ann", "calls") == (within(400), DATABASE)


def test_the_process_publishes_and_stops_when_asked(
    stack: Stack, own_redis: Settings, subscribed: History, answers: Entitlements
) -> None:
    process = stack.start("entitlements", own_redis)
    eventually(lambda: answers.access("acme", "ann", "calls")[1] == CACHE, within_s=30)
    redis.Redis.from_url(own_redis.redis).flushdb()
    eventually(lambda: answers.access("acme", "ann", "calls") == (within(400), CACHE), within_s=10)
    assert stack.stop(process) == 0


def test_nothing_granted_is_a_value_too() -> None:
    assert encoded([]) == "[]"
