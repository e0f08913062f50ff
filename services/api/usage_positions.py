"""What became of usage, asked for by its position in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

from fastapi import APIRouter, Depends, Path, Query

from billing.errors import Rejected
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor
from services.api.parts import Reading, reading
from services.api.problems import of_rejection
from services.api.usage_reads import LogPosition
from services.usage_position import Told, fates_in, record_at

router = APIRouter(tags=["usage"], route_class=EdgeRoute)

PositionFate = Literal[
    "counted", "unmatched", "amended", "voided", "duplicate", "conflict", "rejected", "waiting", "applied", "pruned"
]


@dataclass(frozen=True, slots=True)
class PositionBody:
    """What became of one event of a record, or of a whole record."""

    position: LogPosition
    source: str | None
    """Null, like the id, where the record is no event, or was not looked into."""
    id: str | None
    fate: PositionFate
    """Beside those of an event: `waiting`: not taken yet. `applied`: a correction, or another record that is no event.
    `pruned`: counted, or a copy, and no longer told one by one."""
    detail: str
    """For people; may be empty."""


@router.get("/v1/usage/positions/{partition}/{offset}")
def list_usage_at_position(
    partition: Annotated[int, Path(ge=0, le=2**31 - 1, description="Of the usage log.")],
    offset: Annotated[int, Path(ge=0, le=2**63 - 1, description="Of a record in it.")],
    reading: Annotated[Reading, Depends(reading)],
    index: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only this event of the record.")] = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[PositionBody]:
    """What became of each event in the record at a position of the usage log, in their order.

    Together the positions are what the hourly counts say. Where the log has no record of the caller's, or not any more,
    nothing is found.
    """
    scope = [reading.tenant, "positions", str(partition), str(offset), "" if index is None else str(index)]
    first = int(reading.parts.cursors.open(scope, cursor) or 0)
    try:
        record = record_at(reading.parts.usage_log, partition, offset, reading.tenant)
        with reading.transaction() as tx:
            found = fates_in(tx, record, index, first=first, limit=limit + 1)
    except Rejected as e:
        raise of_rejection(e, missing="unknown_position") from e
    page = Page.of(reading.parts.cursors, scope, found, limit, lambda each: str(each.place.batch_index + 1))
    return Page(data=[_body(each) for each in page.data], next_cursor=page.next_cursor)


def _body(told: Told) -> PositionBody:
    assert told.fate in get_args(PositionFate)
    fate = cast(PositionFate, told.fate)
    return PositionBody(LogPosition.of(told.place), told.source, told.id, fate, told.detail)
