"""Kafka as it really behaves: placement, delivery, transactions and topics."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it does not declare its exports

from infra.errors import Conflict, Misconfigured, Poison
from infra.kafka import (
    Consumer,
    Delivery,
    KafkaConfig,
    Position,
    Producer,
    Record,
    TopicSettings,
    TransactionalProducer,
    check_topics,
    committed_offsets,
    end_offsets,
    ensure_topics,
    partition_for,
    scan,
    start_offsets,
)
from infra.settings import Settings
from schemas.topics import Topic, bundled_topics, topic
from tests.infra.test_kafka import KEYS
from tests.waiting import eventually

EVENTS, COMMANDS = "billing.events", "billing.commands"


@pytest.fixture
def config(settings: Settings) -> KafkaConfig:
    """A part of the cluster that no other test writes to, with its topics."""
    own = replace(KafkaConfig.of(settings), prefix=f"k{uuid.uuid4().hex[:10]}.")
    ensure_topics(own, TopicSettings())
    return own


def values(config: KafkaConfig, name: str, isolation: str = "read_committed") -> list[bytes | None]:
    starts = start_offsets(config, name, range(6))
    return [record.value for batch in scan(config, name, starts, isolation=isolation) for record in batch]


def test_librdkafka_puts_every_tenant_where_partition_for_says(config: KafkaConfig) -> None:
    landed: dict[str, int] = {}
    producer = Producer(config)
    for key in KEYS:

        def note(delivery: Delivery, key: str = key) -> None:
            assert delivery.error is None
            landed[key] = delivery.partition

        producer.send("usage.events", key.encode(), key=key, headers={}, delivered=note)
    producer.flush()
    assert landed == {key: partition_for(key, 6) for key in KEYS}


def test_records_come_back_with_key_headers_and_the_brokers_time(config: KafkaConfig) -> None:
    producer = Producer(config)
    producer.send("usage.events", b"value", key="acme", headers={"tenant": b"acme"}, partition=2)
    producer.flush()
    (record,) = [each for batch in scan(config, "usage.events", {2: 0}) for each in batch]
    assert record[:7] == ("usage.events", 2, 0, b"acme", b"value", {"tenant": b"acme"}, ())
    assert record.appended_at.year >= 2024


def test_a_record_larger_than_its_topic_takes_is_poison(config: KafkaConfig) -> None:
    producer = Producer(config)
    with pytest.raises(Poison, match="MSG_SIZE_TOO_LARGE"):
        producer.send(EVENTS, b"x" * 3_000_000, key="acme", headers={})
    producer.send(
        EVENTS, os.urandom(1_500_000), key="acme", headers={}, partition=0
    )  # the client takes it, the topic does not
    with pytest.raises(Poison, match="MSG_SIZE_TOO_LARGE"):
        producer.flush()
    producer.flush()
    assert values(config, EVENTS) == []


def test_a_full_queue_waits_instead_of_losing(config: KafkaConfig) -> None:
    producer = Producer(config, **{"queue.buffering.max.messages": 10})
    for number in range(500):
        producer.send(EVENTS, str(number).encode(), key="acme", headers={})
    producer.flush()
    assert values(config, EVENTS) == [str(number).encode() for number in range(500)]


def test_only_what_was_committed_is_read(config: KafkaConfig) -> None:
    """Commit, abort, commit, abort: the end is the last abort's marker."""
    for value, kept in ((b"1", True), (b"2", False), (b"3", True), (b"4", False)):
        producer = TransactionalProducer(config, "handler-0")
        producer.init()
        producer.begin()
        producer.send(EVENTS, value, key="acme", headers={}, partition=0)
        if kept:
            producer.commit()
        else:
            producer.flush()
            producer.abort()
        producer.close()
    assert values(config, EVENTS) == [b"1", b"3"]
    assert values(config, EVENTS, "read_uncommitted") == [b"1", b"2", b"3", b"4"]
    assert end_offsets(config, EVENTS, [0, 1]) == {0: 8, 1: 0}


def test_an_open_transaction_hides_what_follows_and_its_end_shows_it(config: KafkaConfig) -> None:
    producer = TransactionalProducer(config, "handler-0")
    producer.init()
    producer.begin()
    producer.send(EVENTS, b"open", key="acme", headers={}, partition=0)
    producer.flush()
    assert end_offsets(config, EVENTS, [0]) == {0: 0}
    assert end_offsets(config, EVENTS, [0], "read_uncommitted") == {0: 1}
    producer.commit()
    assert eventually(lambda: end_offsets(config, EVENTS, [0]) == {0: 2})


def test_the_second_under_one_id_fences_the_first(config: KafkaConfig) -> None:
    first = TransactionalProducer(config, "handler-0")
    first.init()
    first.begin()
    first.send(EVENTS, b"zombie", key="acme", headers={}, partition=0)
    first.flush()
    second = TransactionalProducer(config, "handler-0")
    second.init()
    with pytest.raises(Conflict):
        first.commit()
    second.begin()
    second.send(EVENTS, b"heir", key="acme", headers={}, partition=0)
    second.commit()
    assert values(config, EVENTS) == [b"heir"]


def test_offsets_move_with_the_transaction(config: KafkaConfig) -> None:
    asked = Producer(config)
    for number in range(3):
        asked.send(COMMANDS, str(number).encode(), key="acme", headers={}, partition=4)
    asked.flush()
    given: list[Position] = []
    consumer = Consumer(config, "command-handler", reset="earliest")
    consumer.subscribe([COMMANDS], assigned=given.extend, revoked=lambda _: None, lost=lambda _: None)
    records: list[Record] = []

    def came() -> bool:
        records.extend(consumer.poll())
        return len(records) == 3

    eventually(came)
    assert sorted(given) == [(COMMANDS, partition) for partition in range(6)]
    assert committed_offsets(config, "command-handler", given) == {}
    producer = TransactionalProducer(config, "handler-4")
    producer.init()
    producer.begin()
    producer.send(EVENTS, b"decided", key="acme", headers={}, partition=4)
    producer.send_offsets({(COMMANDS, 4): 2}, consumer)
    producer.commit()
    assert committed_offsets(config, "command-handler", given) == {(COMMANDS, 4): 2}
    consumer.close()

    again = Consumer(config, "command-handler", reset="earliest")
    again.subscribe([COMMANDS], assigned=lambda _: None, revoked=lambda _: None, lost=lambda _: None)
    read: list[Record] = []
    read += eventually(again.poll)
    assert [record.value for record in read] == [b"2"]
    again.close()


def test_a_consumer_knows_when_it_reached_the_end_behind_a_marker(config: KafkaConfig) -> None:
    producer = TransactionalProducer(config, "handler-0")
    producer.init()
    producer.begin()
    producer.send(EVENTS, b"gone", key="acme", headers={}, partition=0)
    producer.flush()
    producer.abort()
    consumer = Consumer(config, "fold")
    consumer.assign({(EVENTS, 0): 0})
    eventually(lambda: consumer.poll() == [] and (EVENTS, 0) in consumer.at_end)
    consumer.seek((EVENTS, 0), 0)
    assert (EVENTS, 0) not in consumer.at_end
    consumer.close()


def test_an_offset_that_is_not_kept_stops_instead_of_skipping(config: KafkaConfig) -> None:
    consumer = Consumer(config, "projector")
    consumer.assign({(EVENTS, 0): 1000})
    with pytest.raises(Misconfigured, match=r"reading billing\.events\[0\]"):
        [consumer.poll() for _ in range(100)]
    consumer.close()


def test_topics_are_created_once_and_then_checked(settings: Settings) -> None:
    config = replace(KafkaConfig.of(settings), prefix=f"k{uuid.uuid4().hex[:10]}.")
    assert ensure_topics(config, TopicSettings()) == [each.name for each in bundled_topics()]
    assert ensure_topics(config, TopicSettings()) == []


def broken(config: KafkaConfig, each: Topic, count: int, **settings: Any) -> None:
    changed = each.config() | {name.replace("_", "."): value for name, value in settings.items()}
    new = NewTopic(config.named(each.name), num_partitions=count, replication_factor=1, config=changed)
    admin = AdminClient(config.client())
    for future in admin.create_topics([new]).values():
        future.result(120)
    eventually(lambda: config.named(each.name) in admin.list_topics().topics)


@pytest.mark.parametrize(
    ("count", "settings_of_topic", "named"),
    [
        (5, {}, "has 5 partitions"),
        (6, {"retention_ms": "604800000"}, "retention.ms is 604800000; it must be -1"),
        (6, {"retention_bytes": "1000000000"}, "retention.bytes is 1000000000"),
        (6, {"cleanup_policy": "compact"}, "cleanup.policy is compact; it must be delete"),
        (6, {"message_timestamp_type": "CreateTime"}, "message.timestamp.type is CreateTime; it must be LogAppendTime"),
        (6, {"max_message_bytes": "1000"}, "max.message.bytes is 1000; it must be at least"),
    ],
)
def test_a_topic_that_would_break_a_promise_is_named(
    settings: Settings, count: int, settings_of_topic: dict[str, str], named: str
) -> None:
    config = replace(KafkaConfig.of(settings), prefix=f"k{uuid.uuid4().hex[:10]}.")
    broken(config, topic(EVENTS), count, **settings_of_topic)
    with pytest.raises(Misconfigured, match=f"topic {config.named(EVENTS)}") as refused:
        ensure_topics(config, TopicSettings())
    assert named in str(refused.value)


def test_a_missing_topic_is_named(settings: Settings) -> None:
    config = replace(KafkaConfig.of(settings), prefix=f"k{uuid.uuid4().hex[:10]}.")
    with pytest.raises(Misconfigured, match=r"billing\.commands does not exist"):
        check_topics(config, TopicSettings())
