"""Writing usage to a real log, and counting it as the aggregator does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import confluent_kafka
import confluent_kafka.admin

from billing.ids import TenantId
from billing.invoicing import PartitionPosition
from billing.metering import UsageBatch, UsageControl, UsageEvent
from billing.tenant import UsageBounds
from infra import kafka, postgres
from infra.faust_app import Batch
from infra.kafka import KafkaConfig, Producer, headers, partition_for
from infra.settings import Settings
from projections import generation, usage
from schemas.codec import UsageMessage, encode_usage, fingerprint_of
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from tests.projections.history import CALLS

SENT_AT = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = UsageBounds(oldest_days=4000, ahead_minutes=600_000)


def calls(customer: str, count: int, at: datetime, prefix: str = "") -> list[UsageEvent]:
    """`count` calls, a second apart from `at` on."""
    return [
        UsageEvent(
            id=f"{prefix}{customer}-{at.isoformat()}-{number}",
            source="test",
            type="call",
            customer=customer,
            time=at + timedelta(seconds=number),
            properties={},
        )
        for number in range(count)
    ]


def measure_from_now_on(settings: Settings, tenant: str, clock: datetime) -> None:
    """The control record that tells every partition what to measure."""
    control = UsageControl(tenant=TenantId(tenant), version=1, meters=(CALLS,), bounds=BOUNDS, clock=clock)
    append(settings, tenant, control, range(settings.usage_partitions))


def send(settings: Settings, tenant: str, events: Sequence[UsageEvent]) -> tuple[PartitionPosition, ...]:
    """Append a batch; the end of the tenant's partition after it."""
    partition = partition_for(tenant, settings.usage_partitions)
    append(settings, tenant, UsageBatch(tenant=TenantId(tenant), events=tuple(events)), [partition])
    end = kafka.end_offsets(KafkaConfig.of(settings), usage.TOPIC, [partition])[partition]
    return (PartitionPosition(partition=partition, offset=end),)


def append(settings: Settings, tenant: str, message: UsageMessage | bytes, partitions: Iterable[int]) -> None:
    """Append one record to each of `partitions`; bytes as they are, whatever they hold."""
    value = message if isinstance(message, bytes) else encode_usage(message)
    named = headers(
        id="test",
        type=f"tallybook.usage.{type(message).__name__}",
        source="test",
        time=SENT_AT,
        schema="" if isinstance(message, bytes) else fingerprint_of(value),
        tenant=tenant,
    )
    producer = Producer(KafkaConfig.of(settings))
    for partition in partitions:
        producer.send(usage.TOPIC, value, key=tenant, partition=partition, headers=named)
    producer.flush()
    producer.close()


def count_log(settings: Settings, pool: postgres.Pool) -> None:
    """Bring the live generation of usage to the end of its log."""
    store = UsageStore(pool, Layout(settings.usage_partitions), None)
    partitions = range(settings.usage_partitions)
    with postgres.transaction(pool) as tx:
        number = generation.current(tx, usage.SET)
        starts = dict.fromkeys(partitions, 0) | generation.checkpoints(tx, usage.SET, number, usage.TOPIC)
    for records in kafka.scan(KafkaConfig.of(settings), usage.TOPIC, starts):
        for partition in partitions:
            if mine := [each for each in records if each.partition == partition]:
                store.apply(Batch(mine, starts[partition]))
                starts[partition] = mine[-1].offset + 1


def cut_by_retention(settings: Settings, partition: int, before: int) -> None:
    """As retention does, which takes the oldest records first."""
    client = confluent_kafka.admin.AdminClient(settings.kafka_client())
    place = confluent_kafka.TopicPartition(f"{settings.topic_prefix}usage.events", partition, before)
    (done,) = client.delete_records([place]).values()
    assert done.result(120).low_watermark == before
