"""Batches to the brokers, through librdkafka: the only module of this package that knows it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NamedTuple

import confluent_kafka as rd

from tallybook_sdk.delivery import Unreachable
from tallybook_sdk.event import new_id
from tallybook_sdk.wire import BATCH, Schema

SAFE: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # as Java's clients; librdkafka's default would place the tenant elsewhere
    "compression.type": "lz4",
    "linger.ms": 5,
    "delivery.timeout.ms": 120_000,
    "allow.auto.create.topics": False,
}
_FIXED = ("enable.idempotence", "acks", "partitioner")
_HEALS = (
    rd.KafkaError._MSG_TIMED_OUT,
    rd.KafkaError._TIMED_OUT,
    rd.KafkaError._TRANSPORT,
    rd.KafkaError._ALL_BROKERS_DOWN,
    rd.KafkaError._PURGE_QUEUE,
    rd.KafkaError._PURGE_INFLIGHT,
)
_TOO_LARGE = (rd.KafkaError.MSG_SIZE_TOO_LARGE, rd.KafkaError.RECORD_LIST_TOO_LARGE)


class Failure(NamedTuple):
    """Why a batch was not delivered."""

    text: str
    may_heal: bool
    """Sent again later, it may arrive."""
    too_large: bool
    """A smaller one may arrive."""


BY_KEY = -1  # the partitioner places the record

Delivered = Callable[[Failure | None, int, int], None]
"""Told the failure or None, partition and offset (-1: none)."""


class Full(Exception):
    """The client's own queue is full: try again once it has delivered some."""


class Transport:
    """One tenant's way to its topic. Safe to share between threads."""

    def __init__(self, bootstrap: str, topic: str, tenant: str, source: str, overrides: Mapping[str, Any]) -> None:
        """Raises `ValueError` if a setting would lose or misplace events."""
        changed = [name for name in overrides if name in _FIXED]
        if changed:
            raise ValueError(f"kafka: {', '.join(changed)} cannot be changed: events could be lost or misplaced")
        self._settings = {"bootstrap.servers": bootstrap, **SAFE, **overrides}
        self._topic = topic
        self._key = tenant.encode()
        self._source = (source or "tallybook-sdk").encode()
        self._rd: rd.Producer | None = None
        self._connecting = Lock()
        self._connected()

    def check(self, timeout_s: float) -> None:
        """Raises `Unreachable` unless the brokers answer and have the topic."""
        try:
            known = self._connected().list_topics(self._topic, timeout=timeout_s).topics[self._topic]
        except rd.KafkaException as error:
            raise Unreachable(str(error.args[0].str())) from error
        if known.error is not None:
            raise Unreachable(f"topic {self._topic}: {known.error.str()}")

    def produce(self, value: bytes, partition: int, delivered: Delivered, schema: Schema = BATCH) -> None:
        """Hand `value`, written by `schema`, over for `partition` or `BY_KEY`.

        `delivered` is called from within a later `poll`, or at once if it cannot even begin.

        Raises:
            Full: not taken.
        """

        def report(error: rd.KafkaError | None, message: rd.Message) -> None:
            if error is None:
                offset = message.offset()
                delivered(None, message.partition() or 0, -1 if offset is None else offset)
            else:
                delivered(self._failure(error), -1, -1)

        try:
            self._connected().produce(
                self._topic, value, self._key, partition, headers=self._headers(schema), on_delivery=report
            )
        except BufferError as error:
            raise Full from error
        except rd.KafkaException as error:
            delivered(self._failure(error.args[0]), -1, -1)

    def poll(self, timeout_s: float) -> None:
        """Take delivery reports; returns after the first, or at the timeout."""
        self._connected().poll(timeout_s)

    def forget(self) -> None:
        """In the child of a fork: the client's threads are the parent's, so it must not even be destroyed here."""
        if self._rd is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._rd))  # never destroyed, not at the end either
            self._rd = None
        self._connecting = Lock()

    def close(self) -> None:
        """Let go of the connection; what is under way may still arrive, or not."""
        self._rd = None

    def _connected(self) -> rd.Producer:
        connected = self._rd
        if connected is None:
            with self._connecting:  # the sender and the thread that tends come at once after a fork
                connected = self._rd = self._rd or rd.Producer(self._settings)
        return connected

    def _failure(self, error: rd.KafkaError) -> Failure:
        text = f"topic {self._topic}: {error.name()}: {error.str()}"
        return Failure(text, error.retriable() or error.code() in _HEALS, error.code() in _TOO_LARGE)

    def _headers(self, schema: Schema) -> list[tuple[str, str | bytes | None]]:
        return [
            ("ce_id", new_id().encode()),
            ("ce_type", b"tallybook.usage." + schema.record.encode()),
            ("ce_source", self._source),
            ("ce_specversion", b"1.0"),
            ("ce_time", datetime.now(UTC).isoformat().replace("+00:00", "Z").encode()),
            ("schema", schema.fingerprint.hex().encode()),
            ("tenant", self._key),
        ]
