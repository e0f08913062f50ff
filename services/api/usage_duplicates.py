"""Copies of counted events, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends

from billing.period import Period
from projections import generation, usage_duplicates
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor
from services.api.parts import Reading, reading
from services.api.usage_reads import From, LogPosition, To, cursor_key, sealed

router = APIRouter(tags=["usage"], route_class=EdgeRoute)

LISTED = timedelta(days=35)
"""What the list looks back without `from`."""
_AHEAD = timedelta(days=1)  # of brokers' clocks, at the very most


@dataclass(frozen=True, slots=True)
class DuplicateBody:
    """A copy of a counted event, with the same content."""

    source: str | None
    """Null, like the id, if the log is pruned there."""
    id: str | None
    position: LogPosition
    received_at: datetime


@router.get("/v1/usage/duplicates")
def list_duplicate_usage(
    reading: Annotated[Reading, Depends(reading)],
    start: From = None,
    end: To = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[DuplicateBody]:
    """Events that came again, the newest first by when they were received; without `from`, of the last 35 days.

    `GET /v1/usage/events/{source}/{id}` tells the one that counted. A copy is listed as long as copies are recognised.
    """
    scope = [reading.tenant, "duplicates", *("" if each is None else each.isoformat() for each in (start, end))]
    before = cursor_key(reading.parts.cursors.open(scope, cursor))
    upto = end or reading.parts.clock.now() + _AHEAD
    period = Period.between(start or upto - LISTED, upto, "to")
    with reading.transaction() as tx:
        generation.enter_all(tx)
        found = usage_duplicates.listed(tx, reading.tenant, period, before=before, limit=limit + 1)
    log = reading.parts.usage_log.events(each.place for each in found[:limit])
    page = Page.of(reading.parts.cursors, scope, found, limit, lambda each: sealed(each.received_at, each.place))
    data = []
    for each in found[:limit]:
        event = log.get(each.place, {})
        position = LogPosition.of(each.place)
        data.append(DuplicateBody(event.get("source"), event.get("id"), position, each.received_at))
    return Page(data=data, next_cursor=page.next_cursor)
