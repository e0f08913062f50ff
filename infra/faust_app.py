"""Faust, with what it lacks for exact results: the one module where its transport is subclassed.

It reads only what was committed: Faust's own consumer shows aborted records (`_CommittedThread`). And it starts each
assignment at *our* stored offsets, whatever the consumer group says (`_Consumer.seek_to_committed`); so
acknowledgements that Faust makes too early cost nothing. One of its messages carries all records of a partition that
were fetched together (`_Consumer._getmany`): it takes its time for each message, however little is in it. Agents read
by `micro_batches` and write by `apply_or_exit`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import faust
from aiokafka import TopicPartition
from aiokafka.helpers import create_ssl_context
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP

from infra import telemetry
from infra.errors import Conflict, Misconfigured, Transient
from infra.kafka import Position
from infra.micro_batches import CRASHED as CRASHED
from infra.micro_batches import Batch as Batch
from infra.micro_batches import apply_or_exit as apply_or_exit
from infra.micro_batches import micro_batches as micro_batches
from infra.micro_batches import plain
from infra.settings import Settings
from infra.watchdog import Watchdog, watched

log = telemetry.logger("infra.faust_app")

FETCHED_MAX = 500  # records that one message carries at most

StoredOffsets = Callable[[set[Position]], Mapping[Position, int]]
"""First offset not applied yet, per (topic, partition); one that is missing starts at 0. Called in a thread."""


class App(faust.App):
    """A Faust app that keeps nothing on disk."""

    settings: Settings
    sources: tuple[str, ...] = ()
    """Plain names of the topics it reads."""
    stored: StoredOffsets
    watchdog: Watchdog | None = None
    """Runs while the app does."""

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
        consumer_max_fetch_size=512 * 1024,  # compressed, of one partition: the next has its turn after that
        broker_request_timeout=30,
        broker_session_timeout=8,  # a killed worker's partitions move within 15 s
        broker_heartbeat_interval=2,
        broker_rebalance_timeout=15,
        broker_max_poll_records=FETCHED_MAX,
        stream_buffer_maxsize=2,  # messages of up to `FETCHED_MAX` records or one fetch: bounds the memory
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
    app.watchdog = watched(app.settings)
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


def report_lag(app: App, batch: Batch) -> None:
    """Say that `batch` was applied, and how many records of its partition lie after it."""
    if app.watchdog is not None:
        app.watchdog.applied((batch.topic, batch.partition), batch.next_offset)
    try:
        end = app.consumer.highwater(TP(app.settings.topic(batch.topic), batch.partition))
    except AssertionError:  # it was taken away while the batch was applied: aiokafka has no other way to say so
        return
    if end is not None:
        telemetry.LAG.labels(batch.topic, str(batch.partition)).set(max(0, end - batch.next_offset))


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
        self._seeking = asyncio.Lock()

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        # Faust abandons a seek that a rebalance overtook, and it runs on: it must not have the last word.
        async with self._seeking:
            return await self._seek_to_stored()

    async def _seek_to_stored(self) -> Mapping[Any, int]:
        offsets = dict(await super().seek_to_committed())
        ours = self._ours(self.assignment())
        stored = await self._stored(set(ours))
        self.starts = {position: stored.get(position, 0) for position in ours}
        seeks = {tp: self.starts[position] for position, tp in ours.items()}
        self._after.clear()
        await self.seek_wait(seeks)
        self._after.clear()
        if self.app.watchdog is not None:
            self.app.watchdog.holds(self.starts, only=True)
        log.info("reading begins", starts={f"{topic}/{number}": at for (topic, number), at in self.starts.items()})
        return {**offsets, **seeks}

    def _ours(self, assigned: Iterable[Any]) -> dict[Position, Any]:
        """Those of our sources."""
        sources = {self.app.settings.topic(each) for each in self.app.sources}
        return {(plain(self.app, tp.topic), tp.partition): tp for tp in assigned if tp.topic in sources}

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        if self.app.watchdog is not None:
            self.app.watchdog.awaits(self._ours(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        if self.app.watchdog is not None:
            self.app.watchdog.lets_go([(plain(self.app, tp.topic), tp.partition) for tp in revoked])
        await super().on_partitions_revoked(revoked)

    def passed_end(self, position: Position, follows: int) -> int | None:
        """Where the partition ended at the last fetch, up to the first open transaction, if the client is past that and
        handed on nothing from `follows` up to there; None otherwise."""
        tp = TopicPartition(self.app.settings.topic(position[0]), position[1])
        try:
            client = self._thread._ensure_consumer()
            end = client.last_stable_offset(tp)
            at = client._subscription.subscription.assignment.state_value(tp).position
        except (AssertionError, AttributeError):  # it is being taken away: aiokafka has no other way to say so
            return None
        if end is None or not follows < end <= at or self._after.get(tp, 0) > follows:
            return None
        return int(end)

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

    async def _getmany(self, active_partitions: set[Any] | None, timeout: float) -> Any:
        """One message for all records of a partition that were fetched together."""
        fetched = await super()._getmany(active_partitions, timeout)
        return {tp: [records] for tp, records in fetched.items() if records}

    def _to_message(self, tp: Any, records: Any) -> Any:
        """A message that stands where its last record does."""
        message: Any = super()._to_message(tp, records[-1])
        message.records = records
        message.after = self._after.get(tp)  # the offset after the record that was fetched before these
        self._after[tp] = message.offset + 1
        return message

    def on_buffer_full(self, tp: Any) -> None:
        """Go on: who fills the buffer waits for room in it. Faust would sleep a second once all partitions pause."""

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """None are kept: see `_new_offset`."""

    def _new_offset(self, tp: Any) -> int | None:
        """What the group is told, for those who watch it: up to where one agent took the records, in their order."""
        acked = self._acked[tp]
        if not acked:
            return None
        reached = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()
        return int(reached)


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
