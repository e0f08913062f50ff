"""Real handlers on real Kafka: killed between two steps, stopped in the middle, doubled, moved. Totals stay exact."""

from __future__ import annotations

import random
import signal
from collections import Counter

import pytest

from billing.customer import AttachPaymentMethod, CreateCustomer, PaymentMethod, Provider
from billing.envelope import Outcome
from billing.ids import CustomerId
from infra.kafka import KafkaConfig, Producer, TransactionalProducer, end_offsets, partition_for
from services.log_check import check_log
from tests.handler.conftest import SELLER, Handlers
from tests.handler.memory_log import Cluster
from tests.stack import Stack
from tests.waiting import eventually

IN_EVERY_START = ("handler.after_fence", "handler.after_fold")
IN_EVERY_BATCH = (
    "handler.after_poll",
    "handler.after_begin",
    "handler.after_first_produce",
    "handler.after_send_offsets",
    "handler.before_commit",
    "handler.after_commit",
)
EVERY = [(name, 1) for name in IN_EVERY_START] + [(name, nth) for name in IN_EVERY_BATCH for nth in (1, 2, 3, 5, 8)]
DOZEN = random.Random(20261121).sample(EVERY[2:], 10) + EVERY[:2]


def customer(name: str) -> CreateCustomer:
    return CreateCustomer(customer_id=CustomerId(name))


def assert_exact(handlers: Handlers, tenant: str, names: list[str]) -> None:
    """Every customer was created once, every command answered, and the log is sound."""
    made = Counter(each.event.customer_id for each in handlers.events(tenant) if each.meta.type == "CustomerCreated")
    assert made == Counter(names)
    report = check_log(handlers.settings)
    assert report.faults == []
    assert report.events == len(handlers.events())


def kill_points() -> list[object]:
    soak = [pytest.param(*each, marks=pytest.mark.soak) for each in EVERY if each not in DOZEN]
    return [*DOZEN, *soak]


@pytest.mark.parametrize(("name", "nth"), kill_points())
def test_a_handler_killed_anywhere_answers_every_command_once(handlers: Handlers, name: str, nth: int) -> None:
    process = handlers.start(instance="one", TALLYBOOK_FAILPOINT=f"{name}=kill@{nth}")
    sent = [handlers.client.send("acme", SELLER, key="test:register", actor="test")]
    names = [f"c{n}" for n in range(40)]
    for each in names[:10]:
        if process.poll() is None and nth > 1:
            # One at a time, so that there are as many transactions as the failpoint waits for.
            sent.append(handlers.client.send("acme", customer(each), key=f"test:{each}", actor="test"))
            count = len(sent)
            eventually(lambda c=count: process.poll() is not None or len(handlers.results()) >= c)  # type: ignore[misc]
        else:
            sent.append(handlers.client.send("acme", customer(each), key=f"test:{each}", actor="test"))
    assert eventually(process.poll) == -signal.SIGKILL
    sent += [handlers.client.send("acme", customer(each), key=f"test:{each}", actor="test") for each in names[10:]]
    handlers.start(instance="one")
    eventually(lambda: {each.command_id for each in handlers.results()} >= set(sent))
    answered = Counter(each.command_id for each in handlers.results())
    assert answered == Counter(sent)
    assert {each.outcome for each in handlers.results()} == {Outcome.ACCEPTED}
    assert_exact(handlers, "acme", names)


def test_a_zombie_stopped_inside_its_transaction_is_fenced(handlers: Handlers) -> None:
    """SIGSTOP between produce and commit; another takes over and answers; SIGCONT: the zombie's commit must fail."""
    config = KafkaConfig.of(handlers.settings)
    zombie = handlers.start(TALLYBOOK_FAILPOINT="handler.before_commit=pause:12@2")
    handlers.ask("acme", SELLER, "test:register")
    handlers.client.send("acme", customer("c1"), key="test:c1", actor="test")

    def written_not_committed() -> bool:
        ends = [end_offsets(config, "billing.events", [0], each)[0] for each in ("read_uncommitted", "read_committed")]
        return ends[0] > ends[1]

    eventually(written_not_committed)
    zombie.send_signal(signal.SIGSTOP)
    handlers.start()
    taken_over = handlers.ask("acme", customer("c1"), "test:c1")
    assert taken_over.outcome is Outcome.ACCEPTED
    handlers.ask("acme", customer("c2"), "test:c2")
    zombie.send_signal(signal.SIGCONT)
    eventually(lambda: handlers.logged("partition taken over by another writer") or _dropped(handlers))
    handlers.ask("acme", customer("c3"), "test:c3")
    assert_exact(handlers, "acme", ["c1", "c2", "c3"])


def _dropped(handlers: Handlers) -> bool:
    return bool(handlers.logged("transaction dropped, its outcome is read back"))


def test_an_aborted_transaction_last_in_the_partition_does_not_stop_a_start(handlers: Handlers) -> None:
    first = handlers.start(instance="one")
    handlers.ask("acme", SELLER, "test:register")
    handlers.stack.stop(first)
    (real,) = handlers.records("billing.events")
    for topic in ("billing.events", "billing.commands"):
        producer = TransactionalProducer(KafkaConfig.of(handlers.settings), "somebody-else")
        producer.init()
        producer.begin()
        producer.send(topic, real.value or b"", key="acme", headers=real.headers, partition=0)
        producer.flush()
        producer.abort()
        producer.close()
    handlers.start(instance="one")
    handlers.ask("acme", customer("c1"), "test:c1")
    assert_exact(handlers, "acme", ["c1"])


def test_poison_in_the_middle_of_a_batch_is_set_aside_alone(handlers: Handlers) -> None:
    config = KafkaConfig.of(handlers.settings)
    client = handlers.client
    client.send("acme", SELLER, key="test:register", actor="test")
    client.send("acme", customer("c1"), key="test:c1", actor="test")
    good = handlers.records("billing.commands")[-1]
    producer = Producer(config)
    named = dict(good.headers) | {"ce_id": b"command-x"}
    for value in (b"rubbish", (good.value or b"") + b"\x00", (good.value or b"")[:-1]):
        producer.send("billing.commands", value, key="acme", headers=named, partition=0)
    producer.send("billing.commands", good.value or b"", key="globex", headers=named, partition=0)
    producer.send("billing.commands", _too_large_for_an_event(), key="acme", headers=named, partition=0)
    producer.flush()
    client.send("acme", customer("c2"), key="test:c2", actor="test")
    handlers.start()
    eventually(lambda: len(handlers.records("billing.quarantine")) == 5 and len(handlers.results()) == 7)
    kept = handlers.records("billing.quarantine")
    assert [each.headers["dlq-reason"].decode() for each in kept] == [
        "bad_magic",
        "trailing_bytes",
        "truncated",
        "key_mismatch",
        "record_too_large",
    ]
    assert kept[1].value == (good.value or b"") + b"\x00"
    assert [each.code for each in handlers.results()] == ["", "", "poison", "poison", "poison", "record_too_large", ""]
    assert_exact(handlers, "acme", ["c1", "c2"])


def _too_large_for_an_event() -> bytes:
    """A command that just fits its record, while the event with its longer meta does not."""
    cluster = Cluster()
    method = PaymentMethod(provider=Provider.SANDBOX, token="t" * 1_047_600)
    cluster.ask("acme", AttachPaymentMethod(customer_id=CustomerId("c1"), payment_method=method), "test:large")
    return cluster.topics["billing.commands"][0].value or b""


def test_partitions_move_between_handlers_while_commands_flow(stack: Stack) -> None:
    handlers = Handlers(stack, stack.fresh(billing_partitions=4, usage_partitions=1))
    try:
        tenants = [f"tenant-{n}" for n in range(8)]
        assert len({partition_for(each, 4) for each in tenants}) > 1
        first = handlers.start()
        for each in tenants:
            handlers.ask(each, SELLER, "test:register")
        sent = _send_to_all(handlers, tenants, 0)
        handlers.start()
        sent += _send_to_all(handlers, tenants, 1)
        eventually(lambda: len({len(each["partitions"]) for each in handlers.logged("partitions assigned")}) > 1)
        sent += _send_to_all(handlers, tenants, 2)
        first.send_signal(signal.SIGTERM)
        sent += _send_to_all(handlers, tenants, 3)
        assert first.wait(240) == 0
        eventually(lambda: {each.command_id for each in handlers.results()} >= set(sent))
        assert max(Counter(each.command_id for each in handlers.results()).values()) == 1
        for each in tenants:
            assert_exact(handlers, each, [f"c{n}" for n in range(120)])
    finally:
        handlers.close()


def _send_to_all(handlers: Handlers, tenants: list[str], batch: int) -> list[str]:
    return [
        handlers.client.send(tenant, customer(f"c{n}"), key=f"test:c{n}", actor="test")
        for n in range(30 * batch, 30 * batch + 30)
        for tenant in tenants
    ]


def test_a_log_that_contradicts_itself_stops_the_handler_with_70(handlers: Handlers) -> None:
    first = handlers.start(instance="one")
    handlers.ask("acme", SELLER, "test:register")
    assert handlers.stack.stop(first) == 0
    (real,) = handlers.records("billing.events")
    producer = Producer(KafkaConfig.of(handlers.settings))
    producer.send("billing.events", real.value or b"", key="acme", headers=real.headers, partition=0)
    producer.flush()
    second = handlers.start(instance="one")
    assert eventually(second.poll) == 70
    assert "event 1 after 1" in handlers.logged("the log contradicts itself; nothing can be decided on it")[0]["reason"]
    assert "event 1 after 1" in [each.what for each in check_log(handlers.settings).faults]
