"""A command handler of its own for each test: real Kafka, topics of its own, real processes."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.envelope import CommandResult, EventEnvelope
from billing.tenant import RegisterTenant
from infra.errors import Transient
from infra.kafka import KafkaConfig, Record, end_offsets, scan
from infra.settings import Settings
from schemas import codec
from services.commands import CommandClient
from tests.stack import Stack
from tests.waiting import eventually

SELLER = RegisterTenant(name="Harbour Air", currency="USD", zone="America/New_York")


class Handlers:
    """Handlers on topics of their own, and a client that asks them."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        self.stack = stack
        self.settings = settings
        self.client = CommandClient(settings)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._read: dict[str, list[Record]] = {}
        self._upto: dict[str, dict[int, int]] = {}

    def start(self, instance: str = "", **env: str) -> subprocess.Popen[bytes]:
        """Start one more handler."""
        own = {"TALLYBOOK_INSTANCE": instance} if instance else {}
        process = self.stack.start("command-handler", self.settings, **own, **env)
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()

    def ask(self, tenant: str, command: Any, key: str) -> CommandResult:
        """The result, repeated with the same key until there is one: what every caller of ours does."""

        def once() -> CommandResult | None:
            try:
                return self.client.request(tenant, command, key=key, actor="test", timeout=5)
            except Transient:
                return None

        return eventually(once)

    def records(self, topic: str) -> list[Record]:
        """Everything committed to `topic`, in order of partition and offset."""
        config = KafkaConfig.of(self.settings)
        starts = self._upto.get(topic) or dict.fromkeys(range(self.settings.billing_partitions), 0)
        ends = end_offsets(config, topic, list(starts))
        read = self._read.setdefault(topic, [])
        read += [each for batch in scan(config, topic, starts, ends) for each in batch]
        self._upto[topic] = ends  # what was committed stays: only the rest is read by the next call
        return sorted(read, key=lambda each: (each.partition, each.offset))

    def events(self, tenant: str | None = None) -> list[EventEnvelope]:
        decoded = [codec.decode_event(each.value) for each in self.records("billing.events")]
        return [each for each in decoded if tenant is None or each.meta.tenant == tenant]

    def results(self) -> list[CommandResult]:
        return [codec.decode_result(each.value) for each in self.records("billing.results")]

    def log_lines(self) -> list[dict[str, Any]]:
        path = Path(self.settings.data) / "logs" / "command-handler.log"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log_lines() if line.get("event") == event]

    def close(self) -> None:
        self.client.close()
        for each in self.processes:
            if each.poll() is None:
                self.kill(each)
        for line in self.log_lines()[-60:]:
            print(line)  # shown by pytest when the test failed


@pytest.fixture
def handlers(stack: Stack) -> Iterator[Handlers]:
    """One partition, no handler started yet."""
    made = Handlers(stack, stack.fresh(billing_partitions=1, usage_partitions=1))
    yield made
    made.close()


@pytest.fixture
def names() -> Iterator[str]:
    """Customer ids: c1, c2, c3, ..."""
    return (f"c{n}" for n in itertools.count(1))
