"""May this customer use the feature now?"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends

from services.api.bodies import EdgeRoute
from services.api.pages import PathId
from services.api.parts import Parts, caller, parts
from services.api_keys import Caller

router = APIRouter(tags=["entitlements"], route_class=EdgeRoute)


@dataclass(frozen=True, slots=True)
class AccessBody:
    """The answer."""

    allowed: bool
    reason: str
    """`granted`, `within_limit`, `limit_exceeded` or `not_granted`."""
    used: Decimal | None
    limit: Decimal | None
    remaining: Decimal | None
    source: str
    """Where the answer came from."""


@router.get("/v1/customers/{customer_id}/entitlements/{feature}")
def entitlement(
    customer_id: PathId,
    feature: PathId,
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
) -> AccessBody:
    """Whether one more unit of the feature may be used. An unknown customer has no features."""
    access, source = parts.entitlements.access(caller.tenant, customer_id, feature)
    return AccessBody(access.allowed, access.reason, access.used, access.limit, access.remaining, source)
