"""Asking: every caller gets its own result, and a timeout says that the outcome is unknown."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from billing.customer import AttachPaymentMethod, CreateCustomer, PaymentMethod, Provider
from billing.envelope import Outcome
from billing.errors import Rejected
from billing.ids import CustomerId
from infra.errors import Transient
from infra.kafka import partition_for
from schemas.errors import EncodeError
from services.commands import CommandClient
from tests.handler.conftest import SELLER, Handlers
from tests.stack import Stack
from tests.waiting import eventually


def customer(name: str) -> CreateCustomer:
    return CreateCustomer(customer_id=CustomerId(name))


def test_the_position_on_the_results_is_taken_before_the_command_is_appended(handlers: Handlers) -> None:
    """The very first request of a client is answered, though the handler answers at once."""
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")
    for n in range(5):
        with CommandClient(handlers.settings) as client:
            result = client.request("acme", customer(f"c{n}"), key=f"test:c{n}", actor="test", timeout=120)
            assert result.outcome is Outcome.ACCEPTED


def test_many_threads_get_each_their_own_result(handlers: Handlers) -> None:
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")

    def ask(n: int) -> str:
        result = handlers.client.request("acme", customer(f"c{n}"), key=f"test:c{n}", actor="test", timeout=120)
        return result.aggregate_ids[0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == [f"customer:c{n}" for n in range(200)]


def test_asyncio_callers_wait_without_holding_the_loop(handlers: Handlers) -> None:
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")

    async def ask_all() -> list[str]:
        results = await asyncio.gather(
            *(
                handlers.client.request_async("acme", customer(f"c{n}"), key=f"test:c{n}", actor="test", timeout=120)
                for n in range(100)
            )
        )
        return [each.aggregate_ids[0] for each in results]

    assert asyncio.run(ask_all()) == [f"customer:c{n}" for n in range(100)]


def test_a_timeout_is_no_answer_and_the_same_key_finds_it_later(handlers: Handlers) -> None:
    handlers.client.listen(60)
    with pytest.raises(Transient, match="outcome is unknown"):
        handlers.client.request("acme", SELLER, key="test:register", actor="test", timeout=0.5)
    with pytest.raises(Transient, match="outcome is unknown"):
        asyncio.run(handlers.client.request_async("acme", SELLER, key="test:register", actor="test", timeout=0.5))
    handlers.start()
    found = handlers.ask("acme", SELLER, "test:register")
    assert (found.outcome, found.first_sequence) == (Outcome.ACCEPTED, 1)
    assert len(handlers.events("acme")) == 1


def test_a_handler_that_comes_back_answers_who_still_waits(handlers: Handlers) -> None:
    first = handlers.start(instance="one")
    handlers.ask("acme", SELLER, "test:register")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handlers.client.request, "acme", customer("c1"), key="test:c1", actor="t", timeout=120)
        handlers.start(instance="one")
        assert waiting.result(120).outcome is Outcome.ACCEPTED


def test_closing_a_client_ends_every_wait(handlers: Handlers) -> None:
    client = CommandClient(handlers.settings)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.request, "acme", SELLER, key="test:register", actor="test", timeout=60)
        eventually(lambda: handlers.records("billing.commands"))
        client.close()
        with pytest.raises(Transient, match="closed"):
            waiting.result(120)
    with pytest.raises(Transient, match="closed"):
        client.send("acme", SELLER, key="test:register", actor="test")


def test_what_no_log_could_hold_is_refused_before_it_is_sent(handlers: Handlers) -> None:
    client = handlers.client
    large = PaymentMethod(provider=Provider.SANDBOX, token="t" * 1_100_000)
    with pytest.raises(Rejected, match="bytes where a command has at most"):
        client.send(
            "acme", AttachPaymentMethod(customer_id=CustomerId("c1"), payment_method=large), key="k", actor="test"
        )
    with pytest.raises(EncodeError, match="surrogate"):
        client.send("acme", customer("\ud800"), key="k", actor="test")
    for key in ("", "k" * 256, "a\nb"):
        with pytest.raises(Rejected, match="printable"):
            client.request("acme", SELLER, key=key, actor="test")
    assert handlers.records("billing.commands") == []


def test_a_cluster_that_cannot_be_reached_is_transient(handlers: Handlers) -> None:
    nowhere = handlers.settings.model_copy(update={"kafka": "127.0.0.1:1"})
    client = CommandClient(nowhere)
    began = time.monotonic()
    with pytest.raises(Transient):
        client.request("acme", SELLER, key="test:register", actor="test", timeout=1)
    assert time.monotonic() - began < 25


def test_a_command_lies_in_its_tenants_partition_with_its_headers(stack: Stack) -> None:
    handlers = Handlers(stack, stack.fresh(billing_partitions=4, usage_partitions=1))
    try:
        for n in range(6):
            handlers.client.send(f"tenant-{n}", SELLER, key="api:1", actor="test", traceparent="00-abc-def-01")
        records = handlers.records("billing.commands")
        assert {each.partition for each in records} == {partition_for(f"tenant-{n}", 4) for n in range(6)}
        for each in records:
            named = {name: value.decode() for name, value in each.headers.items()}
            assert (named["tenant"], named["ce_type"]) == (
                (each.key or b"").decode(),
                "tallybook.commands.RegisterTenant",
            )
            assert (named["ce_source"], named["ce_specversion"]) == ("tallybook/api", "1.0")
            assert named["traceparent"] == "00-abc-def-01"
            assert len(named["schema"]) == 16
    finally:
        handlers.close()
