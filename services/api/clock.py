"""The tenant's test clock."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from billing.tenant import AdvanceClock
from services import read_models
from services.api.bodies import EdgeRoute
from services.api.parts import Asking, Reading, asking, reading
from services.api.problems import not_found
from services.exact_values import Instant
from services.read_rows import TenantRow
from services.shapes import StrictModel

router = APIRouter(tags=["clock"], route_class=EdgeRoute)


class ClockBody(StrictModel):
    """Where the clock moves."""

    to: Instant


@router.post("/v1/clock", response_model=TenantRow)
def advance_clock(body: ClockBody, asking: Annotated[Asking, Depends(asking)], response: Response) -> Any:
    """Move the test clock forward; what falls due by then happens in the background."""
    result = asking.send(AdvanceClock(to=body.to))
    return asking.answer(response, result, lambda tx: read_models.tenant(tx, asking.tenant))


@router.get("/v1/clock")
def show_clock(reading: Annotated[Reading, Depends(reading)], response: Response) -> TenantRow:
    """The tenant, with its test clock; null means the real clock."""
    with reading.transaction(response) as tx:
        found = read_models.tenant(tx, reading.tenant)
    if found is None:
        raise not_found("the tenant is not registered")
    return found
