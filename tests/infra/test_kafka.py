"""Placement, headers and errors: what can be said about Kafka without Kafka."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import confluent_kafka as rd
import pytest
from aiokafka.partitioner import DefaultPartitioner

from infra import kafka_topics
from infra.errors import Conflict, Misconfigured, Poison, Transient
from infra.kafka import KafkaConfig, Producer, headers, partition_for
from infra.kafka_client import translated
from infra.settings import Settings

KEYS = [f"tenant-{number}" for number in range(990)] + [
    "a",
    "ab",
    "abc",
    "abcd",
    "é",
    "日本",
    "x" * 255,
    "0",
    "-",
    "ÿÿÿ",
]


@pytest.mark.parametrize("partitions", [1, 6, 12, 1000])
def test_a_tenant_lives_where_aiokafka_and_faust_put_it(partitions: int) -> None:
    everywhere = list(range(partitions))
    place = DefaultPartitioner()
    assert [partition_for(key, partitions) for key in KEYS] == [
        place(key.encode(), everywhere, everywhere) for key in KEYS
    ]


def test_headers_follow_the_cloudevents_binding() -> None:
    given = headers(
        id="acme:7",
        type="tallybook.events.InvoicePaid",
        source="command-handler",
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        schema="00" * 8,
        tenant="acme",
    )
    assert given == {
        "ce_id": b"acme:7",
        "ce_type": b"tallybook.events.InvoicePaid",
        "ce_source": b"command-handler",
        "ce_specversion": b"1.0",
        "ce_time": b"2026-01-02T03:04:05Z",
        "schema": b"0000000000000000",
        "tenant": b"acme",
    }


@pytest.mark.parametrize(
    ("code", "reaction"),
    [
        (rd.KafkaError.MSG_SIZE_TOO_LARGE, Poison),
        (rd.KafkaError._FENCED, Conflict),
        (rd.KafkaError.INVALID_PRODUCER_EPOCH, Conflict),
        (rd.KafkaError.TOPIC_AUTHORIZATION_FAILED, Misconfigured),
        (rd.KafkaError.UNKNOWN_TOPIC_OR_PART, Misconfigured),
        (rd.KafkaError._TIMED_OUT, Transient),
        (rd.KafkaError._ALL_BROKERS_DOWN, Transient),
        (rd.KafkaError.NOT_ENOUGH_REPLICAS, Transient),
    ],
)
def test_each_error_calls_for_one_reaction(code: int, reaction: type[Exception]) -> None:
    error = translated(rd.KafkaError(code), "sending to billing.events")
    assert type(error) is reaction
    assert "sending to billing.events" in str(error)


def test_a_flush_that_reaches_nobody_is_no_success() -> None:
    producer = Producer(KafkaConfig("127.0.0.1:1"), log_level=0)
    producer.send("usage.events", b"value", key="acme", headers={})
    with pytest.raises(Transient, match="1 records still under way"):
        producer.flush(0.2)


def test_the_settings_say_how_to_reach_the_cluster() -> None:
    config = KafkaConfig.of(Settings(kafka="broker:9093", kafka_security_protocol="ssl", topic_prefix="blue."))
    assert config.bootstrap == "broker:9093"
    assert config.client()["security.protocol"] == "ssl"
    assert config.named("billing.events") == "blue.billing.events"


_UNKNOWN_LEADER_EPOCH = 75


class _Admin:
    """A broker that says at once who leads, while the leader of one partition learns it only when asked again."""

    def __init__(self, *refusals: int) -> None:
        self.refusals = list(refusals)

    def list_topics(self, timeout: float) -> Any:
        partitions = {each: SimpleNamespace(leader=1) for each in range(2)}
        return SimpleNamespace(topics={"billing.events": SimpleNamespace(partitions=partitions)})

    def list_offsets(self, asked: dict[rd.TopicPartition, Any], request_timeout: float) -> Any:
        answers: dict[rd.TopicPartition, Future[None]] = {each: Future() for each in asked}
        for each in answers.values():
            each.set_result(None)
        if self.refusals:
            last = list(answers)[-1]
            answers[last] = Future()
            answers[last].set_exception(rd.KafkaException(rd.KafkaError(self.refusals.pop())))
        return answers


def test_a_topic_is_ready_when_every_leader_knows_that_it_leads() -> None:
    broker: Any = _Admin(
        rd.KafkaError.NOT_LEADER_FOR_PARTITION, _UNKNOWN_LEADER_EPOCH, rd.KafkaError.UNKNOWN_TOPIC_OR_PART
    )
    kafka_topics._await_leaders(broker, {"billing.events"}, 5)
    assert broker.refusals == []
    with pytest.raises(Misconfigured, match=r"billing\.events"):
        kafka_topics._await_leaders(_Admin(rd.KafkaError.TOPIC_AUTHORIZATION_FAILED), {"billing.events"}, 5)  # type: ignore[arg-type]
