"""The producers' client: usage events in, batches on Kafka out, and word of each event's delivery."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tallybook_sdk.batch import Batch, runs, tell
from tallybook_sdk.correction import Answer, Correction, amended, voided
from tallybook_sdk.delivery import BufferFull, Delivery, NotCorrected, NotDelivered, OnDelivery
from tallybook_sdk.event import NAME_LENGTH_MAX, InvalidEvent, UsageEvent
from tallybook_sdk.living import watch
from tallybook_sdk.spool import Fsync, Spool, SpoolUnusable
from tallybook_sdk.spread import Placing
from tallybook_sdk.transport import BY_KEY, Failure, Full, Transport
from tallybook_sdk.wire import Encoder, decode_event, encode_batch

TOPIC = "usage.events"
BATCH_BYTES_MAX = 900_000  # the topic takes records of 1 MB
ANSWER = timedelta(seconds=130)  # a little longer than Kafka tries
_POLL_S = 0.05
_AGAIN_S = 1.0  # pause before events of a spool are sent again

log = logging.getLogger(__name__)


class UsageProducer:
    """Sends usage events of one tenant, many to a Kafka record, and lets no failed delivery pass unnoticed.

    >>> with UsageProducer("localhost:9092", "acme", source="api-gateway") as usage:
    ...     usage.send(UsageEvent(type="api_call", customer="c-1", time=datetime.now(UTC), properties={"bytes": 512}))

    Leaving the block waits for every delivery and raises `NotDelivered` if one failed. Safe to share between threads.
    After a fork the child begins anew: what was buffered belongs to the parent, who sends it.
    """

    def __init__(
        self,
        bootstrap: str,
        tenant: str,
        *,
        source: str = "",
        batch_events: int = 500,
        linger: timedelta = timedelta(milliseconds=100),
        buffer_events: int = 100_000,
        when_full: Literal["wait", "raise"] = "wait",
        on_delivery: OnDelivery | None = None,
        spool: Path | str | None = None,
        fsync: Fsync = Fsync.NEVER,
        spread: Placing | None = None,
        topic_prefix: str = "",
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        """`linger`: longest wait of an event for company. `buffer_events`: most events under way; one more waits, or
        raises `BufferFull`. `on_delivery`: told of each event that `send` is given no report for. `spool`: folder that
        keeps what is not acknowledged, across the end of the process; `fsync`, how hard. `spread`: of a tenant whose
        usage lies in several partitions; see `PublishedSpread`. `kafka`: librdkafka settings, such as TLS and SASL.

        Raises:
            ValueError: a setting would lose or misplace events.
            SpoolUnusable: another process has the folder, or it is another tenant's.
            Unreachable: the API does not tell the spread.
        """
        if not 0 < len(tenant) <= NAME_LENGTH_MAX or not tenant.isprintable():
            raise ValueError(f"tenant: allowed are 1 to {NAME_LENGTH_MAX} printable characters")
        if batch_events < 1:
            raise ValueError("batch_events: allowed is 1 or more")
        if buffer_events < batch_events:
            raise ValueError("buffer_events: a whole batch must fit")
        if when_full not in ("wait", "raise"):
            raise ValueError("when_full: allowed are wait and raise")
        if spread is not None:
            spread.ready()
        self._topic = topic_prefix + TOPIC
        self._tenant = tenant
        self._transport = Transport(bootstrap, self._topic, tenant, source, kafka or {})
        self._batch_events = batch_events
        self._buffer_events = buffer_events
        self._linger_s = linger.total_seconds()
        self._when_full = when_full
        self._on_delivery = on_delivery
        self._source = source
        self._spread = spread
        self._encode = Encoder(source).encode
        self._spool: Spool | None = None
        self._inherited_spool = False
        self._begin()
        if spool is not None:
            self._spool = Spool(Path(spool), f"{self._topic} of {tenant}", fsync)
            self._send_left(self._spool)
        watch(self)

    def _begin(self) -> None:
        """Everything that is of this process."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._batches: dict[int, Batch] = {}
        """By partition; those that are being filled."""
        self._held = 0
        """Events taken and neither acknowledged nor told as failed."""
        self._serial = 0
        self._under_way: dict[int, Batch] = {}
        self._again: deque[tuple[float, Batch]] = deque()
        self._failures: list[tuple[Delivery, int]] = []
        """Those that nobody was told of, and their numbers in the spool."""
        self._closed = threading.Event()
        self._tending: threading.Thread | None = None

    def forget(self) -> None:
        """In the child of a fork: what is buffered, the connection and the spool are the parent's."""
        if self._spool is not None:
            self._spool.abandon()
            self._spool, self._inherited_spool = None, True
        self._transport.forget()
        was_closed = self._closed.is_set()
        self._begin()
        if was_closed:
            self._closed.set()

    def respread(self, spread: Placing) -> None:
        """Place events by a newer spread from now on; before its first event time comes, or those after are refused."""
        with self._lock:
            self._spread = spread

    def check(self, timeout: timedelta = timedelta(seconds=8)) -> None:
        """Return if the brokers answer and have the topic. Raises `Unreachable`, saying why."""
        self._transport.check(timeout.total_seconds())

    def send(self, event: UsageEvent, on_delivery: OnDelivery | None = None) -> None:
        """Take `event` along with the next batch. With a spool, it outlives this process once this returns.

        `on_delivery` is called from another thread once the brokers have the event, or do not. Failures without it
        are raised by `flush`.

        Raises:
            InvalidEvent: the event would be refused; names the field.
            BufferFull: too many are under way, and `when_full` says to raise.
            NotDelivered: too many failed and nobody asked; hands them over. `event` was not taken.
            OSError: the spool's disk is full; `event` was not taken.
        """
        encoded = self._encode(event)
        if len(encoded) > BATCH_BYTES_MAX:
            raise InvalidEvent("properties", f"the event takes {len(encoded)} bytes; allowed are {BATCH_BYTES_MAX}")
        with self._lock:
            if self._held >= self._buffer_events or self._tending is None:
                self._prepare()
            batch = self._batch_for(event, len(encoded))
            if not batch.events:
                batch.since = time.monotonic()
            if self._spool is not None:
                batch.numbers.append(self._spool.append(encoded))
            if on_delivery is not None:
                batch.reports[len(batch.events)] = on_delivery
            batch.add(event, encoded)
            self._held += 1
            if len(batch.events) >= self._batch_events:
                self._seal(batch)

    def _batch_for(self, event: UsageEvent, size: int) -> Batch:
        """The batch that has room for `event`, which is encoded in `size` bytes; with the lock held."""
        partition = BY_KEY
        if self._spread is not None:
            partition = self._spread.partition(self._tenant, event.source or self._source, event.id, event.time)
        batch = self._batches.get(partition)
        if batch is not None and batch.bytes + size > BATCH_BYTES_MAX:
            self._seal(batch)
            batch = None
        if batch is None:
            self._serial += 1
            batch = self._batches[partition] = Batch(partition, self._serial)
        return batch

    def flush(self, timeout: timedelta = ANSWER) -> None:
        """Return when the brokers have every event that was sent.

        Raises:
            NotDelivered: naming those that they may not have, failed or still under way at the deadline. The failed
                ones are forgotten here: send them again.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        with self._room:
            self._seal_all()
            while self._under_way and (left := deadline - time.monotonic()) > 0:
                self._rest(min(left, _POLL_S))
            self._hand_over([event for batch in self._under_way.values() for event in batch.events])

    def void(
        self, id: str, *, reason: str, source: str = "", time: datetime | None = None, timeout: timedelta = ANSWER
    ) -> None:
        """Take the event (`source`, `id`) back; returns when the brokers have that. Doing it again changes nothing.

        `source`: empty for the producer's. `time`: of the event; needed where the tenant's usage was spread in
        different ways over time. What was sent before stands before it; what comes of it, the event's fate tells.

        Raises:
            InvalidEvent: it would be refused; names the field.
            NotCorrected: the brokers may not have it; do it again.
        """
        self._correct(voided(self._tenant, source or self._source, id, reason, self._spread, time), timeout)

    def amend(self, event: UsageEvent, *, reason: str, timeout: timedelta = ANSWER) -> None:
        """Have the event with the source and id of `event` count as `event`. The rest as with `void`."""
        source = event.source or self._source
        self._correct(amended(self._tenant, source, event, self._encode(event), reason, self._spread), timeout)

    def _correct(self, correction: Correction, timeout: timedelta) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        answer = Answer(self._room)
        with self._room:
            self._open()
            self._seal_all()
            last, is_sent = self._serial, False
            while not answer.came:
                # An event that is sent again later would stand behind its correction.
                if not is_sent and not any(each.serial <= last for each in self._under_way.values()):
                    with suppress(Full):
                        self._transport.produce(correction.value, correction.partition, answer, correction.schema)
                        is_sent = True
                if (left := deadline - time.monotonic()) <= 0:
                    raise NotCorrected("no answer in time" if is_sent else "events before it are still under way")
                self._rest(min(left, _POLL_S))
        answer.check()

    def wait_for_room(self, timeout: timedelta | None = None) -> bool:
        """Return when one more event would be taken at once; False if that took longer than `timeout`."""
        seconds = None if timeout is None else timeout.total_seconds()
        with self._room:
            return self._room.wait_for(lambda: self._held < self._buffer_events, seconds)

    def close(self, timeout: timedelta = ANSWER) -> None:
        """Flush, and end. Raises what `flush` does; a spool keeps what it names as under way."""
        if self._closed.is_set():
            return
        try:
            self.flush(timeout)
        finally:
            self._closed.set()
            tending, self._tending = self._tending, None
            if tending is not None and tending is not threading.current_thread():
                tending.join()
            self._transport.close()
            if self._spool is not None:
                self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except NotDelivered:
            if error is None:  # what went wrong in the block says more
                raise

    def _prepare(self) -> None:
        """What is not done for every event: begin, or wait for room. Called with the lock held."""
        self._open()
        while self._held >= self._buffer_events:
            self._hand_over([])
            if self._when_full == "raise" or threading.current_thread() is self._tending:
                raise BufferFull(f"{self._held} events are under way, as many as allowed")
            self._seal_all()
            self._rest(_POLL_S)
            if self._closed.is_set():
                raise ValueError("the producer is closed")

    def _open(self) -> None:
        """Begin; with the lock held."""
        if self._closed.is_set():
            raise ValueError("the producer is closed")
        if self._inherited_spool:
            raise SpoolUnusable("the spool belongs to the process that was forked; make a producer with another folder")
        self._begin_tending()

    def _hand_over(self, under_way: list[UsageEvent]) -> None:
        """Raise `NotDelivered` with the failures that nobody was told of, and `under_way`; not if there are none."""
        failures, self._failures = self._failures, []
        for _, number in failures:
            self._settle(number, 1)
        self._held -= len(failures)
        if failures or under_way:
            raise NotDelivered([each for each, _ in failures], under_way, spooled=self._spool is not None)

    def _rest(self, seconds: float) -> None:
        """Let deliveries happen; with the lock held."""
        if threading.current_thread() is self._tending:
            self._transport.poll(seconds)  # nobody else does
        else:
            self._room.wait(seconds)

    def _seal_all(self) -> None:
        for batch in list(self._batches.values()):
            self._seal(batch)

    def _seal(self, batch: Batch) -> None:
        """Send the batch off; with the lock held."""
        del self._batches[batch.partition]
        if batch.events:
            if self._spool is not None:
                self._spool.sending()
            self._produce(batch)

    def _produce(self, batch: Batch) -> None:
        self._under_way[id(batch)] = batch
        value = encode_batch(self._tenant, batch.encoded)
        try:
            self._transport.produce(value, batch.partition, lambda *outcome: self._delivered(batch, *outcome))
        except Full:
            self._again.append((time.monotonic() + _POLL_S, batch))

    def _send_left(self, spool: Spool) -> None:
        """Send what the predecessor did not get acknowledged."""
        with self._lock:
            for number, encoded in spool.left:
                event = decode_event(encoded)
                batch = self._batch_for(event, len(encoded))
                batch.numbers.append(number)
                batch.add(event, encoded)
                self._held += 1
                if len(batch.events) >= self._batch_events:
                    self._seal(batch)
            if spool.left:
                log.info("%d events that a predecessor left are sent again", len(spool.left))
                self._begin_tending()
                self._seal_all()
            spool.left.clear()

    def _delivered(self, batch: Batch, failure: Failure | None, partition: int, offset: int) -> None:
        if failure is not None and self._goes_again(batch, failure):
            return
        error = None if failure is None else failure.text
        untold: list[tuple[Delivery, int]] = []
        if error is not None or batch.reports or self._on_delivery is not None:
            for index, event in enumerate(batch.events):
                report = batch.reports.get(index, self._on_delivery)
                if report is not None:
                    tell(report, Delivery(event, partition, offset, index, error))
                elif error is not None:
                    number = batch.numbers[index] if batch.numbers else 0
                    untold.append((Delivery(event, partition, offset, index, error), number))
        with self._room:
            # After the reports: whoever waits in `flush` finds them done.
            self._failures += untold
            kept = {number for _, number in untold}
            for first, count in runs([each for each in batch.numbers if each not in kept]):
                self._settle(first, count)
            self._held -= len(batch.events) - len(untold)
            del self._under_way[id(batch)]
            self._room.notify_all()

    def _goes_again(self, batch: Batch, failure: Failure) -> bool:
        """Whether the failed batch is sent once more: in halves if it was too large, later if a spool keeps it."""
        with self._lock:
            if failure.too_large and len(batch.events) > 1:
                del self._under_way[id(batch)]
                middle = len(batch.events) // 2
                self._produce(batch.part(0, middle))
                self._produce(batch.part(middle, len(batch.events)))
                return True
            if failure.may_heal and self._spool is not None:
                self._again.append((time.monotonic() + _AGAIN_S, batch))
                return True
        return False

    def _settle(self, first: int, count: int) -> None:
        if self._spool is not None:
            try:
                self._spool.settle(first, count)
            except OSError as error:
                log.warning("the spool cannot note deliveries, a successor would send them again: %s", error)

    def _begin_tending(self) -> None:
        if self._tending is None:
            self._tending = threading.Thread(target=self._tend, name="tallybook-usage", daemon=True)
            self._tending.start()

    def _tend(self) -> None:
        """Seal what waited long enough, take delivery reports, send again what is due."""
        closed = self._closed
        pause = max(min(_POLL_S, self._linger_s), 0.001)
        while not closed.is_set():
            self._transport.poll(pause)
            with self._lock:
                now = time.monotonic()
                for batch in [each for each in self._batches.values() if now - each.since >= self._linger_s]:
                    self._seal(batch)
                while self._again and self._again[0][0] <= now:
                    self._produce(self._again.popleft()[1])
