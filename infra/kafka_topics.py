"""The topics on the cluster: created where they are missing, checked where they exist, and where they end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import confluent_kafka as rd
import confluent_kafka.admin
from confluent_kafka.admin import AdminClient

from infra.errors import Misconfigured, Transient
from infra.kafka_client import KafkaConfig, Position, Record, translated
from infra.kafka_consumer import Consumer
from schemas.topics import PARTITIONS_BY_DEFAULT, Topic, bundled_topics

_admin: Any = confluent_kafka.admin  # it does not declare what it exports
_TIMEOUT_S = 30
_PAUSE_S = 0.02
_MUST_EQUAL = ("cleanup.policy", "message.timestamp.type")
_ISOLATION = {
    "read_committed": rd.IsolationLevel.READ_COMMITTED,
    "read_uncommitted": rd.IsolationLevel.READ_UNCOMMITTED,
}


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What a deployment chooses about the topics."""

    partitions: Mapping[str, int] = field(default_factory=lambda: PARTITIONS_BY_DEFAULT)
    """Number of partitions of the `billing` topics and of the `usage` topics."""
    replication: int = 1
    """Copies of each record."""


def ensure_topics(config: KafkaConfig, wanted: TopicSettings, timeout_s: float = _TIMEOUT_S) -> list[str]:
    """Create the topics that are missing, then check all; the plain names of those created.

    Raises:
        Misconfigured: a topic that exists differs; names topic and setting.
        Transient: the cluster does not answer.
    """
    admin = AdminClient(config.client())
    existing = _partition_counts(admin, timeout_s)
    missing = [each for each in bundled_topics() if config.named(each.name) not in existing]
    created = admin.create_topics([_new(config, each, wanted) for each in missing]) if missing else {}
    for name, future in created.items():
        try:
            future.result(timeout_s)
        except rd.KafkaException as e:
            if e.args[0].code() != rd.KafkaError.TOPIC_ALREADY_EXISTS:  # another process was first: check its work
                raise translated(e, f"creating {name}") from e
    _await_leaders(admin, {config.named(each.name) for each in missing}, timeout_s)
    check_topics(config, wanted, timeout_s)
    return [each.name for each in missing]


def check_topics(config: KafkaConfig, wanted: TopicSettings, timeout_s: float = _TIMEOUT_S) -> None:
    """Raises `Misconfigured` naming the first topic and setting that would break a promise."""
    admin = AdminClient(config.client())
    counts = _partition_counts(admin, timeout_s)
    for each in bundled_topics():
        count = counts.get(config.named(each.name))
        if count is None:
            raise Misconfigured(f"topic {config.named(each.name)} does not exist")
        if count != wanted.partitions[each.partitions]:
            raise Misconfigured(
                f"topic {config.named(each.name)} has {count} partitions, and {each.partitions}_partitions says"
                f" {wanted.partitions[each.partitions]}; a tenant's place follows from the number, so it never changes"
            )
    kind = _admin.ResourceType.TOPIC
    resources = {_admin.ConfigResource(kind, config.named(each.name)): each for each in bundled_topics()}
    for resource, future in admin.describe_configs(list(resources)).items():
        try:
            actual = {name: entry.value for name, entry in future.result(timeout_s).items()}
        except rd.KafkaException as e:
            raise translated(e, f"reading the settings of {resource.name}") from e
        _check_settings(resources[resource], resource.name, actual)


def end_offsets(
    config: KafkaConfig,
    topic: str,
    partitions: Sequence[int],
    isolation: str = "read_committed",
    timeout_s: float = _TIMEOUT_S,
) -> dict[int, int]:
    """Per partition the offset that the next record gets; under `read_committed`, of the first open transaction.

    Raises:
        Transient: the cluster does not answer.
    """
    return _offsets(config, topic, partitions, _admin.OffsetSpec.latest(), isolation, timeout_s)


def start_offsets(config: KafkaConfig, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Per partition the offset of the first record still kept. Raises `Transient`."""
    return _offsets(config, topic, partitions, _admin.OffsetSpec.earliest(), "read_uncommitted")


def committed_offsets(
    config: KafkaConfig, group: str, positions: Sequence[Position], timeout_s: float = _TIMEOUT_S
) -> dict[Position, int]:
    """The group's stable offsets: no open transaction can still move them. Positions it never had are left out.

    Raises:
        Transient: the cluster does not answer, or a transaction that moves them stays open.
    """
    asked = [rd.TopicPartition(config.named(topic), partition) for topic, partition in positions]
    admin = AdminClient(config.client())
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _stable_offsets(admin, config, group, asked)
        except rd.KafkaException as e:
            # A transaction's end reaches the offsets a little after its commit was answered.
            if e.args[0].code() != rd.KafkaError.UNSTABLE_OFFSET_COMMIT or time.monotonic() > deadline:
                raise translated(e, f"reading the offsets of {group}") from e
        time.sleep(_PAUSE_S)


def _stable_offsets(
    admin: AdminClient, config: KafkaConfig, group: str, asked: list[rd.TopicPartition]
) -> dict[Position, int]:
    request = rd.ConsumerGroupTopicPartitions(config.named(group), asked)
    future = admin.list_consumer_group_offsets([request], require_stable=True)[request.group_id]
    found = {}
    for each in future.result(_TIMEOUT_S).topic_partitions:
        if each.error is not None:
            raise rd.KafkaException(each.error)
        if each.offset >= 0:
            found[each.topic[len(config.prefix) :], each.partition] = each.offset
    return found


def scan(
    config: KafkaConfig,
    topic: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int] | None = None,
    *,
    isolation: str = "read_committed",
    patience_s: float = 30,
) -> Iterator[list[Record]]:
    """Every record of `topic` from `starts` up to `ends` (default: where the log ends now), per partition in order.

    Raises:
        Transient: nothing came for `patience_s` although the end is not reached.
    """
    upto = dict(ends) if ends is not None else end_offsets(config, topic, list(starts), isolation)
    waiting = {partition for partition, start in starts.items() if start < upto[partition]}
    if not waiting:
        return
    consumer = Consumer(config, f"scan-{uuid4().hex}", isolation=isolation, reset="earliest", **_SCAN)
    try:
        consumer.assign({(topic, partition): starts[partition] for partition in waiting})
        silent = 0
        while waiting:
            records = consumer.poll(5_000, 0.1)
            if wanted := [each for each in records if each.offset < upto[each.partition]]:
                yield wanted
            done = {each for each in waiting if (consumer.position((topic, each)) or 0) >= upto[each]}
            done |= {each for each in waiting if (topic, each) in consumer.at_end}
            silent = 0 if records or done else silent + 1
            if silent > patience_s * 10:
                raise Transient(f"Kafka: no record of {topic} in {patience_s} s, though {sorted(waiting)} go on")
            waiting -= done
    finally:
        consumer.close()


_SCAN = {"queued.min.messages": 1_000_000, "fetch.message.max.bytes": 4_194_304}


def _offsets(
    config: KafkaConfig,
    topic: str,
    partitions: Sequence[int],
    which: Any,
    isolation: str,
    timeout_s: float = _TIMEOUT_S,
) -> dict[int, int]:
    asked = {rd.TopicPartition(config.named(topic), each): which for each in partitions}
    if not asked:
        return {}
    admin = AdminClient(config.client())  # held until the answers are there: they never come to one that is gone
    try:
        answers = admin.list_offsets(asked, isolation_level=_ISOLATION[isolation], request_timeout=timeout_s)
        return {each.partition: future.result().offset for each, future in answers.items()}
    except rd.KafkaException as e:
        raise translated(e, f"asking where {topic} ends") from e


def _await_leaders(admin: AdminClient, names: set[str], timeout_s: float) -> None:
    """Brokers learn of a new topic a little after it was created; only then can it be written."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            known = admin.list_topics(timeout=timeout_s).topics
        except rd.KafkaException as e:
            raise translated(e, "listing the topics") from e
        waiting = [
            name
            for name in names
            if name not in known or any(each.leader < 0 for each in known[name].partitions.values())
        ]
        if not waiting:
            waiting = _unaware(admin, {name: list(known[name].partitions) for name in names}, timeout_s)
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise Transient(f"Kafka: {', '.join(sorted(waiting))} have no leaders after {timeout_s} s")
        time.sleep(_PAUSE_S)


def _unaware(admin: AdminClient, partitions: Mapping[str, Sequence[int]], timeout_s: float) -> list[str]:
    """Topics of which a leader does not know yet that it leads: for a moment it refuses what others ask of it."""
    asked = {
        rd.TopicPartition(name, each): _admin.OffsetSpec.latest() for name in partitions for each in partitions[name]
    }
    behind = set()
    for place, future in (admin.list_offsets(asked, request_timeout=timeout_s) if asked else {}).items():
        try:
            future.result()
        except rd.KafkaException as e:
            failure = translated(e, f"asking where {place.topic} ends")
            if not isinstance(failure, Transient) and e.args[0].code() != rd.KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise failure from e
            behind.add(place.topic)
    return sorted(behind)


def _partition_counts(admin: AdminClient, timeout_s: float) -> dict[str, int]:
    try:
        metadata = admin.list_topics(timeout=timeout_s)
    except rd.KafkaException as e:
        raise translated(e, "listing the topics") from e
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


def _new(config: KafkaConfig, topic: Topic, wanted: TopicSettings) -> Any:
    return _admin.NewTopic(
        config.named(topic.name),
        num_partitions=wanted.partitions[topic.partitions],
        replication_factor=wanted.replication,
        config=topic.config(wanted.replication),
    )


def _check_settings(topic: Topic, name: str, actual: Mapping[str, str | None]) -> None:
    expected = topic.config()
    must_equal = [*_MUST_EQUAL, *(("retention.ms", "retention.bytes") if topic.retention_days is None else ())]
    for setting in must_equal:
        if actual.get(setting) != expected[setting]:
            raise Misconfigured(f"topic {name}: {setting} is {actual.get(setting)}; it must be {expected[setting]}")
    if int(actual.get("max.message.bytes") or 0) < topic.max_message_bytes:
        raise Misconfigured(
            f"topic {name}: max.message.bytes is {actual.get('max.message.bytes')};"
            f" it must be at least {topic.max_message_bytes}"
        )
