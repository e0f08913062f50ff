"""The one writer of a partition: commands in, events, results and offsets out, in one transaction per batch.

    fence --> fold the partition's events --> stable committed offset --> poll, decide, commit, poll, ...
      ^                                                                          |
      +-------- whatever went wrong: drop the log's producer and the state ------+

Nothing here reads a clock, starts a thread or asks for chance: the log and the clock are ports, and a simulator
drives the same code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from infra.clock import Clock
from infra.errors import Conflict, Poison, Transient
from infra.failpoints import failpoint
from infra.kafka import Record
from infra.telemetry import counter, logger
from services.command_decider import Answer, PartitionDecider, Spoiled
from services.quarantine import Output

log = logger("services.partition_writer")
_DETAILS = logging.getLogger("services.partition_writer")

BATCH_MAX: Final = 500  # commands in one transaction: its fixed cost is spread, and it stays far below its timeout
POLL_S: Final = 0.25
PAUSE_S: Final = 0.5
FENCED_PAUSE_S: Final = 1.0  # time to hear from the group that the partition is another's
PAUSE_MAX_S: Final = 10.0

_COMMANDS = counter("commands_total", "Commands answered, by outcome.", "outcome")
_TRANSACTIONS = counter("handler_transactions_total", "Transactions of the command handler, by end.", "end")


class PartitionLog(Protocol):
    """What the writer needs of the log: one partition of commands, events and results.

    Every call may raise `Transient` (the outcome is unknown), `Conflict` (another writer took over) or `Poison` (the
    log refuses a record for ever). After any of them only `drop` and `fence` may be called.
    """

    def fence(self) -> None:
        """Become the only writer; what a predecessor left open is ended."""

    def history(self) -> Iterable[Sequence[Record]]:
        """Every committed event of the partition, in order, up to its end; called after `fence`."""

    def resume(self) -> int:
        """Read commands on from the group's stable committed offset, which is returned."""

    def poll(self, records_max: int, timeout_s: float) -> Sequence[Record]:
        """The next commands, in order; none if none came in time."""

    def begin(self) -> None:
        """Open a transaction."""

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Add a record to it, in this partition of `topic`."""

    def move(self, next_offset: int) -> None:
        """Add the group's offset to it: the first command that is not answered."""

    def commit(self) -> None:
        """Return when all of it is committed."""

    def drop(self) -> None:
        """Let go of the transaction, the producer and what was fetched. Raises nothing."""


class PartitionWriter:
    """Answers the commands of one partition for as long as nobody else does."""

    def __init__(self, partition: int, partitions: int, log_: PartitionLog, clock: Clock) -> None:
        self._partition = partition
        self._partitions = partitions
        self._log = log_
        self._clock = clock
        self._decider: PartitionDecider | None = None
        self._batch_max = BATCH_MAX
        self._undecidable: dict[int, tuple[str, str]] = {}
        """Offsets of commands that cannot be written or that spoil the state: reason and detail."""
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether it folded the log and answers commands."""
        return self._decider is not None

    def run(self, stopped: Callable[[], bool]) -> None:
        """Work until `stopped`; a batch that was begun is finished first.

        Raises:
            CorruptHistory: the log contradicts itself; nothing may be decided on it.
            Misconfigured: nothing can work until an operator changes a setting.
        """
        try:
            while not stopped():
                pause = self.step()
                if pause and not stopped():
                    self._clock.sleep(pause)
        finally:
            self._drop()

    def step(self) -> float:
        """Open if need be, else answer the next batch; the seconds to wait before the next step."""
        batch: Sequence[Record] = ()
        try:
            if self._decider is None:
                self._open()
                return 0
            batch = self._log.poll(self._batch_max, POLL_S)
            if batch:
                failpoint("handler.after_poll")
                self._answer(self._decider, batch)
                self._succeeded(batch)
            return 0
        except (Spoiled, Poison) as e:
            self._drop()
            self._isolate(batch, e)
            return 0
        except Conflict as e:
            self._drop()
            log.warning("partition taken over by another writer", partition=self._partition, reason=str(e))
            return FENCED_PAUSE_S
        except Transient as e:
            self._drop()
            self._failures += 1
            log.warning("transaction dropped, its outcome is read back", partition=self._partition, reason=str(e))
            return float(min(PAUSE_S * 2 ** (self._failures - 1), PAUSE_MAX_S))

    def _open(self) -> None:
        self._log.fence()
        failpoint("handler.after_fence")
        decider = PartitionDecider(self._partition, self._partitions)
        events = sum(decider.fold(records) for records in self._log.history())
        failpoint("handler.after_fold")
        offset = self._log.resume()
        self._decider = decider
        log.info("partition opened", partition=self._partition, events=events, next_command=offset)

    def _answer(self, decider: PartitionDecider, batch: Sequence[Record]) -> None:
        wall = self._clock.now()
        answers = [self._answered(decider, record, wall) for record in batch]
        self._write([output for answer in answers for output in answer.outputs], batch[-1].offset + 1)
        for record, answer in zip(batch, answers, strict=True):
            _COMMANDS.labels(answer.outcome).inc()
            _report(record, answer)

    def _answered(self, decider: PartitionDecider, record: Record, wall: datetime) -> Answer:
        known = self._undecidable.get(record.offset)
        if known is not None:
            return decider.set_aside(record, *known)
        try:
            return decider.answer(record, wall)
        except Spoiled as e:
            # Here the culprit is known, so there is nothing to bisect.
            self._undecidable[record.offset] = ("decider_crashed", str(e))
            raise

    def _write(self, outputs: Sequence[Output], next_offset: int) -> None:
        self._log.begin()
        failpoint("handler.after_begin")
        for index, output in enumerate(outputs):
            self._log.append(output.topic, output.key, output.value, output.headers)
            if index == 0:
                failpoint("handler.after_first_produce")
        self._log.move(next_offset)
        failpoint("handler.after_send_offsets")
        failpoint("handler.before_commit")
        self._log.commit()
        failpoint("handler.after_commit")
        _TRANSACTIONS.labels("committed").inc()

    def _succeeded(self, batch: Sequence[Record]) -> None:
        self._failures = 0
        self._batch_max = min(self._batch_max * 2, BATCH_MAX)
        for offset in [each for each in self._undecidable if each <= batch[-1].offset]:
            del self._undecidable[offset]

    def _isolate(self, batch: Sequence[Record], error: Exception) -> None:
        """Halve the batch until the command that the log refuses, or that spoils the state, stands alone."""
        log.error("batch cannot be written", partition=self._partition, commands=len(batch), reason=str(error))
        if isinstance(error, Spoiled):
            return
        if len(batch) == 1:
            self._undecidable[batch[0].offset] = ("record_too_large", str(error))
        self._batch_max = max(1, len(batch) // 2)

    def _drop(self) -> None:
        if self._decider is not None:
            _TRANSACTIONS.labels("dropped").inc()
        self._decider = None
        self._log.drop()


def _report(record: Record, answer: Answer) -> None:
    """One line per command that somebody may ask about."""
    if answer.outcome == "quarantined":
        log.error(
            "command quarantined", tenant=answer.tenant, reason=answer.code, topic=record.topic,
            partition=record.partition, offset=record.offset,
        )  # fmt: skip
    elif answer.outcome == "rejected":
        log.info("command rejected", tenant=answer.tenant, code=answer.code, offset=record.offset)
    elif _DETAILS.isEnabledFor(logging.DEBUG):  # asked first: building the line costs as much as the decision
        log.debug("command answered", tenant=answer.tenant, outcome=answer.outcome, offset=record.offset)
