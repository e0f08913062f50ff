"""The producers' client: usage events in, batches on Kafka out, and word of each event's delivery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import confluent_kafka as rd

from tallybook_sdk.event import NAME_LENGTH_MAX, UsageEvent, as_record, new_id
from tallybook_sdk.wire import encode_batch, encode_event, schema_fingerprint

TOPIC = "usage.events"
BATCH_BYTES_MAX = 900_000  # the topic takes records of 1 MB
_POLL_S = 0.05
_SAFE: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # as Java's clients; librdkafka's default would place the tenant elsewhere
    "compression.type": "lz4",
    "linger.ms": 5,
    "delivery.timeout.ms": 120_000,
    "allow.auto.create.topics": False,
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one event."""

    event: UsageEvent
    partition: int
    offset: int
    """Of the batch it travelled in; -1 if it was not taken."""
    index: int
    """Its place in that batch."""
    error: str | None
    """None if the brokers have it. Else it may lie there all the same: send it again, with its id."""


class NotDelivered(Exception):
    """Some events were not acknowledged. Send them again, with their ids: those that lie there count once."""

    def __init__(self, failures: list[Delivery], waiting: int) -> None:
        reasons = ", ".join(sorted({each.error or "" for each in failures})) or "no answer in time"
        super().__init__(f"{len(failures) + waiting} events not delivered: {reasons}")
        self.failures = failures
        """The events whose delivery failed."""
        self.waiting = waiting
        """Number of events still under way."""


class Unreachable(Exception):
    """The brokers do not answer, or have no topic for usage."""


class _Batch:
    """Events that travel together."""

    def __init__(self) -> None:
        self.events: list[tuple[UsageEvent, Callable[[Delivery], None] | None]] = []
        self.encoded: list[bytes] = []
        self.bytes = 0
        self.began = time.monotonic()


class UsageProducer:
    """Sends usage events of one tenant, many to a Kafka record, and lets no failed delivery pass unnoticed.

    >>> with UsageProducer("localhost:9092", "acme", source="api-gateway") as usage:
    ...     usage.send(UsageEvent(type="api_call", customer="c-1", time=datetime.now(UTC), properties={"bytes": 512}))

    Leaving the block waits for every delivery and raises `NotDelivered` if one failed. Safe to share between threads,
    not between processes: make one after a fork.
    """

    def __init__(
        self,
        bootstrap: str,
        tenant: str,
        *,
        source: str = "",
        batch_events: int = 500,
        linger: timedelta = timedelta(milliseconds=100),
        topic_prefix: str = "",
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        """`linger`: longest wait of an event for company. `kafka`: librdkafka settings, such as TLS and SASL.

        Raises:
            ValueError: a setting would lose or misplace events.
        """
        if not 0 < len(tenant) <= NAME_LENGTH_MAX or not tenant.isprintable():
            raise ValueError(f"tenant: allowed are 1 to {NAME_LENGTH_MAX} printable characters")
        if batch_events < 1:
            raise ValueError("batch_events: allowed is 1 or more")
        changed = [name for name in (kafka or {}) if name in ("enable.idempotence", "acks", "partitioner")]
        if changed:
            raise ValueError(f"kafka: {', '.join(changed)} cannot be changed: events could be lost or misplaced")
        self._tenant = tenant
        self._source = source
        self._batch_events = batch_events
        self._linger_s = linger.total_seconds()
        self._topic = topic_prefix + TOPIC
        self._rd = rd.Producer({"bootstrap.servers": bootstrap, **_SAFE, **(kafka or {})})
        self._lock = threading.RLock()
        self._batch = _Batch()
        self._under_way = 0
        self._failures: list[Delivery] = []
        self._closed = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="tallybook-usage", daemon=True)
        self._tending.start()

    def check(self, timeout: timedelta = timedelta(seconds=8)) -> None:
        """Return if the brokers answer and have the topic.

        Raises:
            Unreachable: saying why.
        """
        try:
            known = self._rd.list_topics(self._topic, timeout=timeout.total_seconds()).topics[self._topic]
        except rd.KafkaException as error:
            raise Unreachable(str(error.args[0].str())) from error
        if known.error is not None:
            raise Unreachable(f"topic {self._topic}: {known.error.str()}")

    def send(self, event: UsageEvent, on_delivery: Callable[[Delivery], None] | None = None) -> None:
        """Take `event` along with the next batch; waits while the local queue is full.

        `on_delivery` is called from another thread once the brokers have the event, or do not. Failures without it
        are raised by `flush`.

        Raises:
            InvalidEvent: the event would be refused; names the field.
        """
        encoded = encode_event(as_record(event, self._source))
        with self._lock:
            if self._closed.is_set():
                raise ValueError("the producer is closed")
            if self._batch.events and self._batch.bytes + len(encoded) > BATCH_BYTES_MAX:
                self._seal()
            batch = self._batch
            if not batch.events:
                batch.began = time.monotonic()
            batch.events.append((event, on_delivery))
            batch.encoded.append(encoded)
            batch.bytes += len(encoded)
            if len(batch.events) >= self._batch_events:
                self._seal()

    def flush(self, timeout: timedelta = timedelta(seconds=130)) -> None:
        """Return when the brokers have every event that was sent.

        Raises:
            NotDelivered: naming those that they may not have. They are forgotten here: send them again.
        """
        with self._lock:
            self._seal()
        self._rd.flush(timeout.total_seconds())
        with self._lock:
            failures, self._failures = self._failures, []
            if failures or self._under_way:
                raise NotDelivered(failures, self._under_way)

    def close(self) -> None:
        """Flush, and end. Raises what `flush` does."""
        try:
            self.flush()
        finally:
            self._closed.set()
            self._tending.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except NotDelivered:
            if error is None:  # what went wrong in the block says more
                raise

    def _seal(self) -> None:
        """Hand the batch to librdkafka. Called with the lock held."""
        batch, self._batch = self._batch, _Batch()
        if not batch.events:
            return
        self._under_way += len(batch.events)
        while True:
            try:
                self._rd.produce(
                    self._topic,
                    encode_batch(self._tenant, batch.encoded),
                    self._tenant.encode(),
                    headers=self._headers(),
                    on_delivery=lambda error, message: self._delivered(batch, error, message),
                )
                return
            except BufferError:  # the local queue is full: wait for deliveries
                self._rd.poll(_POLL_S)
            except rd.KafkaException as error:
                self._finish(batch, -1, -1, str(error))
                return

    def _headers(self) -> list[tuple[str, str | bytes | None]]:
        return [
            ("ce_id", new_id().encode()),
            ("ce_type", b"tallybook.usage.UsageBatch"),
            ("ce_source", (self._source or "tallybook-sdk").encode()),
            ("ce_specversion", b"1.0"),
            ("ce_time", datetime.now(UTC).isoformat().replace("+00:00", "Z").encode()),
            ("schema", schema_fingerprint().hex().encode()),
            ("tenant", self._tenant.encode()),
        ]

    def _delivered(self, batch: _Batch, error: rd.KafkaError | None, message: rd.Message) -> None:
        if error is None:
            self._finish(batch, message.partition() or 0, message.offset() or 0, None)
        else:
            self._finish(batch, -1, -1, error.str())

    def _finish(self, batch: _Batch, partition: int, offset: int, error: str | None) -> None:
        reports = []
        with self._lock:
            self._under_way -= len(batch.events)
            for index, (event, on_delivery) in enumerate(batch.events):
                if on_delivery is not None:
                    reports.append((on_delivery, Delivery(event, partition, offset, index, error)))
                elif error is not None:
                    self._failures.append(Delivery(event, partition, offset, index, error))
        for on_delivery, delivery in reports:
            on_delivery(delivery)

    def _tend(self) -> None:
        """Seal what waited long enough, and take delivery reports."""
        while not self._closed.is_set():
            self._rd.poll(_POLL_S)
            with self._lock:
                if self._batch.events and time.monotonic() - self._batch.began >= self._linger_s:
                    self._seal()
