"""A command handler without Kafka: the real rules, a log in memory, and answers that can be lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from billing.decision import Replayed, TenantState, chain, decide, record
from billing.envelope import CommandEnvelope, CommandMeta, CommandResult, EventEnvelope, Outcome
from billing.errors import Rejected
from billing.ids import TenantId
from infra.errors import Transient
from schemas.codec import encode_event
from schemas.hashing import hash_of_stored, payload_hash


class MemoryHandler:
    """Decides commands at once. `log` is every event there is."""

    def __init__(self, wall: Callable[[], datetime]) -> None:
        self._wall = wall
        self._states: dict[str, TenantState] = {}
        self._sent = 0
        self.log: list[EventEnvelope] = []
        self.listeners: list[Callable[[EventEnvelope], None]] = []
        self.asked: list[tuple[str, Any]] = []
        """Key and command of everything that was asked."""
        self.results: list[CommandResult] = []
        self.lose_before = 0
        """So many of the next commands never reach the log."""
        self.lose_after = 0
        """So many of the next answers are lost."""

    def state(self, tenant: str) -> TenantState:
        return self._states.setdefault(tenant, TenantState(TenantId(tenant)))

    def events(self, kind: type) -> list[Any]:
        return [each.event for each in self.log if isinstance(each.event, kind)]

    def request(
        self, tenant: str, command: Any, *, key: str, actor: str, correlation_id: str = "", causation_id: str = ""
    ) -> CommandResult:
        self.asked.append((key, command))
        if self.lose_before:
            self.lose_before -= 1
            raise Transient("the command was lost")
        result = self._decide(tenant, command, key, actor)
        self.results.append(result)
        if self.lose_after:
            self.lose_after -= 1
            raise Transient("the answer was lost")
        return result

    def ask(
        self, tenant: str, command: Any, *, key: str, actor: str, correlation_id: str = "", causation_id: str = ""
    ) -> Future[CommandResult]:
        future: Future[CommandResult] = Future()
        try:
            future.set_result(self.request(tenant, command, key=key, actor=actor))
        except Transient as e:
            future.set_exception(e)
        return future

    def must(self, tenant: str, command: Any, key: str = "") -> CommandResult:
        """As a client: the command has to be accepted."""
        self._sent += 1
        result = self.request(tenant, command, key=key or f"test:{self._sent}", actor="test")
        assert result.outcome is Outcome.ACCEPTED, (result.code, result.detail)
        return result

    def _decide(self, tenant: str, command: Any, key: str, actor: str) -> CommandResult:
        self._sent += 1
        meta = CommandMeta(
            command_id=f"command-{self._sent}",
            tenant=TenantId(tenant),
            idempotency_key=key,
            actor=actor,
            correlation_id=f"command-{self._sent}",
            sent_at=self._wall(),
        )
        asked = CommandEnvelope(meta, command)
        state, hashed = self.state(tenant), payload_hash(command)
        answer: dict[str, Any] = {
            "command_id": meta.command_id,
            "tenant": meta.tenant,
            "idempotency_key": key,
            "correlation_id": meta.correlation_id,
        }
        try:
            decided = decide(state, asked, hashed, self._wall())
        except Rejected as e:
            return CommandResult(**answer, sequence=state.sequence, code=e.code, detail=e.detail, field=e.field)
        if isinstance(decided, Replayed):
            return CommandResult(**answer, outcome=Outcome.ACCEPTED, replayed=True, sequence=state.sequence)
        made = chain(state, decided, asked, hashed, self._wall(), lambda each: hash_of_stored(encode_event(each)))
        record(state, made)
        for each in made:
            self.log.append(each.envelope)
            for listen in self.listeners:
                listen(each.envelope)
        return CommandResult(**answer, outcome=Outcome.ACCEPTED, sequence=state.sequence)
