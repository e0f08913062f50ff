"""The aggregator as a process on real Kafka: killed between durable steps, fed with what nobody should send."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import confluent_kafka
import pytest

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import RejectedUsage
from billing.period import Period
from billing.tenant import UsageBounds
from infra import postgres
from infra.kafka import KafkaConfig, TransactionalProducer, end_offsets, headers, partition_for, scan
from projections import generation, usage, usage_read
from schemas.codec import decode_rejected, encode_usage, fingerprint_of
from services.reconcile import reconcile
from tallybook_sdk import UsageEvent, UsageProducer
from tests.stack import Stack
from tests.usage.making import BYTES, CALLS, NOON, batch, control, event
from tests.waiting import eventually

PARTITIONS = 3
FAILPOINTS = ("usage.after_poll", "usage.after_copy", "usage.before_commit", "usage.after_commit")
MOVED_WITHIN_S = 15
"""The promise: a killed worker's session of 8 s, the rebalance, and reading on (decision 50)."""


@dataclass
class Worker:
    """An aggregator whose log is its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text()

    def assigned(self) -> list[str]:
        """What it said last that it reads."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        begun = [list(line["starts"]) for line in lines if line["event"] == "reading begins"]
        return begun[-1] if begun else []


class Aggregators:
    """Aggregators on topics of their own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.settings = stack.fresh(usage_partitions=PARTITIONS, billing_partitions=1)
        self.config = KafkaConfig.of(self.settings)
        self.pool = postgres.worker_pool(self.settings)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        process = self.stack.start("usage-aggregator", self.settings, **env)
        self.processes.append(process)
        return process

    def worker(self, name: str) -> Worker:
        """One of many, by the name of its instance; empty: without one."""
        own = self.settings.model_copy(update={"data": self.settings.data / f"worker{len(self.processes)}"})
        process = self.stack.start("usage-aggregator", own, TALLYBOOK_INSTANCE=name)
        self.processes.append(process)
        return Worker(name, process, own.data / "logs" / "usage-aggregator.log")

    def tenants(self) -> list[str]:
        """One tenant for each partition."""
        found: dict[int, str] = {}
        for number in range(1000):
            found.setdefault(partition_for(f"t{number}", PARTITIONS), f"t{number}")
        return [found[each] for each in range(PARTITIONS)]

    def register(self, *tenants: str) -> None:
        """A control record into every partition."""
        producer = confluent_kafka.Producer(self.config.client())
        for tenant in tenants:
            made = control(tenant=tenant, bounds=UsageBounds(oldest_days=4000, ahead_minutes=10_000_000))
            for partition in range(PARTITIONS):
                self.produce(producer, tenant, encode_usage(made), partition)
        assert producer.flush(120) == 0

    def produce(
        self, producer: confluent_kafka.Producer, tenant: str, value: bytes | None, partition: int | None = None
    ) -> None:
        """A record as any Kafka client could send it."""
        producer.produce(
            self.config.named(usage.TOPIC),
            value,
            tenant.encode(),
            partition_for(tenant, PARTITIONS) if partition is None else partition,
            headers=[("tenant", tenant.encode())],
        )

    def fates(self) -> dict[str, usage_read.FateCounts]:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            return usage_read.fates(tx)

    def is_caught_up(self) -> bool:
        ends = end_offsets(self.config, usage.TOPIC, range(PARTITIONS))
        with postgres.transaction(self.pool) as tx:
            stored = generation.checkpoints(tx, usage.SET, generation.current(tx, usage.SET), usage.TOPIC)
        return all(stored.get(partition, 0) >= end for partition, end in ends.items())

    def total(self, tenant: str, customer: str = "c1") -> tuple[int, int]:
        """Events counted, and the sum of their bytes."""
        positions = tuple(PartitionPosition(partition=each, offset=10**9) for each in range(PARTITIONS))
        needs = [Need(each, Period(NOON, NOON + timedelta(days=1)), positions) for each in (CALLS, BYTES)]
        with postgres.transaction(self.pool) as tx:
            generation.enter_all(tx)
            measured = usage_read.quantities(tx, TenantId(tenant), CustomerId(customer), needs)
        return int(measured[needs[0]].total), int(measured[needs[1]].total)

    def rejected(self) -> dict[str, RejectedUsage]:
        """What is on `usage.rejected`, by `ce_id`: a repetition has the same."""
        found: dict[str, RejectedUsage] = {}
        for records in scan(self.config, "usage.rejected", dict.fromkeys(range(PARTITIONS), 0)):
            for record in records:
                found[record.headers["ce_id"].decode()] = decode_rejected(record.value)
        return found


@pytest.fixture
def aggregators(stack: Stack) -> Iterator[Aggregators]:
    made = Aggregators(stack)
    yield made
    for each in made.processes:
        if each.poll() is None:
            stack.stop(each)
    made.pool.close()


def sdk_event(number: int) -> UsageEvent:
    return UsageEvent(
        id=str(number),
        type="api",
        customer="c1",
        time=NOON + timedelta(seconds=number),
        properties={"bytes": number, "region": f"r{number % 3}", "user": f"u{number % 7}"},
        source="sdk",
    )


def test_totals_are_exact_after_a_kill_at_every_step(aggregators: Aggregators) -> None:
    tenants = aggregators.tenants()
    aggregators.register(*tenants)
    spec = ",".join(f"{name}=kill@{2 + place % 2}" for place, name in enumerate(FAILPOINTS))
    own = {"TALLYBOOK_FAILPOINT": spec, "TALLYBOOK_INSTANCE": "one"}
    process = aggregators.start(**own)
    kills, sent = 0, 0

    def send(count: int) -> int:
        for tenant in tenants:
            with UsageProducer(
                aggregators.settings.kafka,
                tenant,
                batch_events=20,
                topic_prefix=aggregators.settings.topic_prefix,
            ) as producer:
                for number in [*range(sent, sent + count), *range(max(sent - 30, 0), sent)]:
                    producer.send(sdk_event(number))
        return sent + count

    def moved_on() -> bool:
        nonlocal process, kills
        code = process.poll()
        if code is not None:
            assert code == -signal.SIGKILL
            kills += 1
            process = aggregators.start(**own)
        return aggregators.is_caught_up()

    for _ in range(12):
        sent = send(100)
        eventually(moved_on)
        if kills == len(FAILPOINTS):
            break
    assert kills == len(FAILPOINTS)
    for tenant in tenants:
        assert aggregators.total(tenant) == (sent, sent * (sent - 1) // 2)
        counts = aggregators.fates()[tenant]
        assert counts.counted == sent
        assert counts.duplicate == counts.received - sent > 0
    report = reconcile(aggregators.settings)
    assert [each.differences for each in report.tenants] == [[]] * PARTITIONS
    fates = aggregators.fates()
    assert {each.tenant: each.received for each in report.tenants} == {name: fates[name].received for name in tenants}


def test_bad_records_go_to_usage_rejected_and_nothing_else_is_lost(aggregators: Aggregators) -> None:
    tenant = aggregators.tenants()[0]
    aggregators.register(tenant)
    producer = confluent_kafka.Producer(aggregators.config.client())
    good = encode_usage(batch(event("1"), event("2"), tenant=tenant))
    bad: dict[str, bytes | None] = {
        "null_value": None,
        "bad_framing": b"\xc3",
        "bad_magic": b"\x01 is no framing",
        "corrupt_json": b"{'id': 1}",
        "unknown_schema": b"\xc3\x01" + bytes(8) + b"x",
        "truncated": good[:-2],
        "trailing_bytes": good + b"more",
    }
    for value in bad.values():
        aggregators.produce(producer, tenant, value)
    aggregators.produce(producer, tenant, good)
    mixed = batch(event("3", bytes="-1"), event("4"), event("5", type="unheard"), event("1", bytes="9"), tenant=tenant)
    aggregators.produce(producer, tenant, encode_usage(mixed))
    aggregators.produce(producer, "nobody", encode_usage(batch(event("1"), tenant="nobody")))
    aggregators.produce(producer, tenant, encode_usage(batch(event("6"), tenant=tenant)), 1)
    assert producer.flush(120) == 0
    process = aggregators.start()
    eventually(aggregators.is_caught_up)
    refused = aggregators.rejected()
    found = Counter(each.reason for each in refused.values())
    assert found == Counter([*bad, "out_of_range", "unknown_meter", "id_conflict", "unknown_tenant", "key_mismatch"]), (
        found
    )
    by_reason = {each.reason: each for each in refused.values()}
    for reason, value in bad.items():
        assert by_reason[reason].original == (value or b"")
        assert by_reason[reason].tenant is None
    assert by_reason["out_of_range"].field == "events[0].properties.bytes"
    assert (by_reason["unknown_meter"].source, by_reason["unknown_meter"].id) == ("test", "5")
    assert aggregators.total(tenant) == (3, 3)
    assert aggregators.fates()[tenant] == usage_read.FateCounts(7, 3, 0, 1, 3)
    assert aggregators.fates()[""].rejected == len(bad)
    assert reconcile(aggregators.settings).balanced
    assert aggregators.stack.stop(process) == 0


def test_usage_of_an_aborted_transaction_never_counts(aggregators: Aggregators) -> None:
    tenant = aggregators.tenants()[0]
    aggregators.register(tenant)
    for number, commits in enumerate((True, False, True, False)):
        producer = TransactionalProducer(aggregators.config, "usage-writer")
        producer.init()
        producer.begin()
        value = encode_usage(batch(event(str(number), bytes=str(10**number)), tenant=tenant))
        named = headers(id="1", type="x", source="x", time=NOON, schema=fingerprint_of(value), tenant=tenant)
        producer.send(usage.TOPIC, value, key=tenant, headers=named, partition=0)
        producer.flush()
        if commits:
            producer.commit()
        else:
            producer.abort()
        producer.close()
    first = aggregators.start()
    eventually(lambda: aggregators.total(tenant) == (2, 101))
    # The partition ends with an aborted transaction, and yet a cut at its end is passed.
    eventually(aggregators.is_caught_up)
    assert aggregators.stack.stop(first) == 0
    plain = confluent_kafka.Producer(aggregators.config.client())
    aggregators.produce(plain, tenant, encode_usage(batch(event("last", bytes="7"), tenant=tenant)))
    assert plain.flush(120) == 0
    aggregators.start()
    eventually(lambda: aggregators.total(tenant) == (3, 108))


def test_two_workers_share_the_partitions_and_a_killed_ones_move(aggregators: Aggregators) -> None:
    tenants = aggregators.tenants()
    aggregators.register(*tenants)
    workers = [aggregators.start(), aggregators.start()]
    producer = confluent_kafka.Producer(aggregators.config.client())

    def send(first: int) -> None:
        for tenant in tenants:
            for number in range(first, first + 50):
                value = encode_usage(batch(event(str(number), NOON + timedelta(seconds=number)), tenant=tenant))
                aggregators.produce(producer, tenant, value)
        assert producer.flush(120) == 0

    send(0)
    eventually(aggregators.is_caught_up)
    send(40)
    workers[0].kill()
    workers[0].wait()
    send(80)
    eventually(lambda: all(aggregators.total(each)[0] == 130 for each in tenants))
    assert sum(each.duplicate for each in aggregators.fates().values()) == 20 * PARTITIONS
    assert reconcile(aggregators.settings).balanced


def test_logs_are_json_lines(aggregators: Aggregators) -> None:
    process = aggregators.start()
    log = aggregators.settings.data / "logs" / "usage-aggregator.log"
    eventually(lambda: "reading begins" in log.read_text())
    assert aggregators.stack.stop(process) == 0
    assert all(json.loads(line)["at"] for line in log.read_text().splitlines() if line.startswith("{"))


@pytest.mark.parametrize("names", [("one", "two"), ("", "")], ids=["named", "nameless"])
def test_a_killed_workers_partitions_move_within_15_seconds(aggregators: Aggregators, names: tuple[str, str]) -> None:
    tenants = aggregators.tenants()
    aggregators.register(*tenants)
    workers = [aggregators.worker(name) for name in names]

    def send(number: int) -> None:
        producer = confluent_kafka.Producer(aggregators.config.client())
        for tenant in tenants:
            aggregators.produce(producer, tenant, encode_usage(batch(event(str(number)), tenant=tenant)))
        assert producer.flush(120) == 0

    def is_shared() -> bool:
        shares = sorted(len(each.assigned()) for each in workers)
        assert shares == [1, 2], "\n".join(f"{each.process.poll()} {each.said()}" for each in workers)
        return True

    sent = 0

    def moved_in_time() -> bool:
        nonlocal sent
        eventually(is_shared)
        send(sent)
        eventually(aggregators.is_caught_up)
        killed = workers.pop(0)
        killed.process.kill()
        began = time.monotonic()
        send(sent + 1)
        eventually(aggregators.is_caught_up)
        took = time.monotonic() - began
        sent += 2
        workers.append(aggregators.worker(killed.name))
        return took < MOVED_WITHIN_S

    assert any(moved_in_time() for _ in range(3))  # others share the machine: one quiet round will do
    assert all(aggregators.fates()[tenant].counted == sent for tenant in tenants)
