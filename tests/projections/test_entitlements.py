"""Entitlements: from Redis, from Postgres where Redis does not know, and never an older answer over a newer one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import redis

from billing.entitlement import Access, Entitlement, WhenUnknown
from infra import postgres
from infra.errors import Transient
from infra.redis_cache import Entry, LoopCache, RedisCache, channel, entitlement_key
from infra.settings import Settings
from services.entitlement_publisher import Publisher
from services.entitlements import CACHE, DATABASE, FRESH, POLICY, TRUSTED, Answer, Entitlements, Standing, encoded
from tests.projections.history import START, History
from tests.projections.log import append
from tests.projections.test_replay import project_log
from tests.projections.usage_log import calls, count_log, measure_from_now_on, send
from tests.stack import Stack
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("topics")

LIMIT = Decimal(1000)
NOW = datetime.now(UTC)


def within(used: int) -> Access:
    return Access(True, "within_limit", Decimal(used), LIMIT, LIMIT - used)


def told(answers: Entitlements, *asked: str) -> tuple[Access, str]:
    """The answer and where it came from; by default whether Ann may make calls."""
    answer = answers.access(*(asked or ("acme", "ann", "calls")))
    return answer.access, answer.source


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
    assert told(answers) == (within(400), DATABASE)
    assert Publisher(pool, cache).step() == 2
    assert told(answers) == (within(400), CACHE)
    assert told(answers, "acme", "ann", "sso") == (Access(True, "granted"), CACHE)
    assert told(answers, "acme", "ann", "unheard of") == (Access(False, "not_granted"), DATABASE)
    assert told(answers, "bolt", "ann", "calls") == (Access(False, "not_granted"), DATABASE)


def test_usage_moves_the_answer_up_to_the_limit(
    fresh: Settings, subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    publisher = Publisher(pool, cache)
    publisher.step()
    send(fresh, "acme", calls("ann", 600, START + timedelta(hours=1)))
    count_log(fresh, pool)
    assert publisher.step() == 1
    exceeded = Access(False, "limit_exceeded", LIMIT, LIMIT, Decimal(0))
    assert told(answers) == (exceeded, CACHE)
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
        return told(answers) == (expected, CACHE)

    eventually(arrived)


def test_an_emptied_redis_is_told_everything_again(
    own_redis: Settings, subscribed: History, answers: Entitlements, cache: RedisCache, pool: postgres.Pool
) -> None:
    publisher = Publisher(pool, cache)
    publisher.step()
    redis.Redis.from_url(own_redis.redis).flushdb()
    assert told(answers) == (within(400), DATABASE)
    assert publisher.step() == 2
    assert told(answers) == (within(400), CACHE)


def test_a_new_publisher_goes_on_from_the_mark(subscribed: History, cache: RedisCache, pool: postgres.Pool) -> None:
    Publisher(pool, cache).step()
    assert Publisher(pool, cache).step() in (0, 1)  # what usage changed lately may come twice
    assert cache.marks()[0] == {"acme": len(subscribed.events)}


def test_an_older_value_is_refused(cache: RedisCache) -> None:
    def entry(version: int, usage: int) -> Entry:
        return Entry("acme", "ann", "calls", version, usage, f"{version}.{usage}", NOW)

    assert cache.publish([entry(5, 20)]) == 1
    assert cache.publish([entry(5, 19), entry(4, 99)]) == 0
    assert body(cache) == "5.20"
    assert cache.publish([entry(6, 1)]) == 1  # another plan, another meter: its usage counts from elsewhere
    assert body(cache) == "6.1"


def body(cache: RedisCache) -> str | None:
    found = cache.entitlement("acme", "ann", "calls")
    return None if found is None else found.body


def test_marks_of_an_emptied_redis_are_not_written(own_redis: Settings, cache: RedisCache) -> None:
    epoch = cache.epoch()
    redis.Redis.from_url(own_redis.redis).flushdb()
    cache.mark(epoch, {"acme": 9}, 7, NOW)
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
    assert told(Entitlements(nobody, api)) == (within(400), DATABASE)


def at_once(settings: Settings, api: postgres.Pool, cache: RedisCache, clock: Moving) -> tuple[Answer | None, Answer]:
    """What is answered without a thread, and with one right after it."""

    async def ask() -> Answer | None:
        loop_cache = LoopCache(settings)
        checks._loop_cache = loop_cache
        try:
            return await checks.at_once("acme", "ann", "calls")
        finally:
            await loop_cache.close()

    checks = Entitlements(cache, api, clock)
    return asyncio.run(ask()), checks.access("acme", "ann", "calls")


def test_a_check_without_a_thread_says_the_same_or_nothing(
    own_redis: Settings, subscribed: History, api: postgres.Pool, cache: RedisCache, pool: postgres.Pool
) -> None:
    clock = Moving()
    short, long = at_once(own_redis, api, cache, clock)
    assert (short, long.source) == (None, DATABASE)  # Redis is empty
    Publisher(pool, cache).step()
    short, long = at_once(own_redis, api, cache, clock)
    assert short == long
    assert (long.access, long.source) == (within(400), CACHE)
    clock.ahead = FRESH * 2
    short, long = at_once(own_redis, api, cache, clock)
    assert (short, long.source) == (None, DATABASE)  # nobody held it against Postgres lately
    away = own_redis.model_copy(update={"redis": "redis://127.0.0.1:1/0"})
    short, long = at_once(away, api, RedisCache(own_redis), Moving())
    assert (short, long.source) == (None, DATABASE)  # the long way does not ask for the same outage again


def test_what_is_asked_for_at_once_goes_together_and_each_gets_its_own(own_redis: Settings, cache: RedisCache) -> None:
    names = [f"c{number}" for number in range(20)]
    cache.publish([Entry("acme", each, "calls", 1, number, "[]", NOW) for number, each in enumerate(names)])

    async def ask() -> list[str | None]:
        loop_cache = LoopCache(own_redis)
        try:
            found = await asyncio.gather(
                *(loop_cache.entitlement("acme", each, "calls") for each in [*names, "nobody"])
            )
            assert len(loop_cache._redis.connection_pool._available_connections) == 1  # type: ignore[attr-defined]
            return [each and each.version for each in found]
        finally:
            await loop_cache.close()

    assert asyncio.run(ask()) == [*(f"1-{number}" for number in range(20)), None]


def test_an_outage_is_told_to_everybody_who_asked_and_ends(own_redis: Settings, cache: RedisCache) -> None:
    cache.publish([Entry("acme", "ann", "calls", 1, 1, "[]", NOW)])

    async def ask() -> None:
        away = LoopCache(own_redis.model_copy(update={"redis": "redis://127.0.0.1:1/0"}))
        for _ in range(2):
            told = await asyncio.gather(
                *(away.entitlement("acme", "ann", "calls") for _ in range(3)), return_exceptions=True
            )
            assert [type(each) for each in told] == [Transient] * 3
        back = LoopCache(own_redis)
        away._redis, there = back._redis, away._redis
        assert (await away.entitlement("acme", "ann", "calls")) is not None
        await back.close()
        await there.aclose()

    asyncio.run(ask())


def test_the_process_publishes_and_stops_when_asked(
    stack: Stack, own_redis: Settings, subscribed: History, answers: Entitlements
) -> None:
    process = stack.start("entitlements", own_redis)
    eventually(lambda: told(answers)[1] == CACHE)
    redis.Redis.from_url(own_redis.redis).flushdb()
    eventually(lambda: told(answers) == (within(400), CACHE))
    assert stack.stop(process) == 0


def test_nothing_granted_is_a_value_too() -> None:
    assert encoded([]) == "[]"


def test_every_change_is_told_on_the_tenants_channel(own_redis: Settings, cache: RedisCache) -> None:
    listener = redis.Redis.from_url(own_redis.redis, decode_responses=True).pubsub()
    listener.subscribe(channel("acme"))
    assert listener.get_message(timeout=60)["type"] == "subscribe"

    def entry(usage: int, body: str = "[]") -> Entry:
        return Entry("acme", "ann", "calls", 5, usage, body, NOW)

    cache.publish([entry(20), entry(20), entry(19), entry(21), entry(21, "changed")])
    heard = [json.loads(listener.get_message(timeout=60)["data"]) for _ in range(3)]
    assert [each["version"] for each in heard] == ["5-20", "5-21", "5-21"]  # neither repeated nor older ones
    assert heard[0] == {"customer": "ann", "feature": "calls", "version": "5-20"}
    assert listener.get_message(timeout=0) is None


class Moving:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic_s(self) -> float:
        return self.ahead.total_seconds()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a check does not wait")


@pytest.fixture
def nowhere(fresh: Settings) -> Iterator[postgres.Pool]:
    """Postgres, as it is while it is away."""
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    with postgres._pool(url, timedelta(seconds=1), 1, timedelta(seconds=0.2), pooler=False) as pool:
        yield pool


def test_without_postgres_redis_is_trusted_for_a_while_and_says_that_it_is_stale(
    subscribed: History, cache: RedisCache, pool: postgres.Pool, nowhere: postgres.Pool
) -> None:
    publisher, clock = Publisher(pool, cache), Moving()
    publisher.step()
    checks = Entitlements(cache, nowhere, clock)
    assert not checks.access("acme", "ann", "calls").stale
    clock.ahead = FRESH * 2
    held = checks.access("acme", "ann", "calls")
    assert (held.access, held.source, held.stale) == (within(400), CACHE, True)
    clock.ahead = TRUSTED + FRESH
    lost = checks.access("acme", "ann", "calls")
    assert (lost.access, lost.source, lost.stale) == (Access(False, "unknown"), POLICY, True)
    assert lost.as_of == held.as_of


def test_an_old_answer_of_redis_is_held_against_postgres(
    fresh: Settings, subscribed: History, api: postgres.Pool, cache: RedisCache, pool: postgres.Pool
) -> None:
    """A publisher that died, or a Redis that came back with old values, grants nothing."""
    Publisher(pool, cache).step()
    send(fresh, "acme", calls("ann", 600, START + timedelta(hours=1)))
    count_log(fresh, pool)
    clock = Moving()
    clock.ahead = FRESH * 2
    answer = Entitlements(cache, api, clock).access("acme", "ann", "calls")
    assert (answer.access.allowed, answer.source, answer.stale) == (False, DATABASE, False)


def test_an_open_feature_stays_open_while_nobody_can_tell(cache: RedisCache, nowhere: postgres.Pool) -> None:
    opened = Entitlement(feature="sso", when_unknown=WhenUnknown.OPEN)
    for feature, standings in (("sso", [Standing(opened, Decimal(0))]), ("gone", [])):
        cache.publish([Entry("acme", "ann", feature, 1, 0, encoded(standings), NOW)])
    clock = Moving()
    checks = Entitlements(cache, nowhere, clock)
    checks.access("acme", "ann", "sso")
    checks._cache = RedisCache(Settings(redis="redis://127.0.0.1:1/0"))
    answers = {each: checks.access("acme", "ann", each) for each in ("sso", "gone", "never asked for")}
    assert {name: (each.access.allowed, each.source) for name, each in answers.items()} == {
        "sso": (True, POLICY),
        "gone": (False, POLICY),  # what was never granted is open to nobody
        "never asked for": (False, POLICY),
    }


def test_marks_are_not_written_to_a_redis_that_started_again(cache: RedisCache) -> None:
    """It may have come back with values from before the marks."""
    run, began = cache.epoch().split()
    cache.mark(f"{run[::-1]}0 {began}", {"acme": 9}, 7, NOW)
    assert cache.marks() == ({}, 0)
