"""Usage as it was taken: the fate of each event, and what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Final, Literal
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Query, Request

from billing.errors import Rejected
from billing.period import Period
from infra.postgres import Cursor
from projections import generation, usage_events
from projections.usage_events import Key, Place, Refused
from services import usage_trace
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, OfCustomer, Page, PageCursor
from services.api.parts import Reading, reading
from services.api.problems import of_rejection
from services.api.seller import seller
from services.exact_values import Instant, Name
from services.usage_log import RawEvent
from services.usage_trace import EventFate, Fate, Trace, fate_of

router = APIRouter(tags=["usage"], route_class=EdgeRoute)

LISTED = timedelta(days=35)
"""What a list looks back without `from`."""
_AHEAD = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

EventFateName = Literal["counted", "unmatched", "amended", "voided", "duplicate", "conflict", "rejected"]
From = Annotated[Instant | None, Query(alias="from", description="From this time on.")]
To = Annotated[Instant | None, Query(alias="to", description="Before this time.")]


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where an event stands in `usage.events`."""

    partition: int
    offset: int
    index: int | None
    """In its batch, from 0; null for a whole record."""

    @classmethod
    def of(cls, place: Place) -> LogPosition:
        return cls(place.partition, place.offset, place.batch_index if place.batch_index >= 0 else None)


@dataclass(frozen=True, slots=True)
class MeasuredBody:
    """What an event added to a meter."""

    meter: str
    dimensions: dict[str, str]
    quantity: Decimal | None
    """Null for a thing counted once."""
    thing: str | None
    """The thing counted once; null for a quantity."""


@dataclass(frozen=True, slots=True)
class BilledBody:
    """An invoice that bills an event."""

    invoice_id: str
    number: str | None
    """Null while the invoice is being made."""
    late: bool
    """The event came after its period was closed."""


@dataclass(frozen=True, slots=True)
class CountedBody:
    """An event that counted."""

    fate: Literal["counted", "unmatched", "amended", "voided"]
    """`unmatched`: counted, but no subscription covers its time, so nothing bills it. `amended`: counted, with other
    content than it came with. `voided`: it counts no more."""
    source: str | None
    """Null, like the next two and the properties, if the log is pruned there."""
    id: str | None
    type: str | None
    customer: str
    time: datetime
    properties: dict[str, str] | None
    position: LogPosition
    late: bool
    """It came after the period of its time was closed."""
    measured: list[MeasuredBody]
    """Empty if no filter let it through."""
    billed: list[BilledBody]


@dataclass(frozen=True, slots=True)
class RefusedBody:
    """Usage that was refused."""

    fate: Literal["conflict", "rejected"]
    source: str | None
    """Null, like the id, for a whole record."""
    id: str | None
    position: LogPosition
    events: int
    """How many events that is."""
    code: str
    detail: str
    field: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class CopyBody:
    """A copy of a counted event, with the same content: counted never."""

    position: LogPosition
    received_at: datetime


@dataclass(frozen=True, slots=True)
class EventBody:
    """What became of an event."""

    source: str
    id: str
    fate: EventFateName
    """Of the copy that counted; if none did, of the newest one. `duplicate`: it counted so long ago that only later
    copies of it are still told."""
    counted: CountedBody | None
    refusals: list[RefusedBody]
    """Copies with other content, and refusals; newest first."""
    duplicates: int
    """Copies with the same content."""
    copies: list[CopyBody]
    """The newest of them."""


@router.get("/v1/usage/events")
def list_usage_events(
    reading: Annotated[Reading, Depends(reading)],
    customer: OfCustomer = None,
    meter: Annotated[Name | None, Query(description="Only events that this meter measured.")] = None,
    fate: Annotated[
        Literal["counted", "unmatched", "amended", "voided"] | None,
        Query(description="By default all but `voided`. Refused usage and duplicates have lists of their own."),
    ] = None,
    start: From = None,
    end: To = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[CountedBody]:
    """Events that counted, the newest first by their own time; without `from`, of the last 35 days.

    With `meter`, `amended` and `voided` cannot be asked for, and `counted` holds the amended too.
    """
    if meter is not None and fate in ("amended", "voided"):
        raise Rejected("invalid_value", f"events that are {fate} are listed without `meter`", field="fate")
    scope = [reading.tenant, "events", customer or "", meter or "", fate or "", _text(start), _text(end)]
    before = cursor_key(reading.parts.cursors.open(scope, cursor))
    with reading.transaction() as tx:
        generation.enter_all(tx)
        found = usage_events.counted(
            tx,
            reading.tenant,
            _listed(reading, tx, start, end),
            customer=customer,
            meter=meter,
            fate=fate,
            before=before,
            limit=limit + 1,
        )
        ways = usage_trace.traces(tx, reading.tenant, found[:limit])
    log = reading.parts.usage_log.events(each.place for each in ways)
    page = Page.of(reading.parts.cursors, scope, found, limit, lambda each: sealed(each.time, each.place))
    return Page(data=[_counted(each, log.get(each.place)) for each in ways], next_cursor=page.next_cursor)


@router.get("/v1/usage/rejected")
def list_rejected_usage(
    reading: Annotated[Reading, Depends(reading)],
    fate: Annotated[Literal["conflict", "rejected"] | None, Query()] = None,
    code: Annotated[Name | None, Query(description="Only refusals with this code.")] = None,
    source: Annotated[Name | None, Query(description="Only events of this source.")] = None,
    start: From = None,
    end: To = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[RefusedBody]:
    """Usage that was refused, the newest first by when it was received. The log keeps the original bytes."""
    scope = [reading.tenant, "rejected", fate or "", code or "", source or "", _text(start), _text(end)]
    before = cursor_key(reading.parts.cursors.open(scope, cursor))
    period = None
    if start is not None or end is not None:
        period = Period.between(start or _EPOCH, end or reading.parts.clock.now() + _AHEAD, "to")
    with reading.transaction() as tx:
        generation.enter_all(tx)
        found = usage_events.refused(
            tx,
            reading.tenant,
            period=period,
            fate=fate,
            reason=code,
            source=source,
            before=before,
            limit=limit + 1,
        )
    page = Page.of(reading.parts.cursors, scope, found, limit, lambda each: sealed(each.appended_at, each.place))
    return Page(data=[_refused(each) for each in found[:limit]], next_cursor=page.next_cursor)


# A source may hold slashes, as those of CloudEvents do.
@router.get("/v1/usage/events/{source:path}/{id}")
def get_usage_event(source: str, id: str, request: Request, reading: Annotated[Reading, Depends(reading)]) -> EventBody:
    """What became of an event: its fate, its place in the log, what it measured, and the invoice that bills it.

    The last part of the address is the id; a slash in it is written as %2F.
    """
    source, id = names(request) or (source, id)
    with reading.transaction() as tx:
        try:
            found = fate_of(tx, reading.tenant, source, id)
        except Rejected as e:
            raise of_rejection(e, missing="unknown_event") from e
    return _event(reading, found)


def names(request: Request, ending: str = "") -> tuple[str, str] | None:
    """Source and id as the address, without its `ending`, tells them before it was decoded; None if the server does not
    say."""
    raw: bytes = request.scope.get("raw_path") or b""
    _, found, rest = raw.decode("latin-1").partition("?")[0].partition("/v1/usage/events/")
    source, slash, id = rest.removesuffix(ending).rpartition("/")
    return (unquote(source), unquote(id)) if found and slash else None


def _event(reading: Reading, found: EventFate) -> EventBody:
    counted = found.counted
    log = reading.parts.usage_log.events([counted.place]) if counted else {}
    told = _counted(counted, log.get(counted.place)) if counted else None
    refusals = [_refused(each) for each in found.refusals]
    copies = [CopyBody(LogPosition.of(each.place), each.received_at) for each in found.copies.newest]
    return EventBody(found.source, found.id, found.fate.value, told, refusals, found.copies.total, copies)


_FATES: Final[Mapping[Fate, Literal["counted", "unmatched", "amended", "voided"]]] = {
    Fate.COUNTED: "counted",
    Fate.UNMATCHED: "unmatched",
    Fate.AMENDED: "amended",
    Fate.VOIDED: "voided",
}


def _counted(way: Trace, event: RawEvent | None) -> CountedBody:
    given: RawEvent = event or {}
    return CountedBody(
        fate=_FATES[way.fate],
        source=given.get("source"),
        id=given.get("id"),
        type=given.get("type"),
        customer=way.customer,
        time=way.time,
        properties=given.get("properties"),
        position=LogPosition.of(way.place),
        late=way.late,
        measured=[MeasuredBody(each.meter, each.dimensions, each.number, each.text) for each in way.contributions],
        billed=[BilledBody(each.invoice_id, each.number, each.late) for each in way.billed],
    )


def _refused(each: Refused) -> RefusedBody:
    return RefusedBody(
        fate="conflict" if each.fate == "conflict" else "rejected",
        source=each.source,
        id=each.id,
        position=LogPosition.of(each.place),
        events=each.events,
        code=each.reason,
        detail=each.detail,
        field=each.field,
        received_at=each.appended_at,
    )


def present(reading: Reading, tx: Cursor) -> datetime:
    """Now, by the tenant's clock."""
    wall = reading.parts.clock.now()
    judge = seller(tx, reading.tenant, wall)
    return judge.now if judge else wall


def _listed(reading: Reading, tx: Cursor, start: datetime | None, end: datetime | None) -> Period:
    upto = end or present(reading, tx) + _AHEAD
    return Period.between(start or upto - LISTED, upto, "to")


def _text(instant: datetime | None) -> str:
    return "" if instant is None else instant.isoformat()


def sealed(time: datetime, place: Place) -> str:
    """What a list goes on after, for a cursor."""
    return f"{(time - _EPOCH) // _MICROSECOND} {place.partition} {place.offset} {place.batch_index}"


def cursor_key(sealed: str) -> Key | None:
    """The other way; None: from the beginning."""
    if not sealed:
        return None
    time_us, partition, offset, index = map(int, sealed.split())
    return Key(_EPOCH + timedelta(microseconds=time_us), Place(partition, offset, index))
