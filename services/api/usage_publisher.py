"""Takes usage from the threads of the API to the log: one producer, batched among requests, answered by its acks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from billing.ids import TenantId
from billing.metering import UsageAmended, UsageBatch, UsageEvent, UsageVoided
from infra import kafka
from infra.clock import Clock
from infra.errors import Transient
from infra.kafka import Delivery, KafkaConfig, Producer
from schemas import codec
from schemas.topics import topic
from services.usage_placing import Layout, Spreads
from services.usage_sending import corrected

USAGE: Final = "usage.events"
ANSWER_S: Final = 10.0
_BYTES_MAX: Final = topic(USAGE).max_message_bytes // 2  # room for headers and the batch's own framing
_IDLE_S: Final = 0.05
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class _Record:
    tenant: str
    partition: int
    value: bytes
    id: str
    type: str
    at: datetime
    taken: Future[None]


class UsagePublisher:
    """Sends usage and waits for the broker. Any number of threads may publish at once."""

    def __init__(self, config: KafkaConfig, layout: Layout, clock: Clock) -> None:
        self._config = config
        self._layout = layout
        self._clock = clock
        self._records: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="usage-publisher", daemon=True)
        self._thread.start()

    def publish(self, tenant: str, events: Sequence[UsageEvent], spread: Spreads = ()) -> None:
        """Return when the broker has all of `events`, each in its place by the tenant's `spread`.

        Raises:
            Transient: not all of them were acknowledged in time; sending them again is free.
        """
        waiting = []
        for partition, together in self._layout.divided(tenant, spread, events).items():
            name = f"{tenant}/{together[0].source}/{together[0].id}"
            for value in _encoded(tenant, together):
                waiting.append(self._taken(tenant, partition, value, name, UsageBatch))
        self._wait(waiting)

    def correct(self, correction: UsageVoided | UsageAmended, partition: int) -> None:
        """Return when the broker has it. It is judged where it stands in the log, so that is no promise of success.

        Raises:
            Transient: it was not acknowledged in time; sending it again is free.
        """
        about = corrected(correction)
        name = f"{correction.tenant}/{about.source}/{about.id}"
        value = codec.encode_usage(correction)
        self._wait([self._taken(correction.tenant, partition, value, name, type(correction))])

    def _taken(self, tenant: str, partition: int, value: bytes, id: str, kind: type) -> Future[None]:
        record = _Record(tenant, partition, value, id, f"tallybook.usage.{kind.__name__}", self._clock.now(), Future())
        self._records.put(record)
        return record.taken

    def _wait(self, waiting: Sequence[Future[None]]) -> None:
        deadline = self._clock.monotonic_s() + ANSWER_S
        for taken in waiting:
            try:
                taken.result(max(deadline - self._clock.monotonic_s(), 0))
            except WaitedTooLong as e:
                raise Transient(f"Kafka did not acknowledge usage within {ANSWER_S:g} s") from e

    def close(self) -> None:
        """Send what was handed over, then stop."""
        self._records.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        producer = Producer(self._config, **{"linger.ms": 2, "delivery.timeout.ms": int(ANSWER_S * 1000)})
        pending: set[Future[None]] = set()
        while True:
            try:
                record = self._records.get(timeout=_POLL_S if pending else _IDLE_S)
            except queue.Empty:
                producer.poll(_POLL_S if pending else 0)
                continue
            if record is None:
                producer.flush()
                return
            pending.add(record.taken)
            try:
                _send(producer, record, pending)
            except Exception as e:  # it belongs to the request that waits, whatever it is
                pending.discard(record.taken)
                record.taken.set_exception(e)


def _send(producer: Producer, record: _Record, pending: set[Future[None]]) -> None:
    def delivered(delivery: Delivery) -> None:
        pending.discard(record.taken)
        if delivery.error is not None:
            record.taken.set_exception(delivery.error)
        else:
            record.taken.set_result(None)

    headers = kafka.headers(
        id=record.id,
        type=record.type,
        source="tallybook/api",
        time=record.at,
        schema=codec.fingerprint_of(record.value),
        tenant=record.tenant,
    )
    producer.send(
        USAGE, record.value, key=record.tenant, partition=record.partition, headers=headers, delivered=delivered
    )


def _encoded(tenant: str, events: Sequence[UsageEvent]) -> list[bytes]:
    """`events` as records, none larger than the log takes."""
    value = codec.encode_usage(UsageBatch(tenant=TenantId(tenant), events=tuple(events)))
    if len(value) <= _BYTES_MAX or len(events) == 1:
        return [value]
    middle = len(events) // 2
    return [*_encoded(tenant, events[:middle]), *_encoded(tenant, events[middle:])]
