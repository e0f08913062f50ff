"""A partition of the log in memory, with the faults that a real one has. Exactly-once claims are tested on Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from billing.envelope import CommandEnvelope, CommandMeta, CommandResult, EventEnvelope
from billing.ids import TenantId
from infra.errors import Conflict, Transient
from infra.kafka import Record, headers
from schemas import codec

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


class StillClock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return (self.at - NOW).total_seconds()

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class Cluster:
    """What survives a handler: topics, the group's offset, and who may write."""

    topics: dict[str, list[Record]] = field(default_factory=dict)
    committed: int = 0
    epoch: int = 0

    def put(
        self, topic: str, key: bytes | None, value: bytes | None, named: Mapping[str, bytes], *, repeated: str = ""
    ) -> None:
        records = self.topics.setdefault(topic, [])
        again = (repeated,) if repeated else ()
        records.append(Record(topic, 0, len(records), key, value, named, again, NOW))

    def ask(self, tenant: str, command: object, key: str) -> None:
        """Append a command."""
        n = len(self.topics.get("billing.commands", ()))
        meta = CommandMeta(
            command_id=f"command-{n}",
            tenant=TenantId(tenant),
            idempotency_key=key,
            actor="test",
            correlation_id=f"command-{n}",
            sent_at=NOW,
        )
        value = codec.encode_command(CommandEnvelope(meta, command))
        named = headers(
            id=meta.command_id,
            type="tallybook.commands.X",
            source="tallybook/test",
            time=NOW,
            schema=codec.fingerprint_of(value),
            tenant=tenant,
        )
        self.put("billing.commands", tenant.encode(), value, named)

    @property
    def events(self) -> list[EventEnvelope]:
        return [codec.decode_event(each.value) for each in self.topics.get("billing.events", ())]

    @property
    def results(self) -> list[CommandResult]:
        return [codec.decode_result(each.value) for each in self.topics.get("billing.results", ())]

    @property
    def quarantine(self) -> list[Record]:
        return self.topics.get("billing.quarantine", [])


Fault = Callable[["MemoryLog", str], None]


class MemoryLog:
    """One handler's view. `fault` is called before each step with its name, and may raise."""

    def __init__(self, cluster: Cluster, fault: Fault = lambda log, step: None) -> None:
        self.cluster = cluster
        self.fault = fault
        self.steps: list[str] = []
        self._epoch = -1
        self._position = 0
        self._open: list[tuple[str, str, bytes, Mapping[str, bytes]]] = []
        self._next: int | None = None

    def fence(self) -> None:
        self._step("fence")
        self.cluster.epoch += 1
        self._epoch = self.cluster.epoch
        self._open, self._next = [], None

    def history(self) -> Iterator[Sequence[Record]]:
        self._step("history")
        yield list(self.cluster.topics.get("billing.events", ()))

    def resume(self) -> int:
        self._step("resume")
        self._position = self.cluster.committed
        return self._position

    def poll(self, records_max: int, timeout_s: float) -> Sequence[Record]:
        self._step("poll")
        commands = self.cluster.topics.get("billing.commands", [])
        taken = commands[self._position : self._position + records_max]
        self._position += len(taken)
        return taken

    def begin(self) -> None:
        self._step("begin")
        assert not self._open

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes]) -> None:
        self._step("append")
        self._open.append((topic, key, value, headers))

    def move(self, next_offset: int) -> None:
        self._step("move")
        self._next = next_offset

    def commit(self) -> None:
        self._step("commit")
        self.take_effect()

    def take_effect(self) -> None:
        """What a commit does on the cluster, whether its answer arrives or not."""
        if self._epoch != self.cluster.epoch:
            raise Conflict("fenced")
        for topic, key, value, named in self._open:
            self.cluster.put(topic, key.encode(), value, named)
        assert self._next is not None
        self.cluster.committed = self._next
        self._open, self._next = [], None

    def drop(self) -> None:
        self.steps.append("drop")
        self._open, self._next = [], None

    def _step(self, name: str) -> None:
        self.steps.append(name)
        self.fault(self, name)
        if name in ("begin", "append", "move", "commit") and self._epoch != self.cluster.epoch:
            raise Conflict("fenced")


def once(step: str, error: Exception, *, after_effect: bool = False) -> Fault:
    """Raise `error` at the first `step`; with `after_effect` the commit happened all the same."""
    left = [error]

    def fault(log: MemoryLog, name: str) -> None:
        if name == step and left:
            if after_effect:
                log.take_effect()
            raise left.pop()

    return fault


LOST = Transient("Kafka: timed out")
