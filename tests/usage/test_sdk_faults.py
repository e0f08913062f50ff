"""Forks, full buffers, brokers that are away, limits: each ends in a clear answer for every event."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import aiokafka.partitioner
import confluent_kafka as rd
import pytest

from infra.kafka import KafkaConfig, partition_for, scan
from infra.settings import Settings
from schemas.codec import decode_usage
from services.supervisor import read_state
from tallybook_sdk import (
    AsyncUsageProducer,
    BufferFull,
    Delivery,
    InvalidEvent,
    NotDelivered,
    SpoolUnusable,
    Unreachable,
    UsageProducer,
    new_id,
)
from tallybook_sdk.transport import SAFE
from tests.stack import Stack
from tests.usage.test_sdk import GOOD, NOBODY
from tests.waiting import eventually

QUIET = {"log_level": 0}


@pytest.fixture(scope="module")
def alone(stack: Stack) -> Settings:
    return stack.fresh(usage_partitions=12)


def sent_by(settings: Settings, tenant: str) -> Counter[str]:
    """Id -> how often it lies in the log; asked again while a topic that was just made has no leaders yet."""
    return eventually(lambda: _found(settings, tenant))


def _found(settings: Settings, tenant: str) -> Counter[str]:
    found: Counter[str] = Counter()
    starts = dict.fromkeys(range(settings.usage_partitions), 0)
    for records in scan(KafkaConfig.of(settings), "usage.events", starts):
        for content in (decode_usage(record.value) for record in records if record.key == tenant.encode()):
            found.update(event.id for event in content.events)  # type: ignore[union-attr]
    return found


def test_ids_are_unique_and_in_order_of_time() -> None:
    made = [UUID(new_id()) for _ in range(50_000)]
    assert len(set(made)) == len(made)
    assert made == sorted(made)
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}


def test_the_child_of_a_fork_sends_its_own_and_not_its_parents(alone: Settings) -> None:
    producer = UsageProducer(
        alone.kafka, "t-fork", source="s", topic_prefix=alone.topic_prefix, linger=timedelta(hours=1), batch_events=10
    )
    ids = [new_id()]
    for number in range(15):  # ten are sealed, five wait in the buffer
        producer.send(replace(GOOD, id=f"parent-{number}"))
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number in range(7):
                producer.send(replace(GOOD, id=f"child-{number}"))
            producer.close()
            os.write(sending, new_id().encode())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    ids.append(os.read(receiving, 100).decode())
    producer.close()
    expected = [f"parent-{number}" for number in range(15)] + [f"child-{number}" for number in range(7)]
    assert sent_by(alone, "t-fork") == Counter(expected)
    assert ids[0][-12:] != ids[1][-12:], "the child draws its own random bits"


def test_a_fork_while_threads_send_loses_and_doubles_nothing(alone: Settings) -> None:
    producer = UsageProducer(
        alone.kafka, "t-threads", source="s", topic_prefix=alone.topic_prefix, buffer_events=1000, kafka=QUIET
    )
    stop = threading.Event()
    counts = [0, 0]

    def work(me: int) -> None:
        while not stop.is_set():
            producer.send(replace(GOOD, id=f"{me}-{counts[me]}"))
            counts[me] += 1

    threads = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for number in range(3):
        eventually(lambda: min(counts) > 0)
        child = os.fork()
        if child == 0:
            try:
                producer.send(replace(GOOD, id=f"child-{number}"))
                producer.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    producer.close()
    expected = [f"{me}-{number}" for me in (0, 1) for number in range(counts[me])] + [f"child-{n}" for n in range(3)]
    assert sent_by(alone, "t-threads") == Counter(expected)


def test_a_spool_is_not_inherited(tmp_path: Path) -> None:
    producer = UsageProducer(NOBODY, "acme", source="s", spool=tmp_path, kafka=QUIET)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            producer.send(GOOD)
        except SpoolUnusable:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    producer.send(GOOD)
    with pytest.raises(NotDelivered):
        producer.close(timedelta(0))


def test_a_full_buffer_raises_if_told_so() -> None:
    producer = UsageProducer(NOBODY, "a", source="s", buffer_events=3, batch_events=2, when_full="raise", kafka=QUIET)
    for number in range(3):
        producer.send(replace(GOOD, id=str(number)))
    with pytest.raises(BufferFull, match="3 events are under way"):
        producer.send(replace(GOOD, id="3"))
    assert not producer.wait_for_room(timedelta(milliseconds=1))
    with pytest.raises(NotDelivered, match="3 events not delivered: no answer in time") as failed:
        producer.close(timedelta(0))
    assert [each.id for each in failed.value.under_way] == ["0", "1", "2"]


def test_a_full_buffer_waits_for_room() -> None:
    quick = {"delivery.timeout.ms": 300, **QUIET}
    reports: list[Delivery] = []
    producer = UsageProducer(
        NOBODY, "a", source="s", buffer_events=2, batch_events=2, kafka=quick, on_delivery=reports.append
    )
    for number in range(5):
        producer.send(replace(GOOD, id=str(number)))
    assert len(reports) >= 2, "the third had to wait for the answer to the first two"
    producer.close()
    assert [each.event.id for each in reports] == ["0", "1", "2", "3", "4"]
    assert all(each.error and "_MSG_TIMED_OUT" in each.error for each in reports)


def test_failures_that_nobody_asks_for_do_not_pile_up() -> None:
    quick = {"delivery.timeout.ms": 100, **QUIET}
    producer = UsageProducer(NOBODY, "a", source="s", buffer_events=2, batch_events=2, kafka=quick)
    producer.send(GOOD)
    producer.send(replace(GOOD, id="2"))
    with pytest.raises(NotDelivered) as failed:
        producer.send(replace(GOOD, id="3"))
    assert [each.event.id for each in failed.value.failures] == ["1", "2"]
    producer.send(replace(GOOD, id="3"))
    with pytest.raises(NotDelivered):
        producer.close()


def test_a_report_that_raises_keeps_no_other_from_its_own(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[Delivery] = []

    def broken(_: Delivery) -> None:
        raise KeyError("mine")

    producer = UsageProducer(NOBODY, "a", source="s", kafka={"delivery.timeout.ms": 100, **QUIET})
    with caplog.at_level(logging.ERROR):
        producer.send(GOOD, broken)
        producer.send(replace(GOOD, id="2"), reports.append)
        producer.close()
    assert [each.event.id for each in reports] == ["2"]
    assert "a delivery report raised" in caplog.text


def test_what_is_not_closed_is_sent_or_named_at_the_end_of_the_process(alone: Settings) -> None:
    program = (
        "import sys; from datetime import UTC, datetime; from tallybook_sdk import *\n"
        "usage = UsageProducer(sys.argv[1], 't-exit', source='s', topic_prefix=sys.argv[2])\n"
        "usage.send(UsageEvent(type='api', customer='c1', time=datetime.now(UTC), id='1'))\n"
    )
    command = [sys.executable, "-c", program, alone.kafka, alone.topic_prefix]
    subprocess.run(command, check=True, timeout=240)
    assert sent_by(alone, "t-exit") == Counter(["1"])


def test_an_event_larger_than_any_record_is_refused_at_once() -> None:
    wide = replace(GOOD, properties={f"p{number}": "x" * 256 for number in range(4000)})
    producer = UsageProducer(NOBODY, "a", source="s", kafka=QUIET)
    with pytest.raises(InvalidEvent, match="allowed are 900000"):
        producer.send(wide)
    producer.close()


def test_a_batch_larger_than_the_brokers_take_goes_in_parts(alone: Settings) -> None:
    tight = {"message.max.bytes": 2000}
    reports: list[Delivery] = []
    with UsageProducer(
        alone.kafka, "t-tight", source="s", topic_prefix=alone.topic_prefix, kafka=tight, on_delivery=reports.append
    ) as producer:
        for number in range(100):
            producer.send(replace(GOOD, id=str(number), properties={"p": "x" * 100}))
        producer.send(replace(GOOD, id="big", properties={f"p{number}": "x" * 256 for number in range(20)}))
    failed = {each.event.id: each.error for each in reports if each.error}
    assert list(failed) == ["big"]
    assert "MSG_SIZE_TOO_LARGE" in str(failed["big"])
    assert sent_by(alone, "t-tight") == Counter(map(str, range(100)))


def test_an_unknown_topic_is_named(alone: Settings) -> None:
    quick = {"topic.metadata.propagation.max.ms": 200, **QUIET}
    producer = UsageProducer(alone.kafka, "acme", source="s", topic_prefix="nowhere.", kafka=quick)
    with pytest.raises(Unreachable, match=r"topic nowhere\.usage\.events: .*[Uu]nknown topic"):
        producer.check()
    producer.send(GOOD)
    with pytest.raises(NotDelivered, match=r"topic nowhere\.usage\.events: .*[Uu]nknown topic"):
        producer.close()


def test_asyncio_sends_waits_and_tells(alone: Settings) -> None:
    async def work() -> list[Delivery]:
        async with AsyncUsageProducer(
            alone.kafka, "t-async", source="s", topic_prefix=alone.topic_prefix, buffer_events=20, batch_events=10
        ) as usage:
            await usage.check()
            for number in range(100):
                await usage.send(replace(GOOD, id=str(number)))
            return await asyncio.gather(*(usage.deliver(replace(GOOD, id=f"d{number}")) for number in range(50)))

    deliveries = asyncio.run(work())
    assert [each.event.id for each in deliveries] == [f"d{number}" for number in range(50)]
    assert all(each.error is None and each.offset >= 0 for each in deliveries)
    assert sent_by(alone, "t-async") == Counter([*map(str, range(100)), *(f"d{number}" for number in range(50))])


def test_asyncio_names_what_was_not_delivered() -> None:
    async def work() -> None:
        async with AsyncUsageProducer(NOBODY, "a", source="s", kafka={"delivery.timeout.ms": 100, **QUIET}) as usage:
            with pytest.raises(NotDelivered, match="_MSG_TIMED_OUT"):
                await usage.deliver(GOOD)

    asyncio.run(work())


def test_a_thousand_tenants_lie_where_java_would_put_them(alone: Settings) -> None:
    tenants = [f"tenant-{number}-{'é' * (number % 5)}" for number in range(1000)]
    placed: dict[str, int] = {}

    def report(_: object, message: rd.Message) -> None:
        placed[(message.key() or b"").decode()] = message.partition() or 0

    producer = rd.Producer({"bootstrap.servers": alone.kafka, **SAFE})
    for tenant in tenants:
        producer.produce(f"{alone.topic_prefix}usage.events", b"x", tenant.encode(), on_delivery=report)
    producer.flush(30)
    partitions = list(range(12))
    java = aiokafka.partitioner.DefaultPartitioner()  # Java's murmur2, as aiokafka and Faust have it
    assert placed == {each: java(each.encode(), partitions, partitions) for each in tenants}
    assert placed == {each: partition_for(each, 12) for each in tenants}
    assert len(set(placed.values())) == 12


def test_a_broker_that_is_killed_in_the_middle_costs_no_event(stack: Stack, alone: Settings) -> None:
    if stack.kind != "embedded":
        pytest.skip("somebody else's broker is not killed")

    def broker() -> dict[str, object]:
        kafka: dict[str, object] = read_state(stack.data)["processes"]["kafka"]
        return kafka

    reports: list[Delivery] = []
    first = broker()["pid"]
    with UsageProducer(
        alone.kafka,
        "t-restart",
        source="s",
        topic_prefix=alone.topic_prefix,
        on_delivery=reports.append,
        batch_events=10,
        kafka=QUIET,
    ) as producer:
        for number in range(200):
            producer.send(replace(GOOD, id=str(number)))
            if number == 100:
                os.kill(int(str(first)), signal.SIGKILL)
        eventually(lambda: broker()["pid"] not in (None, first) and broker()["state"] == "healthy")
        for number in range(200, 300):
            producer.send(replace(GOOD, id=str(number)))
    assert [each.error for each in reports] == [None] * 300
    assert sent_by(alone, "t-restart").keys() == set(map(str, range(300)))


def test_a_broker_that_comes_late_gets_what_waited(stack: Stack, alone: Settings) -> None:
    """The first events are sent while nobody listens; a relay to the broker starts afterwards."""
    if stack.kind != "embedded":
        pytest.skip("the relay needs a broker that answers under its own address")
    host, _, port = alone.kafka.partition(":")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        free = place.getsockname()[1]
    reports: list[Delivery] = []
    with UsageProducer(
        f"127.0.0.1:{free}",
        "t-late",
        source="s",
        topic_prefix=alone.topic_prefix,
        on_delivery=reports.append,
        kafka={"reconnect.backoff.max.ms": 200, **QUIET},
    ) as producer:
        with pytest.raises(Unreachable):
            producer.check(timedelta(milliseconds=200))
        producer.send(GOOD)
        assert reports == []
        with relay(free, (host, int(port))):
            eventually(lambda: reports)
    assert sent_by(alone, "t-late") == Counter(["1"])


@contextmanager
def relay(port: int, to: tuple[str, int]) -> Iterator[None]:
    """Whoever connects to `port` talks to `to`."""
    listening = socket.create_server(("127.0.0.1", port))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                here, _ = listening.accept()
                there = socket.create_connection(to)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listening.close()
