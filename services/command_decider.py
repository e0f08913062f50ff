"""From one record of `billing.commands` to the records that answer it: events and a result, or a quarantined original.

Holds the state of every tenant of one partition: a cache of that partition of `billing.events`. No input or output of
its own, no clock: what it returns is written by `services.partition_writer`, or was never decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from billing.decision import Chained, Replayed, TenantState, chain, decide, record
from billing.envelope import CommandEnvelope, CommandResult, EventEnvelope, Outcome
from billing.errors import CorruptHistory, Rejected
from billing.ids import TenantId
from infra.errors import Misconfigured, Transient
from infra.kafka import Record, headers, partition_for
from schemas import codec
from schemas.errors import DecodeError, EncodeError
from schemas.hashing import hash_of_stored, payload_hash
from schemas.topics import topic
from services.quarantine import Output, quarantined

COMMANDS: Final = "billing.commands"
EVENTS: Final = "billing.events"
RESULTS: Final = "billing.results"
SOURCE: Final = "tallybook/command-handler"
_DETAIL_LENGTH_MAX = 2_000
_OVERHEAD_BYTES = 1024  # of a batch and a record around key, value and headers; generous
_RECORD_BYTES_MAX = min(topic(EVENTS).max_message_bytes, topic(RESULTS).max_message_bytes) - _OVERHEAD_BYTES


class Spoiled(Exception):
    """Recording a decision failed half-way: the state is of no use. Fold the log, and set the command aside."""


class _Unanswerable(Exception):
    """The command can never be decided: `reason` for programs, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Answer:
    """What one command leads to, to be written in one transaction with its offset."""

    outputs: tuple[Output, ...]
    outcome: str
    """`accepted`, `replayed`, `rejected` or `quarantined`."""
    tenant: str = ""
    code: str = ""


class PartitionDecider:
    """Decides the commands of one partition, in order."""

    def __init__(self, partition: int, partitions: int) -> None:
        self._partition = partition
        self._partitions = partitions
        self._tenants: dict[str, TenantState] = {}

    def fold(self, records: Iterable[Record]) -> int:
        """Record what the log already holds; how many events that was.

        Raises:
            CorruptHistory: an event cannot be read or does not follow the one before; names its position.
        """
        folded = 0
        for each in records:
            try:
                envelope = codec.decode_event(each.value)
            except DecodeError as e:
                raise CorruptHistory(f"{each.topic}[{each.partition}]@{each.offset}: {e}") from e
            try:
                self._tenant(envelope.meta.tenant).apply(envelope, hash_of_stored(each.value or b""))
            except CorruptHistory as e:
                raise CorruptHistory(f"{each.topic}[{each.partition}]@{each.offset}: {e}") from e
            folded += 1
        return folded

    def answer(self, asked: Record, wall: datetime) -> Answer:
        """Decide one command and record what follows from it.

        Raises:
            Spoiled: its events could not be recorded; this object is of no use any more.
            Transient, Misconfigured: the schema registry does not answer; nothing was decided.
        """
        try:
            envelope = self._read(asked)
        except _Unanswerable as e:
            return self.set_aside(asked, e.reason, e.detail)
        try:
            return self._decide(asked, envelope, wall)
        except (Spoiled, Transient, Misconfigured):
            raise
        except _Unanswerable as e:
            return self.set_aside(asked, e.reason, e.detail, envelope)
        except Exception as e:  # the decider is pure: what fails now fails on every repetition, so it is set aside
            return self.set_aside(asked, "decider_crashed", f"{type(e).__name__}: {e}", envelope)

    def set_aside(self, asked: Record, reason: str, detail: str, envelope: CommandEnvelope | None = None) -> Answer:
        """Quarantine a command that can never be decided, and tell its sender, if it says who that is."""
        outputs = [quarantined(asked, reason, detail)]
        result = self._refusal(asked, reason, detail, envelope)
        if result is not None:
            outputs.append(result_output(result, _traceparent(asked)))
        return Answer(tuple(outputs), "quarantined", _text(asked.key), reason)

    def _read(self, asked: Record) -> CommandEnvelope:
        try:
            envelope = codec.decode_command(asked.value)
        except DecodeError as e:
            raise _Unanswerable(e.reason, e.detail) from e
        tenant = envelope.meta.tenant
        if not tenant or _text(asked.key) != tenant:
            raise _Unanswerable("key_mismatch", f"key {_text(asked.key)!r}, but a command of tenant {tenant!r}")
        if partition_for(tenant, self._partitions) != asked.partition:
            raise _Unanswerable("key_mismatch", f"tenant {tenant!r} does not belong to partition {asked.partition}")
        if "tenant" in asked.repeated or asked.headers.get("tenant") != tenant.encode():
            raise _Unanswerable("header_mismatch", f"header tenant is not {tenant!r}, or not there exactly once")
        return envelope

    def _decide(self, asked: Record, envelope: CommandEnvelope, wall: datetime) -> Answer:
        meta = envelope.meta
        state = self._tenant(meta.tenant)
        traceparent = _traceparent(asked)
        hashed = payload_hash(envelope.command)
        try:
            decided = decide(state, envelope, hashed, wall)
        except Rejected as e:
            self._forget_if_empty(state)
            result = _result(envelope, state, code=e.code, detail=e.detail, field=e.field)
            return Answer((result_output(result, traceparent),), "rejected", meta.tenant, e.code)
        if isinstance(decided, Replayed):
            known = decided.accepted
            span = (known.first_sequence, known.last_sequence)
            result = _result(envelope, state, accepted=True, replayed=True, span=span, changed=known.aggregate_ids)
            return Answer((result_output(result, traceparent),), "replayed", meta.tenant)
        encoded: list[bytes] = []

        def encode(event: EventEnvelope) -> bytes:
            encoded.append(codec.encode_event(event))
            return hash_of_stored(encoded[-1])

        try:
            made = chain(state, decided, envelope, hashed, wall, encode)
        except EncodeError as e:
            raise _Unanswerable("invalid_event", str(e)) from e
        events = [_event_output(each.envelope, value, traceparent) for each, value in zip(made, encoded, strict=True)]
        changed = tuple(dict.fromkeys(each.envelope.meta.aggregate_id for each in made))
        span = (made[0].envelope.meta.sequence, made[-1].envelope.meta.sequence) if made else (0, 0)
        last = made[-1].envelope.meta.sequence if made else state.sequence
        result = _result(envelope, state, accepted=True, span=span, changed=changed, sequence=last)
        outputs = (*events, result_output(result, traceparent))
        _record(state, made)
        return Answer(outputs, "accepted", meta.tenant)

    def _tenant(self, tenant: str) -> TenantState:
        state = self._tenants.get(tenant)
        if state is None:
            state = self._tenants[tenant] = TenantState(TenantId(tenant))
        return state

    def _forget_if_empty(self, state: TenantState) -> None:
        if state.sequence == 0:  # or commands for tenants that do not exist would fill the memory
            self._tenants.pop(state.tenant_id, None)

    def _refusal(
        self, asked: Record, reason: str, detail: str, envelope: CommandEnvelope | None
    ) -> CommandResult | None:
        """The result of a quarantined command. None where nobody can be told, or only a tenant that did not ask."""
        tenant = _text(asked.key)
        if reason in ("key_mismatch", "header_mismatch") or not tenant:
            return None
        if partition_for(tenant, self._partitions) != asked.partition or _text(asked.headers.get("tenant")) != tenant:
            return None
        state = self._tenants.get(tenant)
        code = reason if reason == "record_too_large" else "poison"
        said = f"{reason}: {detail}"
        if envelope is not None:
            return _result(envelope, state or TenantState(TenantId(tenant)), code=code, detail=said)
        command_id = _text(asked.headers.get("ce_id"))
        if not command_id:
            return None
        return CommandResult(
            command_id=command_id,
            tenant=TenantId(tenant),
            idempotency_key="",
            correlation_id="",
            sequence=state.sequence if state else 0,
            code=code,
            detail=said[:_DETAIL_LENGTH_MAX],
        )


def _event_output(envelope: EventEnvelope, value: bytes, traceparent: str | None) -> Output:
    meta = envelope.meta
    made = headers(
        id=meta.event_id,
        type=f"tallybook.events.{meta.type}",
        source=SOURCE,
        time=meta.occurred_at,
        schema=codec.fingerprint_of(value),
        tenant=meta.tenant,
        traceparent=traceparent,
    )
    return _fitting(Output(EVENTS, meta.tenant, value, made), meta.type)


def result_output(result: CommandResult, traceparent: str | None) -> Output:
    """The record of a result."""
    value = codec.encode_result(result)
    # No `time`: a result is an answer, not a fact; its instant is the one at which the broker took it.
    made = {
        "ce_id": f"{result.command_id}:result".encode(),
        "ce_type": b"tallybook.results.CommandResult",
        "ce_source": SOURCE.encode(),
        "ce_specversion": b"1.0",
        "schema": codec.fingerprint_of(value).encode(),
        "tenant": result.tenant.encode(),
    }
    if traceparent:
        made["traceparent"] = traceparent.encode()
    return _fitting(Output(RESULTS, result.tenant, value, made), "CommandResult")


def _record(state: TenantState, made: Sequence[Chained]) -> None:
    try:
        record(state, made)
    except Exception as e:  # whatever it is: some of the events are in the state, and some are not
        raise Spoiled(f"{type(e).__name__}: {e}") from e


def _fitting(output: Output, what: str) -> Output:
    if output.size_bytes > _RECORD_BYTES_MAX:
        limit = f"{output.size_bytes} bytes where a record has at most {_RECORD_BYTES_MAX}"
        raise _Unanswerable("record_too_large", f"{what} would take {limit}")
    return output


def _result(
    envelope: CommandEnvelope,
    state: TenantState,
    *,
    accepted: bool = False,
    replayed: bool = False,
    span: tuple[int, int] = (0, 0),
    changed: tuple[str, ...] = (),
    sequence: int | None = None,
    code: str = "",
    detail: str = "",
    field: str = "",
) -> CommandResult:
    meta = envelope.meta
    return CommandResult(
        command_id=meta.command_id,
        tenant=meta.tenant,
        idempotency_key=meta.idempotency_key,
        correlation_id=meta.correlation_id,
        outcome=Outcome.ACCEPTED if accepted else Outcome.REJECTED,
        replayed=replayed,
        sequence=state.sequence if sequence is None else sequence,
        first_sequence=span[0],
        last_sequence=span[1],
        code=code,
        detail=detail[:_DETAIL_LENGTH_MAX],
        field=field,
        aggregate_ids=changed,
    )


def _text(raw: bytes | None) -> str:
    """`raw` as text, or empty where it is none."""
    try:
        return raw.decode() if raw else ""
    except UnicodeDecodeError:
        return ""


def _traceparent(asked: Record) -> str | None:
    return _text(asked.headers.get("traceparent")) or None
