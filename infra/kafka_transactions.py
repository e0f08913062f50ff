"""One partition of commands, events and results on Kafka, written by one transactional producer at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from infra.errors import Transient
from infra.kafka_client import KafkaConfig, Position, Record
from infra.kafka_consumer import Consumer
from infra.kafka_producer import Member, TransactionalProducer
from infra.kafka_topics import committed_offsets, scan, start_offsets
from infra.telemetry import LAG, logger

log = logger("infra.kafka_transactions")

_MEMBERSHIP_S: Final = 5.0
_READ_AHEAD: Final[Mapping[str, Any]] = {"queued.min.messages": 10_000, "fetch.wait.max.ms": 250}


class KnownMembership:
    """What the group's own consumer said last about itself, for the loops in other threads.

    A consumer serves one thread at a time: asking it directly would wait for as long as another thread polls it.
    """

    def __init__(self) -> None:
        self._metadata: Any = None
        self._known = threading.Event()

    def forget(self) -> None:
        """The group is moving on: what is known is of the past."""
        self._known.clear()

    def learn(self, consumer: Consumer) -> None:
        """Ask, in the consumer's own thread."""
        self._metadata = consumer.group_metadata()
        self._known.set()

    def group_metadata(self) -> Any:
        """Raises `Transient` while the group is moving on."""
        if not self._known.wait(_MEMBERSHIP_S):
            raise Transient("Kafka: the consumer group is moving on")
        return self._metadata


class KafkaPartitionLog:
    """What `services.partition_writer.PartitionLog` asks for, on a real cluster. One thread at a time.

    The transactional id names the partition, so whoever is assigned it fences its predecessor. Offsets are sent with
    the metadata of `member`, the consumer that holds the partition in the group: a second fence, by generation.
    """

    def __init__(
        self,
        config: KafkaConfig,
        member: Member,
        *,
        group: str,
        transactional_id: str,
        commands: Position,
        history: Position,
    ) -> None:
        self._config = config
        self._member = member
        self._group = group
        self._transactional_id = transactional_id
        self._commands = commands
        self._history = history
        self._producer: TransactionalProducer | None = None
        self._reader: Consumer | None = None

    def fence(self) -> None:
        """End what predecessors left open, and keep them from writing. Raises `Transient`, `Misconfigured`."""
        self._producer = TransactionalProducer(self._config, self._transactional_id)
        self._producer.init()

    def history(self) -> Iterator[Sequence[Record]]:
        """Committed events up to the end of the partition. Raises `Transient`."""
        topic, partition = self._history
        return scan(self._config, topic, start_offsets(self._config, topic, [partition]))

    def resume(self) -> int:
        """Read on from the group's stable offset, or from the oldest command kept if it never had one."""
        topic, partition = self._commands
        oldest = start_offsets(self._config, topic, [partition])[partition]
        committed = committed_offsets(self._config, self._group, [self._commands]).get(self._commands)
        if committed is not None and committed < oldest:
            log.error("commands expired unread", topic=topic, partition=partition, first=committed, kept_from=oldest)
        offset = max(committed or 0, oldest)
        if self._reader is None:
            self._reader = Consumer(self._config, self._group, **_READ_AHEAD)
        self._reader.assign({self._commands: offset})
        return offset

    def poll(self, records_max: int, timeout_s: float) -> Sequence[Record]:
        """The next commands. Raises `Transient`."""
        assert self._reader is not None
        records = self._reader.poll(records_max, timeout_s)
        lag = LAG.labels(self._commands[0], self._commands[1])
        if self._commands in self._reader.at_end:
            lag.set(0)
        elif records:
            lag.set(len(records))
        return records

    def begin(self) -> None:
        self._open().begin()

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Add a record. Raises `Poison` if it is larger than any may be."""
        self._open().send(topic, value, key=key, headers=headers, partition=self._commands[1])

    def move(self, next_offset: int) -> None:
        self._open().send_offsets({self._commands: next_offset}, self._member)

    def commit(self) -> None:
        """Return when records and offset are committed. Raises `Transient`, `Conflict`, `Poison`."""
        self._open().commit()

    def drop(self) -> None:
        """Let go of the producer: its open transaction is ended by the next `fence`, or by the broker's time limit."""
        producer, self._producer = self._producer, None
        reader, self._reader = self._reader, None
        for each in (producer, reader):
            if each is not None:
                # It is dropped because it failed; what it says on leaving changes nothing.
                with contextlib.suppress(Exception):
                    each.close()

    def _open(self) -> TransactionalProducer:
        if self._producer is None:
            raise Transient("Kafka: the partition is not open")
        return self._producer
