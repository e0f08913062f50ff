"""Counting events again that came before a meter was changed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from billing.backfilling import BackfillMeter
from infra.postgres import Cursor
from projections import generation
from services import usage_backfills
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor
from services.api.parts import Asking, Parts, Reading, asking, reading
from services.exact_values import Instant, Name
from services.shapes import StrictModel
from services.usage_backfills import MeterBackfill

router = APIRouter(tags=["usage"], route_class=EdgeRoute)


class BackfillBody(StrictModel):
    """Of which event times."""

    from_time: Annotated[Instant, Field(alias="from")]
    """First event time; not older than the tenant accepts events."""
    to_time: Annotated[Instant | None, Field(alias="to")] = None
    """First event time beyond; none: every event that came before."""


def _listed(tx: Cursor, tenant: str, parts: Parts, meter: str) -> list[MeterBackfill]:
    generation.enter_all(tx)
    return usage_backfills.listed(tx, tenant, parts.layout, meter)


@router.get("/v1/meters/{meter}/backfills")
def list_meter_backfills(
    meter: Name,
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[MeterBackfill]:
    """All backfills of a meter that the usage log was told of, the newest first."""
    scope = [reading.tenant, "backfills", meter]
    below = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = _listed(tx, reading.tenant, reading.parts, meter)
    rows = [each for each in rows if not below or each.version < int(below)][: limit + 1]
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: str(row.version))


@router.post("/v1/meters/{meter}/backfills", status_code=201, response_model=MeterBackfill)
def backfill_meter(
    meter: Name, body: BackfillBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Have events that were counted before count for a meter as it is defined now.

    202: accepted, and not yet told to the usage log; look again. Periods that were cut before it keep what they had;
    the next invoice settles the difference as late usage. An invoice that is cut later waits until it is done.
    """
    parts = asking.parts
    with Reading(parts, asking.caller, 0).transaction() as tx:
        generation.enter_all(tx)
        usage_backfills.check_log(tx, asking.tenant, parts.layout, parts.usage_log.starts, body.from_time, body.to_time)
    result = asking.send(BackfillMeter(meter=meter, from_time=body.from_time, to_time=body.to_time))

    def read(tx: Cursor) -> MeterBackfill | None:
        found = _listed(tx, asking.tenant, parts, meter)
        return next((each for each in found if each.version == result.sequence), None)

    return asking.answer(response, result, read)
