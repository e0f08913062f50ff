"""Over how many partitions of the usage log the tenant's usage is spread."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from billing.tenant import SpreadUsage
from infra.postgres import Cursor
from services.api.bodies import EdgeRoute
from services.api.parts import Asking, Reading, asking, reading
from services.api.problems import Problem
from services.exact_values import Instant
from services.shapes import StrictModel
from services.usage_placing import Layout, spread_of

router = APIRouter(tags=["usage"], route_class=EdgeRoute)


class SpreadBody(StrictModel):
    """Over how many partitions, and from which event time on."""

    partitions: int
    effective_from: Instant | None = None


@dataclass(frozen=True, slots=True)
class SpreadVersion:
    """How events are spread from a time on."""

    effective_from: datetime
    partitions: int


@dataclass(frozen=True, slots=True)
class SpreadShown:
    """What a producer needs to place events: the document that the SDK takes."""

    log_partitions: int
    """Of the topic `usage.events`."""
    versions: list[SpreadVersion]
    """In order of time; none: all usage lies in the partition of the tenant's key."""


def _shown(tx: Cursor, tenant: str, layout: Layout) -> SpreadShown:
    versions = [SpreadVersion(each.effective_from, each.partitions) for each in spread_of(tx, tenant)]
    return SpreadShown(layout.partitions, versions)


@router.get("/v1/usage/spread")
def show_spread(reading: Annotated[Reading, Depends(reading)], response: Response) -> SpreadShown:
    """The spread as the usage log was told of it."""
    with reading.transaction(response) as tx:
        return _shown(tx, reading.tenant, reading.parts.layout)


@router.post("/v1/usage/spread", response_model=SpreadShown)
def spread_usage(body: SpreadBody, asking: Annotated[Asking, Depends(asking)], response: Response) -> Any:
    """Spread usage over more partitions, or fewer, from a time on that no event can have yet.

    202: accepted, and not yet told to the usage log; look again.
    """
    layout = asking.parts.layout
    if not 1 <= body.partitions <= layout.partitions:
        raise Problem(422, "out_of_range", f"partitions: allowed are 1 to {layout.partitions}, as the log has")
    result = asking.send(SpreadUsage(partitions=body.partitions, effective_from=body.effective_from))

    def read(tx: Cursor) -> SpreadShown | None:
        found = _shown(tx, asking.tenant, layout)
        known = found.versions[-1].partitions if found.versions else 1
        return found if known == body.partitions else None

    return asking.answer(response, result, read)
