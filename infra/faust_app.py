"""Faust, with the three things it lacks for exact results: the one module where its transport is subclassed.

1. It reads only what was committed. Faust's own consumer shows aborted records (`_CommittedThread`).
2. It starts each assignment at *our* stored offsets, whatever the consumer group says (`_Consumer.seek_to_committed`);
   so acknowledgements that Faust makes too early cost nothing.
3. No record is passed by in silence. Whatever leaves an agent's body is acknowledged, so nothing may leave it:
   `apply_or_exit` repeats or ends the process; and `micro_batches` proves that its records follow each other in the
   log, or ends the process. The supervisor restarts at the stored offsets.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import faust
from aiokafka.helpers import create_ssl_context
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP

from infra import telemetry
from infra.errors import Conflict, Misconfigured, Transient
from infra.kafka import KafkaConfig, Position, Record, scan, start_offsets
from infra.settings import Settings

log = telemetry.logger("infra.faust_app")

StoredOffsets = Callable[[set[Position]], Mapping[Position, int]]
"""First offset not applied yet, per (topic, partition); one that is missing starts at 0. Called in a thread."""

CRASHED = 70  # exit code: the supervisor starts the process again
_BATCHES_AHEAD = 3  # read while one is being applied; more only costs memory


class Batch(list[Record]):
    """Records of one partition that follow each other in the log."""

    def __init__(self, records: Sequence[Record], follows: int) -> None:
        super().__init__(records)
        self.topic = records[0].topic
        self.partition = records[0].partition
        self.follows = follows
        """The log holds no record from this offset up to the first one here: markers and aborted ones at most."""


class App(faust.App):
    """A Faust app that keeps nothing on disk."""

    settings: Settings
    sources: tuple[str, ...] = ()
    """Plain names of the topics it reads."""
    stored: StoredOffsets

    def _create_directories(self) -> None:
        """None: tables live in Postgres."""


def create_app(name: str, settings: Settings, *, topics: Sequence[str], stored_offsets: StoredOffsets) -> App:
    """An app that reads `topics` (plain names), committed records only, from `stored_offsets` on. Starts nothing."""
    app = App(
        settings.topic(name),
        broker=[f"aiokafka://{each.strip()}" for each in settings.require("kafka").split(",")],
        broker_credentials=_credentials(settings),
        processing_guarantee="at_least_once",
        key_serializer="raw",
        value_serializer="raw",
        topic_replication_factor=settings.topic_replication,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=4 * 1024 * 1024,
        broker_request_timeout=30,
        broker_session_timeout=10,
        broker_heartbeat_interval=3,
        broker_rebalance_timeout=15,
        broker_commit_every=1000,
        broker_max_poll_records=500,
        stream_buffer_maxsize=256,  # records of up to 1 MB: bounds the memory
        stream_wait_empty=False,
        producer_acks=-1,
        consumer_group_instance_id=settings.instance or None,
        web_enabled=False,
    )
    app.settings = settings
    app.sources = tuple(topics)
    app.stored = stored_offsets
    app.transport.Consumer = _Consumer  # type: ignore[misc]  # read by Faust from the instance
    return app


def source(app: App) -> Any:
    """The topics of `app` as one Faust topic, for its agent: `@app.agent(source(app), concurrency=1)`."""
    names = [app.settings.topic(each) for each in app.sources]
    # A record without a value is a record: Faust would drop it and say so in a log line only.
    return app.topic(*names, key_serializer="raw", value_serializer="raw", allow_empty=True)


def run(app: App) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code: 0, or 70 if the app broke down."""
    return asyncio.run(_run(app))


async def _run(app: App) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    app.loop = loop
    await app.start()
    crashed = asyncio.ensure_future(app._crashed.wait())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({crashed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        log.error("faust broke down", reason=repr(app._crash_reason))
        os._exit(CRASHED)
    try:
        await asyncio.wait_for(app.stop(), timeout=8)  # SIGKILL follows after 10 s
    except TimeoutError:
        log.warning("faust did not stop in time")
    os._exit(0)  # not by return: Faust leaves threads behind, and nothing is held that is not stored


async def micro_batches(
    stream: Any, max_records: int = 500, max_wait: float = 0.05, max_bytes: int = 4 * 1024 * 1024
) -> AsyncIterator[Batch]:
    """The records of `stream` by partition: as many as came in while the last batch was applied, up to the limits.

    A batch waits `max_wait` seconds for company. Ends the process if a record was passed by.
    """
    buffer = _Buffer(max_records, max_bytes)
    reader = asyncio.ensure_future(_read(stream, buffer))
    try:
        while True:
            await _either(buffer.filled.wait(), reader)
            if not buffer.is_full() and max_wait:
                await asyncio.sleep(max_wait)
            batch = buffer.take()
            if batch:
                yield batch
    finally:
        reader.cancel()


async def apply_or_exit(apply: Callable[[Batch], None], batch: Batch, *, patience_s: float = 60) -> None:
    """Call `apply(batch)` in a thread until it succeeds. Never raises, or the batch would count as done.

    `Transient` and `Conflict` are repeated for `patience_s`; then, and on anything else, the process ends.
    """
    deadline = time.monotonic() + patience_s
    for attempt in itertools.count():
        try:
            await asyncio.to_thread(apply, batch)
            return
        except (Transient, Conflict) as error:
            where = {"topic": batch.topic, "partition": batch.partition, "offset": batch[0].offset}
            if time.monotonic() > deadline:
                log.error("batch given up", reason=str(error), **where)
                os._exit(CRASHED)
            log.warning("batch repeated", reason=str(error), attempt=attempt, **where)
            await asyncio.sleep(min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1))
        except Exception:
            log.exception("batch failed", topic=batch.topic, partition=batch.partition, offset=batch[0].offset)
            os._exit(CRASHED)


def report_lag(app: App, batch: Batch) -> None:
    """Say how many records of the partition of `batch`, just applied, lie after it."""
    end = app.consumer.highwater(TP(app.settings.topic(batch.topic), batch.partition))
    if end is not None:
        telemetry.LAG.labels(batch.topic, str(batch.partition)).set(max(0, end - batch[-1].offset - 1))


class _Buffer:
    """Records read ahead, by partition."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.max_records = max_records
        self.max_bytes = max_bytes
        self.filled = asyncio.Event()
        self.has_room = asyncio.Event()
        self.has_room.set()
        self._waiting: dict[Position, deque[tuple[Record, int]]] = {}
        self._records = self._bytes = 0

    def add(self, record: Record, follows: int) -> None:
        """`follows` as in `Batch`."""
        self._waiting.setdefault((record.topic, record.partition), deque()).append((record, follows))
        self._moved(1, len(record.value or b""))

    def forget(self, position: Position) -> None:
        """Drop what waits of a partition whose reading began anew."""
        for record, _ in self._waiting.pop(position, ()):
            self._moved(-1, -len(record.value or b""))

    def is_full(self) -> bool:
        return self._records >= self.max_records or self._bytes >= self.max_bytes

    def take(self) -> Batch | None:
        """What waits of the partition that waits longest."""
        if not self._waiting:
            return None
        position = next(iter(self._waiting))
        waiting = self._waiting.pop(position)
        follows = waiting[0][1]
        taken: list[Record] = []
        size = 0
        while waiting and len(taken) < self.max_records and (not taken or size < self.max_bytes):
            record, _ = waiting.popleft()
            taken.append(record)
            size += len(record.value or b"")
        if waiting:
            self._waiting[position] = waiting  # at the back of the queue
        self._moved(-len(taken), -size)
        return Batch(taken, follows)

    def _moved(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size
        room = self._records < self.max_records * _BATCHES_AHEAD and self._bytes < self.max_bytes * _BATCHES_AHEAD
        (self.has_room.set if room else self.has_room.clear)()
        (self.filled.set if self._records else self.filled.clear)()


async def _read(stream: Any, buffer: _Buffer) -> None:
    """Fill `buffer`, with proof for each record that it follows the one before it in the log."""
    consumer = stream.app.consumer
    next_offsets: dict[Position, int] = {}
    async for event in stream.events():
        message = event.message
        position = (_plain(stream.app, message.topic), message.partition)
        offset, seen = message.offset, next_offsets.get(position)
        next_offsets[position] = offset + 1
        if seen is None or message.after is None or message.after != seen:
            # The first record of an assignment: it follows what is stored, or what it is read after.
            start = consumer.starts.get(position, 0)
            follows = start if seen is None or offset < seen or offset == start else seen
            buffer.forget(position) if follows == start else None
            if offset > follows:
                await _prove_gap(stream.app.settings, position, follows, offset)
        else:
            follows = seen
        buffer.add(_record(position, message), min(follows, offset))
        if not buffer.has_room.is_set():
            await buffer.has_room.wait()


async def _prove_gap(settings: Settings, position: Position, follows: int, offset: int) -> None:
    """Return if the log holds no record of `position` from `follows` up to `offset`; else end the process."""
    topic, partition = position

    def skipped() -> int | None:
        config = KafkaConfig.of(settings)
        kept_from = start_offsets(config, topic, [partition])[partition]
        if 0 < follows < kept_from:
            return follows  # retention took records that were never applied
        batches = scan(config, topic, {partition: max(follows, kept_from)}, {partition: offset})
        return next((each[0].offset for each in batches), None)

    try:
        found = await asyncio.to_thread(skipped)
    except Transient as error:
        _end("gap in a log could not be looked at", position, offset, reason=str(error))
    if found is not None:
        _end("records were passed by", position, offset, first=found)


def _end(said: str, position: Position, offset: int, **fields: Any) -> NoReturn:
    log.error(said, topic=position[0], partition=position[1], offset=offset, **fields)
    os._exit(CRASHED)


class _CommittedThread(AIOKafkaConsumerThread):
    """Faust's consumer, but blind to records of open and aborted transactions."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust has no setting for it
        return consumer


class _Consumer(Consumer):
    """Starts every assignment at the stored offsets."""

    app: App

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.starts: dict[Position, int] = {}
        """Where the reading of each assigned partition began."""
        self._after: dict[Any, int] = {}

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        offsets = dict(await super().seek_to_committed())
        sources = {self.app.settings.topic(each) for each in self.app.sources}
        ours = {(_plain(self.app, tp.topic), tp.partition): tp for tp in self.assignment() if tp.topic in sources}
        stored = await self._stored(set(ours))
        self.starts = {position: stored.get(position, 0) for position in ours}
        seeks = {tp: self.starts[position] for position, tp in ours.items()}
        self._after.clear()
        await self.seek_wait(seeks)
        self._after.clear()
        log.info("reading begins", starts={f"{topic}/{number}": at for (topic, number), at in self.starts.items()})
        return {**offsets, **seeks}

    async def _stored(self, positions: set[Position]) -> Mapping[Position, int]:
        """Our offsets. Without them nothing can be read: after half a minute the process ends."""
        for attempt in range(10):
            try:
                return await asyncio.to_thread(self.app.stored, positions)
            except (Transient, Conflict) as error:
                log.warning("stored offsets not available", reason=str(error))
                await asyncio.sleep(min(5.0, 0.1 * 2**attempt))
            except Exception:
                log.exception("stored offsets not readable")
                break
        os._exit(CRASHED)

    def _to_message(self, tp: Any, record: Any) -> Any:
        message = super()._to_message(tp, record)
        message.after = self._after.get(tp)  # type: ignore[attr-defined]  # the offset after the record that was fetched before this one
        self._after[tp] = record.offset + 1
        return message


async def _either(wanted: Any, worker: asyncio.Future[None]) -> None:
    """Wait for `wanted`; raise what ended `worker` if that comes first."""
    waiting = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({waiting, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done() and not waiting.done():
            worker.result()
            raise asyncio.CancelledError  # the stream ended: the app stops
    finally:
        waiting.cancel()


def _plain(app: App, topic: str) -> str:
    return topic[len(app.settings.topic_prefix) :]


def _record(position: Position, message: Any) -> Record:
    pairs = list(message.headers.items() if isinstance(message.headers, Mapping) else message.headers or ())
    named = {name: value or b"" for name, value in pairs}
    names = [name for name, _ in pairs]
    repeated = () if len(named) == len(names) else tuple(name for name in named if names.count(name) > 1)
    appended_at = datetime.fromtimestamp(round(message.timestamp * 1000) // 1000, UTC).replace(
        microsecond=round(message.timestamp * 1000) % 1000 * 1000
    )
    key, value = (None if each is None else bytes(each) for each in (message.key, message.value))
    return Record(position[0], position[1], message.offset, key, value, named, repeated, appended_at)


def _credentials(settings: Settings) -> Any:
    """TLS and SASL as the settings of every client say."""
    protocol = settings.kafka_security_protocol
    if protocol == "plaintext":
        return None
    context = None
    if protocol.endswith("ssl"):
        context = create_ssl_context(
            cafile=settings.kafka_ssl_ca or None,
            certfile=settings.kafka_ssl_certificate or None,
            keyfile=settings.kafka_ssl_key or None,
        )
    if protocol == "ssl":
        return faust.SSLCredentials(context=context)
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        raise Misconfigured("TALLYBOOK_KAFKA_SASL_MECHANISM: Faust speaks PLAIN and SCRAM only")
    return faust.SASLCredentials(
        username=settings.kafka_sasl_username,
        password=settings.kafka_sasl_password.get_secret_value(),
        mechanism=settings.kafka_sasl_mechanism or "PLAIN",
        ssl_context=context,
    )
