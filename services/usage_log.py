"""Single records of the usage log, read again: the texts of an event are there, and nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from billing.metering import UsageAmended
from infra.errors import Transient
from infra.kafka import Consumer, KafkaConfig, Record, end_offsets, start_offsets
from infra.settings import Settings
from projections.usage import TOPIC
from projections.usage_events import Place
from schemas.codec import UsageRecords, decode_usage_records
from schemas.errors import DecodeError
from services.usage_backfilling import reader
from services.usage_measuring import raw_of

PATIENCE_S: Final = 5.0
_GAP_MAX: Final = 200  # records between two wanted ones that are read rather than skipped by a new fetch
# A page wants few records here and there; by default the client would fetch far ahead of each.
_SPARSE: Final[Mapping[str, Any]] = {
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 4_096,
    "fetch.message.max.bytes": 262_144,
}

RawEvent = Mapping[str, Any]
"""An event as it stands in the log: id, source, type, customer, time (microseconds since 1970), properties."""


class UsageLog:
    """Reads records at given positions. Any number of threads may ask; one is served at a time."""

    def __init__(self, settings: Settings) -> None:
        self._config = KafkaConfig.of(settings)
        self._partitions = settings.usage_partitions
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None

    def events(self, places: Iterable[Place]) -> dict[Place, RawEvent]:
        """The events at `places`; one that the log has not any more, or that cannot be read, is missing.

        Raises:
            Transient: Kafka did not answer in time.
        """
        wanted = list(places)
        records = self.records((each.partition, each.offset) for each in wanted)
        # Once for each record: a page may hold many events of one batch.
        batches = {at: _events(record) for at, record in records.items()}
        made: dict[Place, RawEvent] = {}
        for place in wanted:
            events = batches.get((place.partition, place.offset), ())
            if 0 <= place.batch_index < len(events):
                made[place] = events[place.batch_index]
        return made

    def starts(self, partitions: Iterable[int]) -> dict[int, int]:
        """Of each of `partitions` the first offset that the log still has.

        Raises:
            Transient: Kafka did not answer in time.
        """
        return start_offsets(self._config, TOPIC, list(partitions))

    def between(self, partition: int, start: int, end: int) -> Iterable[Sequence[Record]]:
        """Every record of the partition from one offset up to another, in order.

        Raises:
            LogTooShort: the log does not have all of them any more.
            Transient: Kafka did not answer in time.
        """
        return reader(self._config)(partition, start, end)

    def record(self, partition: int, offset: int) -> Record | None:
        """The record there; None if the log does not have it, or not any more.

        Raises:
            Transient: Kafka did not answer in time.
        """
        # Beyond the end the client would begin anew at the beginning, and read everything.
        if partition >= self._partitions or offset >= end_offsets(self._config, TOPIC, [partition])[partition]:
            return None
        return self.records([(partition, offset)]).get((partition, offset))

    def records(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Record]:
        """The records at these partitions and offsets; those that the log has not any more are missing.

        Raises:
            Transient: Kafka did not answer in time.
        """
        by_partition: dict[int, list[list[int]]] = {}
        for partition, offset in sorted(set(wanted)):
            runs = by_partition.setdefault(partition, [])
            if runs and offset - runs[-1][-1] <= _GAP_MAX:
                runs[-1].append(offset)
            else:
                runs.append([offset])
        with self._lock:
            if self._consumer is None:
                group = f"usage-log-{uuid4().hex}"
                self._consumer = Consumer(self._config, group, reset="earliest", **_SPARSE)
            deadline = time.monotonic() + PATIENCE_S
            made: dict[tuple[int, int], Record] = {}
            while by_partition:
                made |= self._read({partition: runs.pop(0) for partition, runs in by_partition.items()}, deadline)
                by_partition = {partition: runs for partition, runs in by_partition.items() if runs}
            return made

    def close(self) -> None:
        """Let go of the brokers."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _read(self, wanted: dict[int, list[int]], deadline: float) -> dict[tuple[int, int], Record]:
        """One run of ascending offsets of each partition."""
        assert self._consumer is not None
        self._consumer.assign({(TOPIC, partition): offsets[0] for partition, offsets in wanted.items()})
        open_ = {partition: (set(offsets), offsets[-1]) for partition, offsets in wanted.items()}
        made = {}
        while open_:
            for record in self._consumer.poll(500, 0.1):
                if record.partition not in open_:
                    continue
                offsets, last = open_[record.partition]
                if record.offset in offsets:
                    made[record.partition, record.offset] = record
                if record.offset >= last:
                    del open_[record.partition]
            for _, partition in [each for each in self._consumer.at_end if each[1] in open_]:
                del open_[partition]
            if open_ and time.monotonic() > deadline:
                raise Transient(f"Kafka: {TOPIC} could not be read within {PATIENCE_S:g} s")
        return made


def event_in(record: Record, index: int) -> RawEvent | None:
    """The event at `index` of the record's batch; None if it cannot be read."""
    events = _events(record)
    return events[index] if 0 <= index < len(events) else None


def _events(record: Record) -> Sequence[RawEvent]:
    try:
        content = decode_usage_records(record.value)
    except DecodeError:
        return ()
    if isinstance(content, UsageAmended):
        return (raw_of(content.event),)
    return content.events if isinstance(content, UsageRecords) else ()
