"""What travels with every command and event, and what became of a command."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from billing.ids import TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandMeta:
    """Who asks, for whom, and under which key a repetition is recognised."""

    command_id: str
    """Id of this request, a UUID; a retry of the same wish may carry another."""
    tenant: TenantId
    """The tenant whose state the command may change."""
    idempotency_key: str
    """Prefixed by the kind of caller (`api:`, `scheduler:`, ...); same key and payload means the same wish."""
    actor: str
    """Who asked: an API key's id, or the name of a service."""
    correlation_id: str
    """Joins everything that follows from one request."""
    causation_id: str | None = None
    """Id of the event that led to this command; null when a person or program outside asked."""
    sent_at: datetime
    """When the asker sent it, by the asker's clock; observed, never decisive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMeta:
    """Where an event stands: in its tenant's order, in its aggregate, and in the hash chain."""

    event_id: str
    """`tenant:sequence`; unique for ever."""
    tenant: TenantId
    """The tenant it belongs to."""
    sequence: int
    """1, 2, 3, ... per tenant, without gaps."""
    type: str
    """Name of the event."""
    aggregate_id: str
    """`kind:id` of the aggregate that changed."""
    aggregate_version: int
    """1, 2, 3, ... per aggregate, without gaps."""
    command_id: str
    """The command it follows from."""
    idempotency_key: str
    """That command's idempotency key."""
    payload_hash: bytes
    """SHA-256 of that command's payload without observed fields; tells a retry from a reused key."""
    correlation_id: str
    """Joins everything that follows from one request."""
    causation_id: str | None = None
    """Id of the event that led to the command; null when a person or program outside asked."""
    actor: str
    """Who asked."""
    occurred_at: datetime
    """Business time: the tenant's clock, real or test."""
    recorded_at: datetime
    """Wall-clock time of the decision."""
    previous_hash: bytes
    """SHA-256 of the Avro body of the tenant's event before this one; 32 zero bytes for the first."""


GENESIS = bytes(32)  # previous_hash of a tenant's first event


@dataclass(frozen=True, slots=True)
class CommandEnvelope:
    """A command and its meta; the Avro record is the command's own with `meta` as its first field."""

    meta: CommandMeta
    command: Any


@dataclass(frozen=True, slots=True)
class EventEnvelope:
    """An event and its meta; the Avro record is the event's own with `meta` as its first field."""

    meta: EventMeta
    event: Any


class Outcome(StrEnum):
    """What became of a command."""

    REJECTED = "rejected"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What became of one command; a duplicate always gets its result emitted again."""

    command_id: str
    """The command that is answered."""
    tenant: TenantId
    """Its tenant."""
    idempotency_key: str
    """Its idempotency key."""
    correlation_id: str
    """Its correlation id."""
    outcome: Outcome = Outcome.REJECTED
    """Accepted or rejected."""
    replayed: bool = False
    """True when an earlier command with the same key and payload had already been accepted."""
    sequence: int
    """The tenant's last event when the command was answered: the position to read from."""
    first_sequence: int = 0
    """First event that follows from the command; 0 if none does."""
    last_sequence: int = 0
    """Last event that follows from the command; 0 if none does."""
    code: str = ""
    """Reason of a rejection, for programs; empty when accepted."""
    detail: str = ""
    """Reason of a rejection, for people; empty when accepted."""
    field: str = ""
    """Path of the offending field of a rejected command; empty when none is to blame."""
    aggregate_ids: tuple[str, ...] = ()
    """Aggregates that changed, in order of their events."""
