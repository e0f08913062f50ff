"""The command handler: decides every command, as the one writer of each tenant.

Consumes  billing.commands, group `tallybook-handler`, one loop and one transactional producer per partition.
Produces  billing.events, billing.results, billing.quarantine: events, results and offsets in one transaction.
Owns      the order, numbers and hash chain of each tenant's events; its state is a cache of billing.events.
Repeats safely because nothing it did outside a committed transaction is ever seen, and it begins again at the
          offset of the last one; a command sent twice is recognised by its idempotency key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, Final

from billing.errors import CorruptHistory
from infra import telemetry
from infra.clock import Clock, SystemClock
from infra.errors import Conflict, Transient
from infra.kafka import Consumer, KafkaConfig, Position, Record
from infra.kafka_transactions import KafkaPartitionLog, KnownMembership
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import Watchdog, watched
from services.command_decider import COMMANDS, EVENTS
from services.partition_writer import PartitionWriter

log = telemetry.logger("services.command_handler")

GROUP: Final = "tallybook-handler"
STOPPED: Final = 70
"""Exit code when the log contradicts itself, or another process has this one's name."""

_END: Final = -1  # librdkafka's OFFSET_END: the group's own consumer reads nothing, it only holds the partitions
_MEMBER: Final[Mapping[str, Any]] = {
    "session.timeout.ms": 6_000,
    "heartbeat.interval.ms": 1_500,
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 64,
    "fetch.message.max.bytes": 1_024,
}
_POLL_S: Final = 0.2
_STOP_S: Final = 8.0  # a process has 10 s in all


class _Loop:
    """A partition's writer and the thread it runs in while the partition is ours."""

    def __init__(self, position: Position, make: Callable[[Position], PartitionWriter]) -> None:
        self._stop = threading.Event()
        self._writer = make(position)
        self.position = position
        self.failure: BaseException | None = None
        run = copy_context().run  # so that log lines of the thread carry the process's fields
        self._thread = threading.Thread(target=run, args=(self._run,), name=f"{position[0]}-{position[1]}", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stop.set()

    def wait(self, timeout_s: float) -> bool:
        """True if it ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._writer.run(self._stop.is_set)
        except BaseException as e:  # carried to the main thread, which ends the process with it
            self.failure = e


class Watched:
    """A partition's log that tells the watchdog how far it is."""

    def __init__(
        self, inner: KafkaPartitionLog, position: Position, watchdog: Watchdog, is_ours: Callable[[], bool]
    ) -> None:
        self._inner = inner
        self._is_ours = is_ours
        self._position = position
        self._watchdog = watchdog
        self._next = 0

    def fence(self) -> None:
        self._inner.fence()

    def history(self) -> Iterable[Sequence[Record]]:
        return self._inner.history()

    def resume(self) -> int:
        self._next = self._inner.resume()
        if self._is_ours():  # a loop that ends late may open its partition once more
            self._watchdog.holds({self._position: self._next})
        return self._next

    def poll(self, records_max: int, timeout_s: float) -> Sequence[Record]:
        return self._inner.poll(records_max, timeout_s)

    def begin(self) -> None:
        self._inner.begin()

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes]) -> None:
        self._inner.append(topic, key, value, headers)

    def move(self, next_offset: int) -> None:
        self._inner.move(next_offset)
        self._next = next_offset

    def commit(self) -> None:
        self._inner.commit()
        self._watchdog.applied(self._position, self._next)

    def drop(self) -> None:
        self._inner.drop()


class Loops:
    """The loops of the partitions that the group gave to this process."""

    def __init__(
        self, make: Callable[[Position], PartitionWriter], membership: KnownMembership, watchdog: Watchdog
    ) -> None:
        self._make = make
        self._watchdog = watchdog
        self._membership = membership
        self._loops: dict[Position, _Loop] = {}
        self.ours: set[Position] = set()
        """The partitions that the group gave to this process."""

    def assigned(self, positions: list[Position]) -> dict[Position, int]:
        """Start a loop for each."""
        self._membership.forget()
        log.info("partitions assigned", partitions=sorted(partition for _, partition in positions))
        self.ours.update(positions)
        for each in positions:
            self._loops[each] = _Loop(each, self._make)
        return dict.fromkeys(positions, _END)

    def revoked(self, positions: list[Position]) -> None:
        """Let each finish its batch. One that does not end in time is fenced by its successor."""
        self.ours.difference_update(positions)
        self._watchdog.lets_go(positions)
        ending = [self._loops.pop(each) for each in positions if each in self._loops]
        if ending:
            log.info("partitions revoked", partitions=sorted(each.position[1] for each in ending))
        for each in ending:
            each.ask_to_stop()
        for each in ending:
            each.wait(_STOP_S)
            if each.failure is not None:
                raise each.failure
        self._membership.forget()

    def check(self) -> None:
        """Raises what ended a loop."""
        for each in self._loops.values():
            if each.failure is not None:
                raise each.failure

    def stop(self) -> None:
        self.revoked(list(self._loops))


def serve(settings: Settings, stopped: Callable[[], bool], clock: Clock) -> None:
    """Answer commands until `stopped`.

    Raises:
        CorruptHistory: the log contradicts itself.
        Misconfigured: a topic is missing, or the cluster refuses this client.
        Conflict: another process is in the group under the same instance name.
    """
    config = KafkaConfig.of(settings)
    static: dict[str, Any] = {"group.instance.id": settings.instance} if settings.instance else {}
    member = Consumer(config, GROUP, reset="latest", **static, **_MEMBER)

    membership = KnownMembership()
    watchdog = watched(settings)

    def make(position: Position) -> PartitionWriter:
        partition = position[1]
        partition_log = KafkaPartitionLog(
            config,
            membership,
            group=GROUP,
            transactional_id=f"{GROUP}-{COMMANDS}-{partition}",
            commands=position,
            history=(EVENTS, partition),
        )
        watched_log = Watched(partition_log, position, watchdog, lambda: position in loops.ours)
        return PartitionWriter(partition, settings.billing_partitions, watched_log, clock)

    loops = Loops(make, membership, watchdog)
    member.subscribe([COMMANDS], assigned=loops.assigned, revoked=loops.revoked, lost=loops.revoked)
    try:
        while not stopped():
            try:
                member.poll(1, _POLL_S)  # only to stay a member: the loops read the commands themselves
                membership.learn(member)
            except Transient as e:
                log.warning("group unreachable", reason=str(e))
            loops.check()
    finally:
        loops.stop()
        member.close()


def main(settings: Settings) -> int:
    """Run until SIGTERM; the exit code."""
    stop = on_signals()
    try:
        serve(settings, stop.is_set, SystemClock())
    except CorruptHistory as e:
        log.critical("the log contradicts itself; nothing can be decided on it", reason=str(e))
        return STOPPED
    except Conflict as e:
        log.error("another process runs under the same instance name", instance=settings.instance, reason=str(e))
        return STOPPED
    log.info("stopped")
    return 0
