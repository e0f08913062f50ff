"""Usage of small senders: answered only when the broker has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Response
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from billing.errors import Rejected
from billing.metering import UsageEvent, check_event, readings
from services.api.bodies import EdgeRoute
from services.api.parts import Reading, reading
from services.api.problems import Problem, not_found
from services.api.seller import Seller, seller
from services.exact_values import Instant, Name, NotFinite, text
from services.shapes import Fault, StrictModel, faults

router = APIRouter(tags=["usage"], route_class=EdgeRoute)

BATCH_MAX = 1000


def _property(value: object) -> str:
    """A property's value as text; whole numbers are exact and may come as numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, NotFinite):
        raise PydanticCustomError("not_finite", "a finite number is needed here")
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_type", 'send text, or a whole number; decimals as text, such as "0.25"')
    return text(value)


class UsageBody(StrictModel):
    """Something a customer used."""

    id: str
    """Unique per source; sending it again is free."""
    source: str
    """The producer, such as a service's name."""
    type: str
    """What happened; meters choose by it."""
    customer: str
    """Who used it."""
    time: Instant
    """When."""
    properties: dict[Name, Annotated[str, BeforeValidator(_property)]] = Field(default_factory=dict)
    """Details; decimal numbers as text."""

    def event(self) -> UsageEvent:
        """The domain's form."""
        return UsageEvent(
            id=self.id,
            source=self.source,
            type=self.type,
            customer=self.customer,
            time=self.time,
            properties=dict(self.properties),
        )


class UsageBatchBody(StrictModel):
    """Up to 1,000 events."""

    events: Annotated[list[UsageBody], Field(min_length=1, max_length=BATCH_MAX)]


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one event of a request."""

    index: int
    id: str | None
    status: str
    """`accepted`: the broker has it. `duplicate`: it stands in the same request before. `rejected`: see `code`."""
    code: str = ""
    detail: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class UsageResult:
    """What became of the events of a request."""

    accepted: int
    duplicate: int
    rejected: int
    items: list[ItemResult]


_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/UsageBody"},
                        {"$ref": "#/components/schemas/UsageBatchBody"},
                    ]
                }
            }
        },
    }
}


@router.post(
    "/v1/usage",
    status_code=202,
    response_model=UsageResult,
    responses={207: {"model": UsageResult, "description": "Some events were rejected; the others are taken."}},
    openapi_extra=_SCHEMA,
)
def send_usage(
    given: Annotated[Any, Body()], reading: Annotated[Reading, Depends(reading)], response: Response
) -> UsageResult:
    """Report usage: one event, or `{"events": [...]}`. What is wrong with one event keeps no other from being taken."""
    items, is_batch = _items(given)
    with reading.transaction() as tx:
        judge = seller(tx, reading.tenant, reading.parts.clock.now())
    if judge is None:
        raise not_found("the tenant is not registered")
    results, events = _judged(items, judge)
    if not is_batch and results[0].status == "rejected":
        only = results[0]
        raise Problem(422, only.code, only.detail, errors=[Fault(only.code, only.detail, only.field)])
    if events:
        reading.parts.usage.publish(reading.tenant, events)
    counts = {status: sum(1 for each in results if each.status == status) for status in ("duplicate", "rejected")}
    if counts["rejected"]:
        response.status_code = 207
    return UsageResult(accepted=len(events), **counts, items=results)


def _items(given: Any) -> tuple[list[Any], bool]:
    if not isinstance(given, dict):
        raise Problem(422, "invalid_type", 'send one event, or {"events": [...]}')
    if "events" not in given:
        return [given], False
    extra = next((name for name in given if name != "events"), None)
    if extra is not None:
        said = "a batch has the field events and no other"
        raise Problem(422, "unknown_field", said, errors=[Fault("unknown_field", said, ascii(extra)[1:-1][:60])])
    events = given["events"]
    if not isinstance(events, list) or not events:
        said = "a list of at least one event is needed here"
        raise Problem(422, "invalid_type", said, errors=[Fault("invalid_type", said, "events")])
    if len(events) > BATCH_MAX:
        raise Problem(413, "batch_too_large", f"{len(events):,} events; allowed are {BATCH_MAX:,} in one request")
    return events, True


def _judged(items: list[Any], judge: Seller) -> tuple[list[ItemResult], list[UsageEvent]]:
    results: list[ItemResult] = []
    events: dict[tuple[str, str], UsageEvent] = {}
    for index, item in enumerate(items):
        named = item.get("id") if isinstance(item, dict) else None
        result = ItemResult(index, named if isinstance(named, str) and named.isprintable() else None, "accepted")
        try:
            event = UsageBody.model_validate(item).event()
            check_event(event, judge.bounds, judge.now)
            readings(event, judge.meters)
            known = events.setdefault((event.source, event.id), event)
            if known is not event and known != event:
                raise Rejected("id_conflict", "the same source and id stand before with other content", field="id")
            results.append(result if known is event else replace(result, status="duplicate"))
        except ValidationError as e:
            fault = faults(e, item)[0]
            results.append(_rejected(result, fault.code, fault.detail, fault.field))
        except Rejected as e:
            results.append(_rejected(result, e.code, e.detail, e.field))
    return results, list(events.values())


def _rejected(result: ItemResult, code: str, detail: str, field: str) -> ItemResult:
    return replace(result, status="rejected", code=code, detail=detail, field=field)
