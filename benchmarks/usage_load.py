"""Usage for the benchmarks: who used what, written to Kafka as a producer writes it, with the truth kept beside."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import confluent_kafka
import uuid_utils

from benchmarks.usage_system import tenants
from billing.placing import partition_of
from infra.kafka import KafkaConfig, partition_for
from infra.settings import Settings
from projections import usage
from schemas import binary
from schemas.framing import SINGLE_OBJECT
from schemas.released import bundled, newest

SCHEMA = newest(bundled())["tallybook.usage.UsageBatch"].schema
FINGERPRINT = binary.fingerprint(SCHEMA)
_PARSED = binary.parsed(SCHEMA)
SPREAD_US = 20 * 60_000_000  # events lie within the last twenty minutes, in no order


def encode_batch(tenant: str, events: list[dict[str, object]]) -> bytes:
    """A record of events, as every producer writes it."""
    return binary.write(_PARSED, {"tenant": tenant, "events": events}, SINGLE_OBJECT + FINGERPRINT)


@dataclass(slots=True)
class Load:
    """Events and what they come to."""

    partitions: int
    per_record: int
    customers: int
    random_ids: bool = False
    spread: int = 0
    """Over how many partitions one tenant's events are spread; 0: a tenant for each partition."""
    sums: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(Tenant, customer) -> events, and their bytes."""
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def records(self, events: int) -> Iterator[tuple[str, int, bytes]]:
        """(Tenant, partition, record) of about so many events, tenant by tenant or partition by partition in turn."""
        names = tenants(self.partitions)
        if self.spread:
            yield from self._spread_records(names[0], events)
            return
        for number in range(max(1, events // self.per_record)):
            partition = number % len(names)
            tenant = names[partition]
            yield tenant, partition, encode_batch(tenant, [self._event(tenant) for _ in range(self.per_record)])

    def _spread_records(self, tenant: str, events: int) -> Iterator[tuple[str, int, bytes]]:
        home = partition_for(tenant, self.partitions)
        filling: dict[int, list[dict[str, object]]] = {}
        for _ in range(max(1, events // self.per_record)):
            while True:
                event = self._event(tenant)
                partition = partition_of(home, self.partitions, self.spread, str(event["source"]), str(event["id"]))
                batch = filling.setdefault(partition, [])
                batch.append(event)
                if len(batch) == self.per_record:
                    break
            yield tenant, partition, encode_batch(tenant, filling.pop(partition))
        for left in (event for batch in filling.values() for event in batch):
            self._forget(tenant, left)

    def _forget(self, tenant: str, event: dict[str, Any]) -> None:
        """It is not sent."""
        customer, size = event["customer"], int(event["properties"]["bytes"])
        known, total = self.sums[tenant, customer]
        if known == 1:
            del self.sums[tenant, customer]
        else:
            self.sums[tenant, customer] = (known - 1, total - size)

    def _event(self, tenant: str) -> dict[str, object]:
        chance = self._random.random
        customer, size = f"c-{int(chance() * self.customers)}", int(chance() * 100_000)
        known = self.sums.get((tenant, customer), (0, 0))
        self.sums[tenant, customer] = (known[0] + 1, known[1] + size)
        now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
        return {
            "id": str(uuid.uuid4() if self.random_ids else uuid_utils.uuid7()),
            "source": "bench",
            "type": "api",
            "customer": customer,
            "time": now_us - int(chance() * SPREAD_US),
            "properties": {"bytes": str(size), "region": f"eu-{size % 4}", "status": "200"},
        }

    def send(self, settings: Settings, events: int, said: Callable[[str], None] = lambda _: None) -> int:
        """Write so many events; returns how many it were. The brokers have all of them then."""
        config = KafkaConfig.of(settings)
        failed: list[object] = []
        producer = confluent_kafka.Producer(
            config.client()
            | {
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "linger.ms": 5,
                "queue.buffering.max.kbytes": 200_000,
            }
        )
        mark = [("schema", FINGERPRINT.hex().encode())]
        sent = 0
        for tenant, partition, value in self.records(events):
            while True:
                try:
                    producer.produce(
                        config.named(usage.TOPIC),
                        value,
                        tenant.encode(),
                        partition,
                        headers=[*mark, ("tenant", tenant.encode())],
                        on_delivery=lambda error, _: failed.append(error) if error else None,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
            sent += self.per_record
            if sent % 500_000 < self.per_record:
                said(f"sent {sent:,} events")
        assert producer.flush(120) == 0
        assert not failed, failed[0]
        return sent
