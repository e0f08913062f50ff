"""What the API stands on, as small ports, and what every request carries: caller, trace and position."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from billing.envelope import CommandResult, Outcome
from billing.errors import Rejected
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from infra import postgres
from infra.clock import Clock
from infra.kafka import Record
from infra.postgres import Cursor, Pool
from projections import tenants
from projections.usage_events import Place
from services.api.cursors import Cursors
from services.api.problems import Problem, of_rejection
from services.api_keys import Caller
from services.entitlements import Answer
from services.read_models import entered
from services.reservations import Reservations
from services.usage_log import RawEvent
from services.usage_placing import Layout, Spreads

POSITION = "Tallybook-Position"
REPLAYED = "Idempotency-Replayed"
_KEY_LENGTH_MAX = 255 - len("api:")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_LOOK_AGAIN_S = 0.01
T = TypeVar("T")


class Commands(Protocol):
    """Sends commands to the one writer of a tenant and waits for what became of them."""

    def request(self, tenant: str, command: Any, *, key: str, actor: str, correlation_id: str) -> CommandResult:
        """The outcome of `command`, accepted or rejected.

        Raises:
            Transient: no answer came in time; the command may have been accepted: ask again with the same `key`.
        """


class UsageSink(Protocol):
    """Takes usage to the log."""

    def publish(self, tenant: str, events: Sequence[UsageEvent], spread: Spreads = ()) -> None:
        """Return when the broker has all of `events`, each in its place by the tenant's `spread`.

        Raises:
            Transient: not all of them were acknowledged; sending them again is free.
        """

    def correct(self, correction: UsageVoided | UsageAmended, partition: int) -> None:
        """Return when the broker has it, in `partition`.

        Raises:
            Transient: it was not acknowledged; sending it again is free.
        """


class UsageRecords(Protocol):
    """Reads usage again where the log has it."""

    def events(self, places: Iterable[Place]) -> Mapping[Place, RawEvent]:
        """The events at `places`; one that the log has not any more is missing.

        Raises:
            Transient: the log did not answer in time.
        """

    def between(self, partition: int, start: int, end: int) -> Iterable[Sequence[Record]]:
        """Every record of the partition from one offset up to another, in order.

        Raises:
            LogTooShort: the log does not have all of them any more.
            Transient: the log did not answer in time.
        """

    def record(self, partition: int, offset: int) -> Record | None:
        """The record there; None if the log does not have it, or not any more.

        Raises:
            Transient: the log did not answer in time.
        """

    def starts(self, partitions: Iterable[int]) -> Mapping[int, int]:
        """Of each of `partitions` the first offset that the log still has.

        Raises:
            Transient: the log did not answer in time.
        """


class Entitlements(Protocol):
    """Answers whether a customer may use a feature."""

    def access(self, tenant: str, customer: str, feature: str) -> Answer:
        """The answer, and what it rests on."""

    async def at_once(self, tenant: str, customer: str, feature: str) -> Answer | None:
        """The answer, if it needs no thread; None: ask `access`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the API depends on."""

    pool: Pool
    commands: Commands
    usage: UsageSink
    layout: Layout
    usage_log: UsageRecords
    entitlements: Entitlements
    reservations: Reservations
    cursors: Cursors
    clock: Clock
    quick: Pool | None = field(default=None)
    """Gives up within a second, for what every request needs; None: `pool`."""
    position_wait_s: float = field(default=5.0)
    """How long a request waits for the projection to reach a position."""


def parts(request: Request) -> Parts:
    """The parts of the application that serves `request`."""
    found: Parts = request.app.state.parts
    return found


_bearer = HTTPBearer(auto_error=False, description="An API key, from `tallybook keys create`.")


def caller(request: Request, _documented: Annotated[object, Depends(_bearer)] = None) -> Caller:
    """Whom the request speaks for; the route has checked its key before reading anything else."""
    found: Caller = request.state.caller
    return found


def trace_id(traceparent: str) -> str:
    """The trace that a request belongs to, or a new one."""
    match = _TRACEPARENT.match(traceparent)
    return match["trace"] if match else secrets.token_hex(16)


def position(
    header: Annotated[
        str | None, Header(alias=POSITION, description="Answer with what was known at this position, or later.")
    ] = None,
    query: Annotated[str | None, Query(alias="position", description=f"As the header {POSITION}.")] = None,
) -> int:
    """The position that a read must have reached."""
    given = header if header is not None else query
    if given is None:
        return 0
    if not re.match(r"[0-9]{1,18}\Z", given, re.ASCII):
        raise Problem(400, "invalid_position", f"send the {POSITION} that a command was answered with")
    return int(given)


@dataclass(frozen=True, slots=True)
class Reading:
    """A request that reads: within one tenant, at a position or later."""

    parts: Parts
    caller: Caller
    position: int

    @property
    def tenant(self) -> str:
        """The tenant whose data is read."""
        return self.caller.tenant

    @contextmanager
    def transaction(self, response: Response | None = None) -> Iterator[Cursor]:
        """A transaction on the current generation that has reached the position; `response` is told which.

        Raises:
            Problem: 503 if the projection does not get there in time.
        """
        deadline = self.parts.clock.monotonic_s() + self.parts.position_wait_s
        while True:
            with postgres.tenant_transaction(self.parts.pool, self.tenant) as tx:
                reached = tenants.sequence(entered(tx), self.tenant)
                if reached >= self.position:
                    if response is not None:
                        response.headers[POSITION] = str(reached)
                    yield tx
                    return
            if self.parts.clock.monotonic_s() > deadline:
                said = f"reads have reached position {reached}, not yet {self.position}"
                raise Problem(503, "behind", said, headers={"Retry-After": "1"})
            self.parts.clock.sleep(_LOOK_AGAIN_S)


def reading(
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
    position: Annotated[int, Depends(position)],
) -> Reading:
    """The dependency of every read."""
    return Reading(parts, caller, position)


def idempotency_key(
    given: Annotated[
        str | None,
        Header(alias="Idempotency-Key", description="Yours; the same key and request means the same wish, once."),
    ] = None,
) -> str:
    """The command's key, marked as a client's so that it can never be an internal one."""
    if given is None:
        raise Problem(400, "idempotency_key_missing", "a command needs the header Idempotency-Key")
    if not 0 < len(given) <= _KEY_LENGTH_MAX or not given.isascii() or not given.isprintable():
        said = f"Idempotency-Key: allowed are 1 to {_KEY_LENGTH_MAX} printable ASCII characters"
        raise Problem(400, "idempotency_key_invalid", said)
    return f"api:{given}"


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that changes something."""

    parts: Parts
    caller: Caller
    key: str
    trace: str

    @property
    def tenant(self) -> str:
        """The tenant that is changed."""
        return self.caller.tenant

    def send(self, command: Any, *, missing: str = "") -> CommandResult:
        """The accepted result of `command`. `missing`: the rejection that means the addressed resource is not there.

        Raises:
            Problem: it was rejected.
            Transient: nobody knows yet; the caller asks again with its key.
        """
        result = self.parts.commands.request(
            self.tenant, command, key=self.key, actor=self.caller.actor, correlation_id=self.trace
        )
        if result.outcome is Outcome.REJECTED:
            raise of_rejection(Rejected(result.code, result.detail, field=result.field), missing=missing)
        return result

    def answer(self, response: Response, result: CommandResult, read: Callable[[Cursor], T | None]) -> T | JSONResponse:
        """The resource as it is after the command; 202 without it if reads are too far behind to wait for."""
        headers = {POSITION: str(result.sequence)}
        if result.replayed:
            headers[REPLAYED] = "true"
        response.headers.update(headers)
        try:
            with Reading(self.parts, self.caller, result.sequence).transaction() as tx:
                found = read(tx)
        except Problem as e:
            if e.code != "behind":
                raise
            found = None
        if found is not None:
            return found
        return JSONResponse({"status": "accepted", "position": result.sequence}, 202, headers)


def asking(
    request: Request,
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
    key: Annotated[str, Depends(idempotency_key)],
) -> Asking:
    """The dependency of every command."""
    return Asking(parts, caller, key, request.state.trace_id)
