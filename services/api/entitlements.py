"""May this customer use the feature now?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends

from billing.entitlement import WhenUnknown
from services.api.bodies import EdgeRoute
from services.api.pages import PathId
from services.api.parts import Parts, caller, parts
from services.api_keys import Caller
from services.entitlements import Answer

router = APIRouter(tags=["entitlements"], route_class=EdgeRoute)


@dataclass(frozen=True, slots=True)
class AccessBody:
    """The answer."""

    allowed: bool
    reason: str
    """`granted`, `within_limit`, `limit_exceeded`, `not_granted`, or `unknown`: the policy decided."""
    used: Decimal | None
    limit: Decimal | None
    remaining: Decimal | None
    source: str
    """`cache`, `database`, or `policy`: nobody could be asked, so `when_unknown` decided."""
    stale: bool
    """Nobody could be asked whether it still holds."""
    as_of: datetime | None
    """Everything counted and granted by then is in it."""
    version: str
    """`GRANTS-USAGE`, as pushed on the tenant's channel: of two, the greater pair of numbers is the newer."""
    when_unknown: WhenUnknown
    """What to answer for whoever reaches nobody: `closed` or `open`."""


PATH = "/v1/customers/{customer_id}/entitlements/{feature}"


@router.get(PATH)
def entitlement(
    customer_id: PathId,
    feature: PathId,
    parts: Annotated[Parts, Depends(parts)],
    caller: Annotated[Caller, Depends(caller)],
) -> AccessBody:
    """Whether one more unit of the feature may be used. An unknown customer has no features."""
    return body_of(parts.entitlements.access(caller.tenant, customer_id, feature))


def body_of(answer: Answer) -> AccessBody:
    """`answer` as it is told."""
    access = answer.access
    return AccessBody(
        allowed=access.allowed,
        reason=access.reason,
        used=access.used,
        limit=access.limit,
        remaining=access.remaining,
        source=answer.source,
        stale=answer.stale,
        as_of=answer.as_of,
        version=answer.version,
        when_unknown=answer.when_unknown,
    )
