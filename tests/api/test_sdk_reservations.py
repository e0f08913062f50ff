"""Reservations as producers make them: the SDK, over real HTTP, against real Postgres."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import Message
from typing import Any

import pytest
import uvicorn

from billing.ids import SubscriptionId
from billing.subscription import ActivateSubscription
from infra import postgres
from infra.faust_app import Batch
from services.api.app import create_app
from services.usage_aggregator import UsageStore
from tallybook_sdk import UsageEvent
from tallybook_sdk.http_calls import HttpCalls, NoAnswer
from tallybook_sdk.reservations import (
    AsyncReservationClient,
    LimitExceeded,
    NotReserved,
    OutcomeUnknown,
    ReservationClient,
)
from tests.api.edge import BOOK, Client, Edge
from tests.usage.making import Home, Log, batch, control, event
from tests.waiting import eventually

LIMIT = 10  # calls a month, by the plan
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def address(api_edge: Edge) -> Iterator[str]:
    """The application on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(create_app(api_edge.parts), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def ann(client: Client) -> Client:
    """Ann subscribes to the plan with ten calls a month."""
    client.post("/v1/customers", {"id": "ann", "name": "Ann"})
    client.post("/v1/subscriptions", {"id": "s", "customer": "ann", "plan": "pro"})
    client.edge.handler.must(client.tenant, ActivateSubscription(subscription_id=SubscriptionId("s")))
    return client


@pytest.fixture
def reservations(address: str, ann: Client) -> Iterator[ReservationClient]:
    with ReservationClient(address, api_key=ann.key) as made:
        yield made


def test_whoever_asks_at_once_never_gets_more_than_the_limit(address: str, ann: Client) -> None:
    chance = random.Random(3)
    wishes = [chance.randint(1, 4) for _ in range(96)]

    def wish(number: int) -> int:
        with ReservationClient(address, api_key=ann.key) as client:
            try:
                client.reserve("ann", "calls", wishes[number], key=f"k{number % 48}")
            except NotReserved:  # the limit; or the key, used for another quantity
                return 0
        return number + 1

    with ThreadPoolExecutor(24) as clients:
        got = list(clients.map(wish, range(len(wishes))))
    granted = {(number - 1) % 48: wishes[number - 1] for number in got if number}
    assert LIMIT - 3 <= sum(granted.values()) <= LIMIT

    async def one_by_one() -> int:
        async with AsyncReservationClient(address, api_key=ann.key) as client:
            return await granted_one_by_one(client)

    async def granted_one_by_one(client: AsyncReservationClient) -> int:
        done = await asyncio.gather(*(client.reserve("ann", "calls", 1) for _ in range(20)), return_exceptions=True)
        assert all(not isinstance(each, BaseException) or isinstance(each, LimitExceeded) for each in done)
        return sum(not isinstance(each, BaseException) for each in done)

    assert sum(granted.values()) + asyncio.run(one_by_one()) == LIMIT


def test_a_promise_is_made_committed_counted_and_free_again(reservations: ReservationClient, ann: Client) -> None:
    granted = reservations.reserve("ann", "calls", Decimal(9))
    assert (granted.remaining, granted.replayed, granted.reservation.state) == (1, False, "held")
    assert granted.reservation.expires_at - datetime.now(UTC) < timedelta(seconds=61)
    with pytest.raises(LimitExceeded, match="1 can be reserved") as refused:
        reservations.reserve("ann", "calls", 2)
    assert refused.value.code == "limit_exceeded"
    used = UsageEvent(type="call", customer="ann", time=datetime.now(UTC), id="e-1", source="test")
    for _ in range(2):
        committed = reservations.commit(granted.reservation.id, used)
        assert (committed.state, committed.source, committed.event_id) == ("committed", "test", "e-1")
    with pytest.raises(NotReserved, match="committed") as late:
        reservations.release(granted.reservation.id)
    assert late.value.code == "invalid_state"
    count(ann, "e-1")
    assert reservations.find(granted.reservation.id).state == "counted"
    assert reservations.reserve("ann", "calls", 9).remaining == 0, "the event was one call; the other eight are free"


def count(client: Client, id: str) -> None:
    log = Log(partition=client.edge.number())
    key = client.tenant.encode()
    log.append(control(meters=BOOK.meters, tenant=client.tenant), key=key)
    now = datetime.now(UTC)
    log.append(batch(event(id, now, type="call", customer="ann"), tenant=client.tenant), key=key, at=now)
    UsageStore(client.edge.workers, Home(1, log.partition), None).apply(Batch(log.records, 0))


def test_what_lapses_is_free_again(reservations: ReservationClient, ann: Client) -> None:
    held = reservations.reserve("ann", "calls", 10, ttl=timedelta(hours=2)).reservation
    assert held.expires_at - datetime.now(UTC) > timedelta(minutes=119)
    with postgres.transaction(ann.edge.workers) as tx:
        tx.execute("UPDATE app.reservation SET expires_at = now() WHERE reservation_id = %s", (held.id,))
    assert reservations.find(held.id).state == "expired"
    for _ in range(2):
        assert reservations.release(held.id).state == "expired"
    with pytest.raises(NotReserved, match="expired"):
        reservations.commit(held.id, "e-1", source="test")
    assert reservations.reserve("ann", "calls", 10).remaining == 0


def test_a_lost_answer_is_asked_for_again_under_its_key(
    reservations: ReservationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, lost = HttpCalls.call, [True]

    def loses_the_first_answer(self: HttpCalls, *args: Any, **more: Any) -> tuple[int, bytes, Message]:
        answer = call(self, *args, **more)
        if lost:
            lost.clear()
            raise NoAnswer("the answer was lost")
        return answer

    monkeypatch.setattr(HttpCalls, "call", loses_the_first_answer)
    with pytest.raises(OutcomeUnknown, match="lost"):
        reservations.reserve("ann", "calls", 7, key="order-7")
    again = reservations.reserve("ann", "calls", 7, key="order-7")
    assert (again.replayed, again.remaining) == (True, 3)
    with pytest.raises(NotReserved) as refused:
        reservations.reserve("ann", "calls", 6, key="order-7")
    assert refused.value.code == "idempotency_key_reused"
    assert reservations.release(again.reservation.id).state == "released"
    assert reservations.reserve("ann", "calls", 7).replayed is False, "without a key each wish is its own"


def test_what_cannot_be_answered_says_why(address: str, reservations: ReservationClient, ann: Client) -> None:
    cases: list[tuple[ReservationClient, str, type[Exception], str]] = [
        (reservations, "unheard-of", NotReserved, "not_granted"),
        (ReservationClient(address, api_key="tb_wrong"), "calls", NotReserved, "unauthorized"),
        (ReservationClient(NOBODY, api_key=ann.key), "calls", OutcomeUnknown, ""),
    ]
    for client, feature, kind, code in cases:
        with pytest.raises(kind) as refused:
            client.reserve("ann", feature, 1)
        assert getattr(refused.value, "code", "") == code
    with pytest.raises(TypeError, match="not exact"):
        reservations.reserve("ann", "calls", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source"):
        reservations.commit("rsv_1", "e-1")
    with pytest.raises(NotReserved) as unknown:
        reservations.find("rsv_none")
    assert unknown.value.code == "not_found"
    with pytest.raises(ValueError, match="no address"):
        ReservationClient("localhost", api_key="")


def test_asyncio_has_every_call(address: str, ann: Client) -> None:
    async def life() -> list[str]:
        async with AsyncReservationClient(address, api_key=ann.key) as client:
            return await lived(client)

    async def lived(client: AsyncReservationClient) -> list[str]:
        first, second = await asyncio.gather(client.reserve("ann", "calls", 4), client.reserve("ann", "calls", 5))
        states = [
            (await client.commit(first.reservation.id, "e-9", source="test")).state,
            (await client.release(second.reservation.id)).state,
            (await client.find(first.reservation.id)).state,
        ]
        with pytest.raises(LimitExceeded):
            await client.reserve("ann", "calls", 7)
        return states

    assert asyncio.run(life()) == ["committed", "released", "committed"]
