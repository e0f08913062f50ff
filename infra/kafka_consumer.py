"""A consumer that commits nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import confluent_kafka as rd

from infra.errors import Conflict, Transient
from infra.kafka_client import KafkaConfig, Position, Record, translated

CONSUMER: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "fetch.queue.backoff.ms": 10,  # the default stalls a full second once the local queue was full
    "fetch.wait.max.ms": 100,
    "enable.partition.eof": True,
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 3_000,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Consumer:
    """Reads records; commits nothing by itself. One thread at a time."""

    def __init__(
        self, config: KafkaConfig, group: str, *, isolation: str = "read_committed", reset: str = "error", **extra: Any
    ) -> None:
        self._config = config
        settings = {"group.id": config.named(group), "isolation.level": isolation, "auto.offset.reset": reset}
        self._rd = rd.Consumer({**config.client(), **CONSUMER, **settings, **extra})
        self.at_end: set[Position] = set()
        """Partitions whose end was reached by the last `poll` that said something about them."""
        self._failed: Exception | None = None

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        assigned: Callable[[list[Position]], Mapping[Position, int] | None],
        revoked: Callable[[list[Position]], None],
        lost: Callable[[list[Position]], None],
    ) -> None:
        """Join the group. `assigned` may answer where to start; `lost` means: drop, another has them already."""

        def on_assign(consumer: rd.Consumer, given: list[rd.TopicPartition]) -> None:
            starts = assigned(self._plain(given)) or {}
            for each in given:
                each.offset = starts.get((self._unnamed(each.topic), each.partition), rd.OFFSET_STORED)
            consumer.assign(given)

        def on_revoke(consumer: rd.Consumer, taken: list[rd.TopicPartition]) -> None:
            self._forget(taken)
            revoked(self._plain(taken))

        def on_lost(consumer: rd.Consumer, taken: list[rd.TopicPartition]) -> None:
            self._forget(taken)
            lost(self._plain(taken))

        self._rd.subscribe(
            [self._config.named(each) for each in topics], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost
        )

    def assign(self, starts: Mapping[Position, int]) -> None:
        """Read these partitions from these offsets, without joining the group."""
        self.at_end.clear()
        self._rd.assign([rd.TopicPartition(self._config.named(t), p, at) for (t, p), at in starts.items()])

    def poll(self, records_max: int = 500, timeout_s: float = 0.1) -> list[Record]:
        """What came in; returns early once something did.

        Raises:
            Transient, Misconfigured: the cluster said so, after all records before it were returned.
            Conflict: another process is a member of the group under our name; this consumer is of no use any more.
        """
        if self._failed is not None:
            failure, self._failed = self._failed, None
            raise failure
        records: list[Record] = []
        first = self._rd.poll(timeout_s)
        if first is None:
            return records
        for message in [first, *self._rd.consume(records_max - 1, 0)] if records_max > 1 else [first]:
            error = message.error()
            position = (self._unnamed(message.topic() or ""), message.partition() or 0)
            if error is None:
                self.at_end.discard(position)
                records.append(_record(position[0], message))
            elif error.code() == rd.KafkaError._PARTITION_EOF:
                self.at_end.add(position)
            elif self._failed is None:
                self._failed = translated(error, f"reading {position[0]}[{position[1]}]")
                if error.code() == rd.KafkaError._FATAL:  # another process has our name in the group
                    self._failed = Conflict(str(self._failed))
        if self._failed is not None and not records:
            return self.poll()
        return records  # and what failed is said by the next call: these were taken off the queue

    def seek(self, position: Position, offset: int) -> None:
        """Read on from `offset`; what was fetched is forgotten."""
        self.at_end.discard(position)
        try:
            self._rd.seek(rd.TopicPartition(self._config.named(position[0]), position[1], offset))
        except rd.KafkaException as e:
            raise translated(e, "seeking") from e

    def pause(self, positions: Iterable[Position]) -> None:
        self._rd.pause([rd.TopicPartition(self._config.named(t), p) for t, p in positions])

    def resume(self, positions: Iterable[Position]) -> None:
        self._rd.resume([rd.TopicPartition(self._config.named(t), p) for t, p in positions])

    def position(self, position: Position) -> int | None:
        """Offset after the last record returned, markers of transactions included; None before the first."""
        offset = self._rd.position([rd.TopicPartition(self._config.named(position[0]), position[1])])[0].offset
        return None if offset < 0 else offset

    def end(self, position: Position, timeout_s: float) -> int:
        """Where the partition ends now, up to the first open transaction. Raises `Transient`."""
        place = rd.TopicPartition(self._config.named(position[0]), position[1])
        try:
            bounds = self._rd.get_watermark_offsets(place, timeout=timeout_s)
        except rd.KafkaException as e:
            raise translated(e, f"asking where {position[0]} ends") from e
        if bounds is None:
            raise Transient(f"Kafka: no answer in {timeout_s} s where {position[0]} ends")
        return int(bounds[1])

    def commit(self, next_offsets: Mapping[Position, int]) -> None:
        """Move the group's offsets, and wait for the answer. Raises `Transient`."""
        offsets = [rd.TopicPartition(self._config.named(t), p, at) for (t, p), at in next_offsets.items()]
        try:
            self._rd.commit(offsets=offsets, asynchronous=False)
        except rd.KafkaException as e:
            raise translated(e, "committing offsets") from e

    def group_metadata(self) -> Any:
        """What `TransactionalProducer.send_offsets` needs to fence a consumer that lost its partitions."""
        return self._rd.consumer_group_metadata()

    def close(self) -> None:
        """Leave the group at once."""
        self._rd.close()

    def _plain(self, positions: Iterable[rd.TopicPartition]) -> list[Position]:
        return [(self._unnamed(each.topic), each.partition) for each in positions]

    def _forget(self, positions: Iterable[rd.TopicPartition]) -> None:
        self.at_end.difference_update(self._plain(positions))

    def _unnamed(self, topic: str) -> str:
        return topic[len(self._config.prefix) :]


def _record(topic: str, message: rd.Message) -> Record:
    _, appended_ms = message.timestamp()
    pairs: list[tuple[str, Any]] = list(message.headers() or ())  # type: ignore[arg-type]
    named = {name: value or b"" for name, value in pairs}
    names = [name for name, _ in pairs]
    repeated = () if len(named) == len(names) else tuple(name for name in named if names.count(name) > 1)
    return Record(
        topic,
        message.partition() or 0,
        message.offset() or 0,
        message.key(),
        message.value(),
        named,
        repeated,
        _EPOCH + timedelta(milliseconds=appended_ms),
    )
