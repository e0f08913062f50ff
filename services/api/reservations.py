"""Parts of a hard limit, promised before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from services.api.bodies import EdgeRoute
from services.api.pages import PathId
from services.api.parts import REPLAYED, Parts, caller, idempotency_key, parts
from services.api.problems import not_found
from services.api_keys import Caller
from services.exact_values import ExactDecimal, Identifier, Whole
from services.reservations import TTL_MAX, Reservation
from services.shapes import StrictModel

router = APIRouter(tags=["entitlements"], route_class=EdgeRoute)


class ReservationBody(StrictModel):
    """What is asked for."""

    customer: Identifier
    feature: Identifier
    quantity: Annotated[ExactDecimal, Field(gt=0)]
    """In the unit of the feature's limit."""
    ttl_seconds: Annotated[Whole, Field(gt=0, le=int(TTL_MAX.total_seconds()))] = 60
    """How long the promise holds if it is neither committed nor released."""


class CommitBody(StrictModel):
    """The usage event that uses the promise up."""

    source: Identifier
    event_id: Identifier


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """A promise."""

    id: str
    customer: str
    feature: str
    quantity: Decimal
    state: str
    """`held`, `committed`, `counted` (its event is), `released` or `expired`."""
    expires_at: datetime
    source: str | None
    event_id: str | None


@dataclass(frozen=True, slots=True)
class GrantedRow:
    """A promise that was made."""

    reservation: ReservationRow
    remaining: Decimal | None
    """What can still be promised; null without a hard limit."""


@router.post("/v1/entitlements/reservations", status_code=201)
def reserve(
    body: ReservationBody,
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
    key: Annotated[str, Depends(idempotency_key)],
    response: Response,
) -> GrantedRow:
    """Promise a quantity, or refuse: 409 `limit_exceeded`. What is promised and used never exceeds a hard limit."""
    ttl = timedelta(seconds=body.ttl_seconds)
    granted = parts.reservations.reserve(caller.tenant, key, body.customer, body.feature, body.quantity, ttl)
    if granted.replayed:
        response.headers[REPLAYED] = "true"
    return GrantedRow(_row(granted.reservation), granted.remaining)


@router.get("/v1/entitlements/reservations/{reservation_id}")
def show_reservation(
    reservation_id: PathId, parts: Annotated[Parts, Depends(parts)], caller: Annotated[Caller, Depends(caller)]
) -> ReservationRow:
    """A promise as it stands."""
    return _row(parts.reservations.find(caller.tenant, reservation_id))


@router.post("/v1/entitlements/reservations/{reservation_id}/commit")
def commit_reservation(
    reservation_id: PathId,
    body: CommitBody,
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
) -> ReservationRow:
    """Name the usage event that uses it up; the promise ends when that event is counted. Free to repeat."""
    return _row(parts.reservations.commit(caller.tenant, reservation_id, body.source, body.event_id))


@router.post("/v1/entitlements/reservations/{reservation_id}/release")
def release_reservation(
    reservation_id: PathId, parts: Annotated[Parts, Depends(parts)], caller: Annotated[Caller, Depends(caller)]
) -> ReservationRow:
    """Give it back unused. Free to repeat."""
    return _row(parts.reservations.release(caller.tenant, reservation_id))


def _row(found: Reservation | None) -> ReservationRow:
    """Raises `Problem` 404 where nothing was found."""
    if found is None:
        raise not_found("there is no such reservation")
    return ReservationRow(
        id=found.id,
        customer=found.customer,
        feature=found.feature,
        quantity=found.quantity,
        state=found.state,
        expires_at=found.expires_at,
        source=found.source,
        event_id=found.event_id,
    )
