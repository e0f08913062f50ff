"""Producers that let no failed delivery pass unnoticed, with and without transactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import confluent_kafka as rd

from infra.errors import Transient
from infra.kafka_client import Delivery, KafkaConfig, Position, translated

PRODUCER: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",  # as Java, aiokafka and Faust; librdkafka's own default places keys elsewhere
    "linger.ms": 5,
    "compression.type": "lz4",
    "delivery.timeout.ms": 120_000,
    "message.max.bytes": 2_097_164,  # each topic has its own, lower limit
}
TRANSACTION: Mapping[str, Any] = {
    "transaction.timeout.ms": 60_000,  # longer than a broker takes to restart, or every restart fences
    "delivery.timeout.ms": 60_000,  # librdkafka wants it no longer than the transaction
    "retry.backoff.ms": 5,  # the default makes each commit wait 100 ms
    "linger.ms": 0,  # a commit flushes anyway
}


class Producer:
    """Sends records, and lets no failed delivery pass unnoticed. One thread at a time."""

    def __init__(self, config: KafkaConfig, **overrides: Any) -> None:
        self._config = config
        self._rd = rd.Producer({**config.client(), **PRODUCER, **overrides})
        self._failed: Exception | None = None

    def send(
        self,
        topic: str,
        value: bytes,
        *,
        key: str,
        headers: Mapping[str, bytes],
        partition: int | None = None,
        delivered: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Hand `value` to the sender; the first failed delivery is raised by the next `send` or `flush`.

        `delivered` is called from within a later `send`, `poll` or `flush` and then owns the failure.

        Raises:
            Poison: larger than any record may be.
            Transient: an earlier record could not be delivered.
        """
        assert key

        def report(error: rd.KafkaError | None, message: rd.Message) -> None:
            failure = None if error is None else translated(error, f"sending to {topic}")
            if delivered is not None:
                offset = message.offset()
                taken = -1 if failure is not None or offset is None else offset
                delivered(Delivery(topic, message.partition() or 0, taken, failure))
            elif failure is not None and self._failed is None:
                self._failed = failure

        while True:
            self.poll()
            try:
                self._rd.produce(
                    self._config.named(topic),
                    value,
                    key.encode(),
                    partition=-1 if partition is None else partition,
                    on_delivery=report,
                    headers=list(headers.items()),
                )
                return
            except BufferError:  # the local queue is full: make room, then try again
                self._rd.poll(0.1)
            except rd.KafkaException as e:
                raise translated(e, f"sending to {topic}") from e

    def poll(self, timeout_s: float = 0) -> None:
        """Take delivery reports; raises what `send` does."""
        self._rd.poll(timeout_s)
        if self._failed is not None:
            failure, self._failed = self._failed, None
            raise failure

    def flush(self, timeout_s: float = 30) -> None:
        """Return when every record sent was taken by the brokers.

        Raises:
            Transient: some are still under way, or one failed; they may lie there all the same.
            Poison: one was larger than its topic takes.
        """
        left = self._rd.flush(timeout_s)
        self.poll()
        if left:
            raise Transient(f"Kafka, flushing: {left} records still under way after {timeout_s} s")

    def close(self, timeout_s: float = 10) -> None:
        """Flush, then let go."""
        self.flush(timeout_s)


class Member(Protocol):
    """A consumer that holds partitions in a group."""

    def group_metadata(self) -> Any:
        """What fences it, once the group moved on without it."""


class TransactionalProducer(Producer):
    """The only writer under its transactional id: whoever initialises it last fences its predecessors.

    After any error here the outcome of the transaction is unknown: drop this object and the state that
    depends on it, make a new one with the same id, and read back what was committed. Never commit again on
    the same one: a delayed end of transaction could reach into the next (librdkafka has no KIP-890).
    """

    def __init__(self, config: KafkaConfig, transactional_id: str, **overrides: Any) -> None:
        super().__init__(config, **{**TRANSACTION, "transactional.id": config.named(transactional_id), **overrides})

    def init(self, timeout_s: float = 30) -> None:
        """Fence predecessors, and finish what they left open."""
        self._try("initialising transactions", self._rd.init_transactions, timeout_s)

    def begin(self) -> None:
        self._try("beginning a transaction", self._rd.begin_transaction)

    def send_offsets(self, next_offsets: Mapping[Position, int], consumer: Member, timeout_s: float = 30) -> None:
        """Let the group's positions move with the transaction."""
        positions = [rd.TopicPartition(self._config.named(t), p, at) for (t, p), at in next_offsets.items()]
        metadata = consumer.group_metadata()
        self._try("adding offsets", self._rd.send_offsets_to_transaction, positions, metadata, timeout_s)

    def commit(self, timeout_s: float = 30) -> None:
        """Return when records and offsets are committed."""
        self._try("committing", self._rd.commit_transaction, timeout_s)
        self.poll()

    def abort(self, timeout_s: float = 30) -> None:
        """Return when nothing of the transaction will ever be read. The object must still be dropped."""
        self._rd.purge()
        self._try("aborting", self._rd.abort_transaction, timeout_s)
        self._failed = None

    def close(self, timeout_s: float = 0) -> None:
        """Let go without waiting: an open transaction is aborted by the successor's `init`."""
        self._rd.purge()
        self._rd.flush(timeout_s)

    def _try(self, doing: str, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except rd.KafkaException as e:
            if self._failed is not None and not isinstance(self._failed, Transient):
                raise self._failed from e  # the delivery's own reason says more than the transaction's
            raise translated(e, doing) from e
