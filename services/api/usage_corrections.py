"""Taking back or putting right usage that was sent.

Answered when the log has the correction. It is judged where it stands there, so an event of the same sender that the
log had before is found; what cannot be corrected is told among the refusals of the event.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BeforeValidator, Field

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import UsageAmended, UsageEvent, UsageVoided, check_event, readings
from infra.postgres import Cursor
from projections import generation
from services.api.bodies import EdgeRoute
from services.api.parts import Reading, reading
from services.api.problems import not_found, of_rejection
from services.api.seller import Seller, seller
from services.api.usage import text_of
from services.api.usage_reads import names
from services.exact_values import Instant, Name
from services.meter_expressions import formula
from services.shapes import StrictModel
from services.usage_placing import spread_of
from services.usage_sending import Correction, addressed

router = APIRouter(tags=["usage"], route_class=EdgeRoute)


class VoidBody(StrictModel):
    """Why an event is taken back."""

    reason: Name
    time: Instant | None = None
    """Of the event. Needed only where the tenant's usage is spread and the event may not be counted yet."""


class AmendBody(StrictModel):
    """The event as it should have been."""

    type: str
    """What happened; meters choose by it."""
    customer: str
    """Who used it."""
    time: Instant
    """When."""
    properties: dict[Name, Annotated[str, BeforeValidator(text_of)]] = Field(default_factory=dict)
    """Details; decimal numbers as text."""
    reason: Name
    """Why it is amended."""


@dataclass(frozen=True, slots=True)
class CorrectionResult:
    """A correction that the log has."""

    source: str
    id: str
    status: Literal["accepted"]


# A source may hold slashes, as those of CloudEvents do.
@router.post("/v1/usage/events/{source:path}/{id}/void", status_code=202)
def void_usage_event(
    source: str, id: str, body: VoidBody, request: Request, reading: Annotated[Reading, Depends(reading)]
) -> CorrectionResult:
    """Take an event back: from here on it does not count. Voiding it again changes nothing.

    A void is final: the same source and id never count again. If the period of the event is closed already, the next
    invoice settles the difference as late usage.
    """
    source, id = names(request, "/void") or (source, id)
    with _judging(reading) as (tx, _):
        void = UsageVoided(tenant=TenantId(reading.tenant), source=source, id=id, reason=body.reason)
        partition = _place(reading, tx, void, body.time)
    reading.parts.usage.correct(void, partition)
    return CorrectionResult(source, id, "accepted")


@router.put("/v1/usage/events/{source:path}/{id}", status_code=202)
def amend_usage_event(
    source: str, id: str, body: AmendBody, request: Request, reading: Annotated[Reading, Depends(reading)]
) -> CorrectionResult:
    """Put an event right: from here on it counts as told here. Amending it with the same content changes nothing."""
    source, id = names(request) or (source, id)
    event = UsageEvent(
        id=id, source=source, type=body.type, customer=body.customer, time=body.time, properties=dict(body.properties)
    )
    amendment = UsageAmended(tenant=TenantId(reading.tenant), event=event, reason=body.reason)
    with _judging(reading) as (tx, judge):
        check_event(event, judge.bounds, judge.now)
        readings(event, judge.meters, formula)
        partition = _place(reading, tx, amendment)
    reading.parts.usage.correct(amendment, partition)
    return CorrectionResult(source, id, "accepted")


@contextmanager
def _judging(reading: Reading) -> Iterator[tuple[Cursor, Seller]]:
    """What the tenant's usage is judged by; a rejection within becomes the answer."""
    try:
        with reading.transaction() as tx:
            judge = seller(tx, reading.tenant, reading.parts.clock.now())
            if judge is None:
                raise not_found("the tenant is not registered")
            yield tx, judge
    except Rejected as e:
        raise of_rejection(e) from e


def _place(reading: Reading, tx: Cursor, correction: Correction, time: datetime | None = None) -> int:
    spread = spread_of(tx, reading.tenant)
    generation.enter_all(tx)
    return addressed(tx, reading.parts.layout, spread, correction, time)
