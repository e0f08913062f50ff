"""What every Kafka client here shares: the cluster's address, names, placement, headers and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import confluent_kafka as rd

from infra.errors import Conflict, Misconfigured, Poison, Transient
from infra.settings import Settings

Position = tuple[str, int]
"""A topic and one of its partitions."""

_EVERY_CLIENT: Mapping[str, Any] = {
    "allow.auto.create.topics": False,
    "log.connection.close": False,
    "log_level": 5,  # librdkafka writes to stderr; what it says below `notice` concerns nobody
}
_FATAL_CONFIG = (
    rd.KafkaError._AUTHENTICATION,
    rd.KafkaError.SASL_AUTHENTICATION_FAILED,
    rd.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    rd.KafkaError.GROUP_AUTHORIZATION_FAILED,
    rd.KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    rd.KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    rd.KafkaError.UNKNOWN_TOPIC_OR_PART,
    rd.KafkaError._UNKNOWN_TOPIC,
    rd.KafkaError._INVALID_ARG,
    rd.KafkaError._AUTO_OFFSET_RESET,  # the offset to read from is no more, and guessing another would skip history
)
_TOO_LARGE = (rd.KafkaError.MSG_SIZE_TOO_LARGE, rd.KafkaError.RECORD_LIST_TOO_LARGE)
_FENCED = (
    rd.KafkaError._FENCED,
    rd.KafkaError.INVALID_PRODUCER_EPOCH,
    rd.KafkaError.PRODUCER_FENCED,
    rd.KafkaError.FENCED_INSTANCE_ID,
)


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """How to reach one cluster."""

    bootstrap: str
    """host:port[,host:port]"""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further librdkafka settings, such as TLS and SASL."""
    prefix: str = ""
    """Put before the name of each topic, group and transactional id."""

    @classmethod
    def of(cls, settings: Settings) -> KafkaConfig:
        """Raises `Misconfigured` if the settings name no cluster."""
        client = settings.kafka_client()
        return cls(client.pop("bootstrap.servers"), client, settings.topic_prefix)

    def client(self) -> dict[str, Any]:
        """What every client needs."""
        return {"bootstrap.servers": self.bootstrap, **_EVERY_CLIENT, **self.extra}

    def named(self, plain: str) -> str:
        """The name on the cluster of the topic, group or transactional id called `plain` here."""
        return self.prefix + plain


class Record(NamedTuple):
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    """By name; of a repeated one the last."""
    repeated: tuple[str, ...]
    """Names of headers that were given more than once."""
    appended_at: datetime
    """The broker's clock when it took the record (topics are LogAppendTime)."""


class Delivery(NamedTuple):
    """What became of one sent record."""

    topic: str
    partition: int
    offset: int
    """Where it lies; -1 if it was not taken."""
    error: Exception | None
    """None, `Transient` (it may lie there all the same) or `Poison`."""


def translated(error: rd.KafkaError | rd.KafkaException, doing: str) -> Exception:
    """The error class of the reaction that `error` calls for."""
    cause = error.args[0] if isinstance(error, rd.KafkaException) else error
    text = f"Kafka, {doing}: {cause.name()}: {cause.str()}"
    if cause.code() in _TOO_LARGE:
        return Poison(text)
    if cause.code() in _FENCED:
        return Conflict(text)
    if cause.code() in _FATAL_CONFIG:
        return Misconfigured(text)
    return Transient(text)


@lru_cache(maxsize=65_536)
def partition_for(tenant: str, partitions: int) -> int:
    """The partition of `tenant`'s records in a topic of `partitions`: murmur2 of the key, as Java's producer has it."""
    assert tenant
    assert partitions > 0
    return (_murmur2(tenant.encode()) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def headers(
    *, id: str, type: str, source: str, time: datetime, schema: str, tenant: str, traceparent: str | None = None
) -> dict[str, bytes]:
    """The headers of a record: CloudEvents' Kafka binding, the schema's fingerprint and the tenant."""
    assert time.utcoffset() is not None
    given = {
        "ce_id": id,
        "ce_type": type,
        "ce_source": source,
        "ce_specversion": "1.0",
        "ce_time": time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "schema": schema,
        "tenant": tenant,
        "traceparent": traceparent,
    }
    return {name: value.encode() for name, value in given.items() if value is not None}
