"""Asking for a change: a command goes to its tenant's partition, and its result is found among all results."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as WaitedTooLong
from types import TracebackType
from typing import Any, Final
from uuid import uuid4

from billing.envelope import CommandEnvelope, CommandMeta, CommandResult
from billing.errors import Rejected
from billing.ids import TenantId
from infra.clock import Clock, SystemClock
from infra.errors import Poison, Transient
from infra.kafka import Consumer, Delivery, KafkaConfig, Producer, end_offsets, headers, partition_for
from infra.settings import Settings
from infra.telemetry import logger
from schemas import codec
from schemas.errors import DecodeError
from schemas.topics import topic

log = logger("services.commands")

COMMANDS: Final = "billing.commands"
RESULTS: Final = "billing.results"
KEY_LENGTH_MAX: Final = 255
REQUEST_S: Final = 10.0
"""How long a caller waits for a result, unless it says otherwise."""

_SENDER: Final[Mapping[str, Any]] = {"linger.ms": 1, "delivery.timeout.ms": 30_000}
_LISTENER: Final[Mapping[str, Any]] = {"fetch.wait.max.ms": 500, "queued.min.messages": 1_000}
_APPEND_S: Final = 30.0
_POLL_S: Final = 0.1
_RETRY_S: Final = 0.5
_BYTES_MAX: Final = topic(COMMANDS).max_message_bytes - 4096  # less headers and what a batch adds


class CommandClient:
    """Sends commands and waits for their results. May be used from many threads and from asyncio at once.

    A timeout is `Transient`: the outcome is unknown. Repeating with the same key and the same command is always safe:
    it finds what the first one did, or does it.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._config = KafkaConfig.of(settings)
        self._partitions = settings.billing_partitions
        self._clock = clock or SystemClock()
        self._producer: Producer | None = None
        self._waiting: dict[str, Future[CommandResult]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._listening = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> CommandClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(
        self,
        tenant: str,
        command: Any,
        *,
        key: str,
        actor: str,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Append a command and return its id once the log holds it; nobody waits for its result.

        Raises:
            Rejected: the command is larger than a record may be.
            EncodeError: it holds a value that the log cannot.
            Transient: the log did not confirm it; it may lie there all the same.
        """
        envelope = self._envelope(tenant, command, key, actor, correlation_id, causation_id)
        _within(self._append(envelope, traceparent), _APPEND_S, "the log did not confirm the command")
        return envelope.meta.command_id

    def request(
        self,
        tenant: str,
        command: Any,
        *,
        key: str,
        actor: str,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        timeout: float = REQUEST_S,
    ) -> CommandResult:
        """What became of the command; a rejection is a result, too.

        Raises:
            Rejected, EncodeError: as `send`.
            Transient: no result within `timeout` seconds: the outcome is unknown, repeat with the same key.
        """
        envelope = self._envelope(tenant, command, key, actor, correlation_id, causation_id)
        self.listen(timeout)  # before it is appended, or the result could pass unseen
        result: CommandResult = _within(
            self._ask(envelope, traceparent), timeout, "no result in time", self._forget(envelope)
        )
        return result

    def ask(
        self,
        tenant: str,
        command: Any,
        *,
        key: str,
        actor: str,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Future[CommandResult]:
        """The result, once it is there; commands of one thread are decided in the order of its calls.

        Whoever stops waiting cancels it. Its error is `Transient` (the outcome is unknown); otherwise as `request`.
        """
        envelope = self._envelope(tenant, command, key, actor, correlation_id, causation_id)
        self.listen()  # before it is appended, or the result could pass unseen
        result = self._ask(envelope, traceparent)
        forget = self._forget(envelope)
        result.add_done_callback(lambda _: forget())
        return result

    async def request_async(
        self,
        tenant: str,
        command: Any,
        *,
        key: str,
        actor: str,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        timeout: float = REQUEST_S,
    ) -> CommandResult:
        """As `request`, without holding the event loop."""
        envelope = self._envelope(tenant, command, key, actor, correlation_id, causation_id)
        if not self._listening:
            await asyncio.to_thread(self.listen, timeout)
        forget = self._forget(envelope)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._ask(envelope, traceparent)), timeout)
        except TimeoutError as e:
            raise Transient(f"no result in time ({timeout:g} s); the outcome is unknown") from e
        finally:
            forget()

    def listen(self, timeout_s: float = REQUEST_S) -> None:
        """Take the position on the results: what is sent from now on is answered. `request` does it if need be.

        Raises:
            Transient: the cluster does not answer.
        """
        with self._lock:
            if self._listening:
                return
            consumer = Consumer(self._config, f"results-{uuid4().hex}", **_LISTENER)
            try:
                consumer.assign(self._ends(timeout_s))
            except BaseException:
                consumer.close()
                raise
            self._start(lambda: self._listen(consumer), "results")
            self._listening = True

    def close(self) -> None:
        """Stop listening; whoever still waits gets `Transient`."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for each in waiting:
            _settle(each, Transient("the client was closed before the result came; the outcome is unknown"))
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _envelope(
        self, tenant: str, command: Any, key: str, actor: str, correlation_id: str | None, causation_id: str | None
    ) -> CommandEnvelope:
        if not 0 < len(key) <= KEY_LENGTH_MAX or not key.isprintable():
            raise Rejected(
                "idempotency_key_invalid",
                f"a key has 1 to {KEY_LENGTH_MAX} printable characters",
                field="idempotency_key",
            )
        command_id = str(uuid4())
        meta = CommandMeta(
            command_id=command_id,
            tenant=TenantId(tenant),
            idempotency_key=key,
            actor=actor,
            correlation_id=correlation_id or command_id,
            causation_id=causation_id,
            sent_at=self._clock.now(),
        )
        return CommandEnvelope(meta, command)

    def _ask(self, envelope: CommandEnvelope, traceparent: str | None) -> Future[CommandResult]:
        assert self._listening
        result: Future[CommandResult] = Future()
        with self._lock:
            self._waiting[envelope.meta.command_id] = result

        def check(appended: Future[int]) -> None:
            if (error := appended.exception()) is not None:
                _settle(result, error)

        try:
            self._append(envelope, traceparent).add_done_callback(check)
        except BaseException:
            self._forget(envelope)()
            raise
        return result

    def _append(self, envelope: CommandEnvelope, traceparent: str | None) -> Future[int]:
        """The offset of the command, once the log holds it."""
        meta = envelope.meta
        value = codec.encode_command(envelope)
        if len(value) > _BYTES_MAX:
            raise Rejected("command_too_large", f"{len(value)} bytes where a command has at most {_BYTES_MAX}")
        appended: Future[int] = Future()

        def delivered(delivery: Delivery) -> None:
            _settle(appended, _explained(delivery.error) if delivery.error is not None else delivery.offset)

        self._sender().send(
            COMMANDS,
            value,
            key=meta.tenant,
            headers=headers(
                id=meta.command_id,
                type=f"tallybook.commands.{type(envelope.command).__name__}",
                source=f"tallybook/{meta.idempotency_key.partition(':')[0]}",
                time=meta.sent_at,
                schema=codec.fingerprint_of(value),
                tenant=meta.tenant,
                traceparent=traceparent,
            ),
            partition=partition_for(meta.tenant, self._partitions),
            delivered=delivered,
        )
        return appended

    def _sender(self) -> Producer:
        with self._lock:
            if self._stop.is_set():
                raise Transient("the client is closed")
            if self._producer is None:
                self._producer = producer = Producer(self._config, **_SENDER)
                self._start(lambda: self._deliver(producer), "commands")
            return self._producer

    def _forget(self, envelope: CommandEnvelope) -> Callable[[], None]:
        def forget() -> None:
            with self._lock:
                self._waiting.pop(envelope.meta.command_id, None)

        return forget

    def _ends(self, timeout_s: float = REQUEST_S) -> dict[tuple[str, int], int]:
        ends = end_offsets(self._config, RESULTS, range(self._partitions), timeout_s=timeout_s)
        return {(RESULTS, partition): offset for partition, offset in ends.items()}

    def _start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=f"command-client-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _deliver(self, producer: Producer) -> None:
        while not self._stop.is_set():
            producer.poll(_POLL_S)

    def _listen(self, consumer: Consumer) -> None:
        try:
            while not self._stop.is_set():
                try:
                    for record in consumer.poll(500, _POLL_S):
                        self._take(record.value)
                except Exception as e:  # whatever failed, those who wait time out, and later ones must be heard
                    log.warning("results unreadable, listening again from their end", reason=str(e))
                    self._stop.wait(_RETRY_S)
                    self._rejoin(consumer)
        finally:
            consumer.close()

    def _rejoin(self, consumer: Consumer) -> None:
        try:
            consumer.assign(self._ends())
        except Transient as e:
            log.warning("results unreachable", reason=str(e))

    def _take(self, value: bytes | None) -> None:
        try:
            result = codec.decode_result(value)
        except DecodeError as e:
            log.error("result cannot be read", reason=str(e))
            return
        with self._lock:
            waiter = self._waiting.pop(result.command_id, None)
        if waiter is not None:
            _settle(waiter, result)


def _settle(future: Future[Any], outcome: Any) -> None:
    """Give `future` its outcome, unless it has one or nobody wants it any more."""
    with contextlib.suppress(InvalidStateError):  # settled or cancelled in this moment
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _explained(error: Exception) -> Exception:
    if isinstance(error, Poison):
        return Rejected("command_too_large", str(error))
    return error


def _within(future: Future[Any], timeout_s: float, said: str, then: Callable[[], object] = lambda: None) -> Any:
    try:
        return future.result(timeout_s)
    except WaitedTooLong as e:
        raise Transient(f"{said} ({timeout_s:g} s); the outcome is unknown") from e
    finally:
        then()
