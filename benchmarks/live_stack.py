"""A whole Tallybook of a benchmark's own, with customers on a metered plan and usage that comes in all the time."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path

import confluent_kafka

from benchmarks.usage_load import FINGERPRINT, encode_batch
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import usage
from services.demo.stage import Stage
from tallybook_sdk import UsageEvent

TENANT = "bench"
FEATURE = "calls"
PROBE = "probe"
"""A customer whose usage only the measurement sends."""
_BATCH = 500
_WARM_UP_S = 60  # the virtual machine of Kafka compiles, and Postgres has looked at its new tables

_HEAD = f"""
tenant: {{id: {TENANT}, name: Benchmark, currency: USD, zone: UTC}}
meters:
  - {{key: calls, event_type: call, aggregation: count}}
plans:
  - key: metered
    name: Metered
    currency: USD
    charges:
      - {{key: calls, name: Calls, meter: calls, model: {{type: per_unit, unit: 0.001}}}}
    entitlements:
      - {{feature: {FEATURE}, kind: metered, meter: calls, limit: 1000000000, limit_kind: hard}}
      - {{feature: sso, kind: boolean}}
"""


@dataclass(frozen=True, slots=True)
class Live:
    """The running system."""

    stage: Stage
    settings: Settings
    customers: tuple[str, ...]
    """Whom the load is about."""
    key: str
    """An API key."""


@contextmanager
def running(customers: int) -> Iterator[Live]:
    """Everything up, with `customers` subscribed beside the probe; gone afterwards. Progress goes to stderr."""
    with tempfile.TemporaryDirectory(prefix="tallybook-bench-") as folder:
        stage = Stage(Path(folder), lambda line: print(line, file=sys.stderr))
        names = tuple(f"c{number}" for number in range(customers))
        try:
            stage.command("up")
            catalog = Path(folder) / "catalog.yaml"
            catalog.write_text(_catalog((*names, PROBE)))
            stage.command("catalog", "apply", str(catalog))
            key = stage.command("keys", "create", "--tenant", TENANT).split()[-1]
            yield Live(stage, stage.settings(), names, key)
        finally:
            stage.command("down", codes=(0, 1))


def _catalog(customers: Sequence[str]) -> str:
    start = datetime.now(UTC).replace(day=1).strftime("%Y-%m-%d 00:00")
    method = "payment_method: {provider: sandbox, token: pm_card_visa}"
    named = "\n".join(f"  - {{id: {each}, name: {each}, {method}}}" for each in customers)
    subscribed = "\n".join(
        f"  - {{id: {each}-metered, customer: {each}, plan: metered, starts_at: {start}}}" for each in customers
    )
    return f"{_HEAD}customers:\n{named}\nsubscriptions:\n{subscribed}\n"


def call(customer: str) -> UsageEvent:
    """One event of now."""
    return UsageEvent(type="call", customer=customer, time=datetime.now(UTC), source="benchmark")


@contextmanager
def load(live: Live, rate: int) -> Iterator[None]:
    """Usage at `rate` events a second in batches of 500, from a process of its own, for a minute before the block and
    while it runs."""
    if not rate:
        yield
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    sender = context.Process(target=_send, args=(live.settings, live.customers, rate, stop))
    sender.start()
    try:
        print("warming up", file=sys.stderr)
        time.sleep(_WARM_UP_S)
        yield
    finally:
        stop.set()
        sender.join(30)


def _send(settings: Settings, customers: Sequence[str], rate: int, stop: Event) -> None:
    """Records made once, of which only ids and time are new: the sender should take nothing from what it measures."""
    config = KafkaConfig.of(settings)
    producer = confluent_kafka.Producer(
        config.client() | {"partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 5}
    )
    made = _template(customers)
    headers = [("schema", FINGERPRINT.hex().encode()), ("tenant", TENANT.encode())]
    began, sent = time.monotonic(), 0
    while not stop.is_set():
        due = int((time.monotonic() - began) * rate / _BATCH)
        for number in range(sent, due):
            now_us = time.time_ns() // 1000
            told = f"{now_us // 1000:012x}{number % 4096:03x}"
            value = made.replace(_ID, f"{told[:8]}-{told[8:12]}-7{told[12:]}".encode()).replace(_TIME, _long(now_us))
            producer.produce(config.named(usage.TOPIC), value, TENANT.encode(), headers=headers)
            producer.poll(0)
        sent = max(sent, due)
        time.sleep(0.005)
    producer.flush(10)


_ID = b"00000000-0000-7000"
_SOME_US = 1_700_000_000_123_456


def _template(customers: Sequence[str]) -> bytes:
    """A record whose events are alike but for customer and the end of their ids."""
    ids = [f"{_ID.decode()}-8000-{number:012x}" for number in range(_BATCH)]
    return encode_batch(
        TENANT,
        [
            {
                "id": each,
                "source": "benchmark",
                "type": "call",
                "customer": customers[number % len(customers)],
                "time": _SOME_US,
                "properties": {},
            }
            for number, each in enumerate(ids)
        ],
    )


def _long(number: int) -> bytes:
    """As Avro writes it; of the same length for every instant of our days."""
    rest, written = number << 1, bytearray()
    while rest > 0x7F:
        written.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*written, rest))


_TIME = _long(_SOME_US)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in at.items()}
    return {name: round(value * 1000, 3) for name, value in (found | {"max": ordered[-1]}).items()}
