"""Reservations of a hard limit: never more than the limit, whoever asks at once, restarts, or counts meanwhile."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
import redis

from billing.errors import Rejected
from infra import postgres
from infra.redis_cache import RedisCache
from infra.settings import Settings
from services.entitlement_publisher import Publisher
from services.reservations import COMMITTED, COUNTED, EXPIRED, HELD, RELEASED, Granted, Reservations
from tests.cli.test_commands import runner
from tests.projections.history import START, History
from tests.projections.log import append
from tests.projections.test_replay import project_log
from tests.projections.usage_log import calls, count_log, measure_from_now_on, send
from tests.stack import Stack

pytestmark = pytest.mark.usefixtures("topics")

LIMIT, USED = 1000, 400
MINUTE = timedelta(minutes=1)


@pytest.fixture
def subscribed(fresh: Settings, pool: postgres.Pool) -> History:
    """Ann may make 1000 calls and made 400."""
    history = History("acme").register().subscribe("ann")
    append(fresh, history.events)
    measure_from_now_on(fresh, "acme", START)
    send(fresh, "acme", calls("ann", USED, START))
    project_log(fresh, pool)
    count_log(fresh, pool)
    return history


@pytest.fixture
def reservations(subscribed: History, api: postgres.Pool) -> Reservations:
    return Reservations(api)


def ask(reservations: Reservations, key: str, quantity: int, feature: str = "calls") -> Granted | None:
    """None: refused by the limit."""
    try:
        return reservations.reserve("acme", key, "ann", feature, Decimal(quantity), MINUTE)
    except Rejected as error:
        if error.code != "limit_exceeded":
            raise
        return None


def test_fifty_clients_never_get_more_than_the_limit(
    fresh: Settings, subscribed: History, reservations: Reservations, pool: postgres.Pool
) -> None:
    chance = random.Random(7)
    wishes = [chance.randint(1, 40) for _ in range(200)]
    cache = RedisCache(fresh)

    def wish(number: int) -> int:
        if number % 40 == 0:  # Redis has no part in it: emptied and told again in between
            redis.Redis.from_url(fresh.redis).flushdb()
            Publisher(pool, cache).step()
        return wishes[number] if ask(reservations, f"k{number}", wishes[number]) else 0

    with ThreadPoolExecutor(50) as clients:
        granted = sum(clients.map(wish, range(len(wishes))))
    assert granted <= LIMIT - USED
    assert granted > LIMIT - USED - 40  # and nothing was withheld
    rest = ask(reservations, "rest", LIMIT - USED - granted) if granted < LIMIT - USED else None
    assert rest is None or rest.remaining == 0
    assert ask(reservations, "one more", 1) is None


def test_what_is_used_of_a_promise_is_never_counted_twice_nor_forgotten(
    fresh: Settings, subscribed: History, reservations: Reservations, pool: postgres.Pool
) -> None:
    events = calls("ann", 600, START + timedelta(hours=1))
    for number, event in enumerate(events[:300]):
        made = ask(reservations, f"k{number}", 1)
        assert made is not None
        reservations.commit("acme", made.reservation.id, event.source, event.id)
    assert ask(reservations, "too much", 301) is None
    with ThreadPoolExecutor(4) as others:
        send(fresh, "acme", events[:300])
        counting = others.submit(count_log, fresh, pool)
        asked = [others.submit(ask, reservations, f"while {number}", 301) for number in range(40)]
        counting.result()
        assert [each.result() for each in asked] == [None] * 40  # 400 + 300 stay 700 all the time
    made = ask(reservations, "the rest", 300)
    assert made is not None
    assert made.remaining == 0


def test_a_promise_ends_by_release_by_time_or_by_its_event(
    fresh: Settings, subscribed: History, reservations: Reservations, pool: postgres.Pool
) -> None:
    made = ask(reservations, "a", 600)
    assert made is not None
    assert (made.reservation.state, made.remaining) == (HELD, 0)
    assert ask(reservations, "b", 1) is None
    for _ in range(2):
        released = reservations.release("acme", made.reservation.id)
        assert released is not None
        assert released.state == RELEASED
    second = ask(reservations, "b", 600)
    assert second is not None
    lapse(pool, second.reservation.id)
    with pytest.raises(Rejected, match="expired"):
        reservations.commit("acme", second.reservation.id, "s", "1")
    third = ask(reservations, "c", 600)
    assert third is not None
    (event,) = calls("ann", 1, START + timedelta(hours=2))
    for _ in range(2):
        committed = reservations.commit("acme", third.reservation.id, event.source, event.id)
        assert committed is not None
        assert committed.state == COMMITTED
    assert committed.expires_at > third.reservation.expires_at
    with pytest.raises(Rejected, match="committed"):
        reservations.release("acme", third.reservation.id)
    with pytest.raises(Rejected, match="committed"):
        reservations.commit("acme", third.reservation.id, "another", "1")
    send(fresh, "acme", [event])
    count_log(fresh, pool)
    found = {each: reservations.find("acme", each) for each in (second.reservation.id, third.reservation.id)}
    assert [each.state for each in found.values() if each] == [EXPIRED, COUNTED]
    last = ask(reservations, "d", 599)
    assert last is not None
    assert last.remaining == 0


def test_the_command_line_promises_commits_and_gives_back(
    stack: Stack,
    fresh: Settings,
    subscribed: History,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = {name: value for name, value in stack.environment(fresh).items() if name.startswith("TALLYBOOK_")}
    run = runner(ours, monkeypatch, capsys)

    def tallybook(*words: str) -> tuple[int, str]:
        code, out, err = run("entitlements", *words)
        return code, out or err

    assert tallybook("check", "ann", "calls")[0] == 0
    assert "400 of 1000 used (from database" in tallybook("check", "ann", "calls")[1]
    assert tallybook("check", "ann", "unheard-of") == (1, "no: not_granted (from database; when unknown: closed)\n")
    code, told = tallybook("reserve", "ann", "calls", "500", "--key", "k", "--ttl", "600")
    assert (code, "held 500 of calls for ann" in told, "100 can still be reserved" in told) == (0, True, True)
    made = told.split()[0]
    assert "as before" in tallybook("reserve", "ann", "calls", "500", "--key", "k")[1]
    code, told = tallybook("reserve", "ann", "calls", "101")
    assert (code, "100 can be reserved" in told) == (1, True)
    assert json.loads(tallybook("show", made, "--json")[1])["state"] == "held"
    for _ in range(2):
        assert " released 500 " in tallybook("release", made)[1]
    other = json.loads(tallybook("reserve", "ann", "calls", "0.5", "--json")[1])["reservation"]["id"]
    assert "for event gateway e-1" in tallybook("commit", other, "e-1", "--source", "gateway")[1]
    assert tallybook("release", other) == (1, "tallybook: the reservation is committed\n")
    assert tallybook("show", "rsv_none")[0] == 1
    assert tallybook("reserve", "ann", "calls", "--", "-1")[0] == 2
    assert tallybook("reserve", "ann", "calls", "many")[0] == 2


def lapse(pool: postgres.Pool, reservation_id: str) -> None:
    """As if its time were over."""
    with postgres.transaction(pool) as tx:
        tx.execute("UPDATE app.reservation SET expires_at = now() WHERE reservation_id = %s", (reservation_id,))


def test_the_same_key_gets_the_same_promise(reservations: Reservations) -> None:
    first, again = ask(reservations, "k", 10), ask(reservations, "k", 10)
    assert first is not None
    assert again is not None
    assert again.reservation == first.reservation
    assert (first.replayed, again.replayed) == (False, True)
    with pytest.raises(Rejected, match="another reservation"):
        reservations.reserve("acme", "k", "ann", "calls", Decimal(11), MINUTE)


def test_only_granted_limits_of_the_own_tenant_can_be_reserved(reservations: Reservations) -> None:
    for feature, code in (("sso", "not_metered"), ("unheard of", "not_granted")):
        with pytest.raises(Rejected) as refused:
            reservations.reserve("acme", "k", "ann", feature, Decimal(1), MINUTE)
        assert refused.value.code == code
    made = ask(reservations, "k", 1)
    assert made is not None
    assert reservations.find("bolt", made.reservation.id) is None
    assert reservations.release("bolt", made.reservation.id) is None
