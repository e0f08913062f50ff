"""Workers that freeze on real Kafka: the frozen one ends, and is started again."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import confluent_kafka
import pytest

from infra.local.children import Child, Program
from infra.settings import Settings
from infra.watchdog import STALLED
from schemas.codec import encode_usage
from tests.handler.conftest import SELLER, Handlers
from tests.stack import Stack
from tests.usage.making import NOON, batch, event
from tests.usage.test_aggregator import Aggregators
from tests.waiting import eventually


@pytest.fixture
def aggregators(stack: Stack) -> Iterator[Aggregators]:
    made = Aggregators(stack)
    yield made
    for each in made.processes:
        if each.poll() is None:
            stack.stop(each)
    made.pool.close()


Supervise = Callable[..., Child]


@pytest.fixture
def supervised(stack: Stack, tmp_path: Path) -> Iterator[Supervise]:
    """Runs a process as the supervisor does."""
    children: list[Child] = []

    def run(name: str, settings: Settings, **env: str) -> Child:
        own = stack.environment(settings, TALLYBOOK_STALL_TIMEOUT="4s", TALLYBOOK_INSTANCE="one", **env)
        command = (sys.executable, "-m", "services.cli", "run", name)
        children.append(Child(Program(name=name, command=command, stage=0, env=own), tmp_path / f"{name}.log"))
        children[-1].prepare(lambda _: None)
        return children[-1]

    yield run
    for each in children:
        each.ask_to_stop()
        each.wait_stopped(time.monotonic() + 15)


def tended(child: Child, *, restarts: int) -> bool:
    child.tend(time.monotonic())
    return child.restarts >= restarts


def send(aggregators: Aggregators, numbers: range) -> None:
    producer = confluent_kafka.Producer(aggregators.config.client())
    for tenant in aggregators.tenants():
        for number in numbers:
            value = encode_usage(batch(event(str(number), NOON + timedelta(seconds=number)), tenant=tenant))
            aggregators.produce(producer, tenant, value)
    assert producer.flush(120) == 0


def test_a_frozen_agent_is_ended_started_again_and_loses_nothing(
    aggregators: Aggregators, supervised: Supervise
) -> None:
    aggregators.register(*aggregators.tenants())
    send(aggregators, range(50))
    child = supervised("usage-aggregator", aggregators.settings, TALLYBOOK_FAILPOINT="usage.after_poll=pause:600@2")
    eventually(lambda: tended(child, restarts=1))
    assert child.last_exit == STALLED
    assert re.fullmatch(r"usage\.events/\d@\d+", child.stuck_at)
    send(aggregators, range(50, 100))
    eventually(lambda: all(aggregators.total(each)[0] == 100 for each in aggregators.tenants()))
    assert child.restarts == 1


def test_a_frozen_writer_of_commands_is_ended_and_every_command_is_answered(
    stack: Stack, supervised: Supervise
) -> None:
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    handlers = Handlers(stack, settings)
    child = supervised("command-handler", settings, TALLYBOOK_FAILPOINT="handler.after_begin=pause:600")
    sent = handlers.client.send("acme", SELLER, key="test:register", actor="test")
    eventually(lambda: tended(child, restarts=1))
    assert (child.last_exit, child.stuck_at) == (STALLED, "billing.commands/0@0")
    eventually(lambda: [each.command_id for each in handlers.results()] == [sent])
    handlers.client.close()


def test_a_frozen_reader_of_events_is_ended_and_reads_on(stack: Stack, supervised: Supervise) -> None:
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    handlers = Handlers(stack, settings)
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")
    child = supervised("meters", settings, TALLYBOOK_FAILPOINT="meters.before_commit=pause:600")
    eventually(lambda: tended(child, restarts=1))
    assert (child.last_exit, child.stuck_at) == (STALLED, "billing.events/0@0")
    eventually(lambda: "meters published" in child.log.read_text().rpartition("process started")[2])
    for each in handlers.processes:
        stack.stop(each)
    handlers.client.close()
