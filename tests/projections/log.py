"""Writing events to a real log, as the command handler does: committed, some aborted, with gaps between offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from billing.envelope import EventEnvelope
from infra.kafka import KafkaConfig, TransactionalProducer, end_offsets, headers, partition_for
from infra.settings import Settings
from projections import billing_set
from schemas.codec import encode_event, fingerprint_of
from tests.waiting import eventually


def append(settings: Settings, *histories: Sequence[EventEnvelope], size: int = 20) -> None:
    """Append histories in transactions of `size` events; every third transaction is tried once in vain."""
    producer = TransactionalProducer(KafkaConfig.of(settings), "test-log")
    producer.init()
    events = [event for history in histories for event in history]
    for number, start in enumerate(range(0, len(events), size)):
        batch = events[start : start + size]
        if number % 3 == 1:
            producer.begin()
            _send(producer, settings, batch)
            producer.flush()
            producer.abort()
        producer.begin()
        _send(producer, settings, batch)
        producer.commit()
    producer.close()
    # The markers of a committed transaction are written behind its back: until then nobody reads its records.
    config, partitions = KafkaConfig.of(settings), range(settings.billing_partitions)
    eventually(
        lambda: (
            end_offsets(config, billing_set.TOPIC, partitions)
            == end_offsets(config, billing_set.TOPIC, partitions, "read_uncommitted")
        ),
    )


def _send(producer: TransactionalProducer, settings: Settings, events: Iterable[EventEnvelope]) -> None:
    for event in events:
        value = encode_event(event)
        tenant = event.meta.tenant
        producer.send(
            billing_set.TOPIC,
            value,
            key=tenant,
            partition=partition_for(tenant, settings.billing_partitions),
            headers=headers(
                id=event.meta.event_id,
                type=f"tallybook.events.{event.meta.type}",
                source="test",
                time=event.meta.recorded_at,
                schema=fingerprint_of(value),
                tenant=tenant,
            ),
        )
