"""Usage of small senders: answered only when the broker has it.

Sending again is free: an event counts once by (source, id). What is wrong with one event keeps no other from being
taken, unless the sender asks for all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from billing.errors import Rejected
from billing.metering import UsageEvent, check_event, readings
from services.api.bodies import EdgeRoute
from services.api.parts import Reading, reading
from services.api.problems import Problem, not_found
from services.api.seller import Seller, seller
from services.api.usage_bodies import (
    CLOUDEVENT,
    CLOUDEVENTS,
    EVENTS_MAX,
    JSON_LINES,
    Given,
    UsageContent,
    usage_content,
)
from services.exact_values import Instant, Name, NotFinite, text
from services.meter_expressions import formula
from services.shapes import Fault, StrictModel, faults
from services.usage_placing import spread_of

router = APIRouter(tags=["usage"], route_class=EdgeRoute)

FAULTS_TOLD_MAX = 100  # of a refusal of all; the sender mends and asks again


def text_of(value: object) -> str:
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
    properties: dict[Name, Annotated[str, BeforeValidator(text_of)]] = Field(default_factory=dict)
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
    """Up to 10,000 events."""

    events: Annotated[list[UsageBody], Field(min_length=1, max_length=EVENTS_MAX)]


class CloudEventBody(BaseModel):
    """A CloudEvent 1.0; its extension attributes are passed over."""

    specversion: Literal["1.0"]
    id: str
    """Unique per source; sending it again is free."""
    source: str
    """The producer."""
    type: str
    """What happened; meters choose by it."""
    subject: str
    """The customer who used it."""
    time: Instant
    """When."""
    data: dict[Name, str] = Field(default_factory=dict)
    """Details; whole numbers may be numbers, decimal numbers are text."""


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


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_EVENTS = {"type": "array", "minItems": 1, "maxItems": EVENTS_MAX}
_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        _reference("UsageBody"),
                        _EVENTS | {"items": _reference("UsageBody")},
                        _reference("UsageBatchBody"),
                    ]
                }
            },
            JSON_LINES[0]: {"schema": _reference("UsageBody")},
            CLOUDEVENT: {"schema": _reference("CloudEventBody")},
            CLOUDEVENTS: {"schema": _EVENTS | {"items": _reference("CloudEventBody")}},
        },
    }
}
_ALL_OR_NOTHING = "If one event is wrong, take none and answer 422. Default: take the others and answer 207."


@router.post(
    "/v1/usage",
    status_code=202,
    response_model=UsageResult,
    responses={207: {"model": UsageResult, "description": "Some events were rejected; the others are taken."}},
    openapi_extra=_SCHEMA,
)
def send_usage(
    content: Annotated[UsageContent, Depends(usage_content)],
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    all_or_nothing: Annotated[bool, Query(description=_ALL_OR_NOTHING)] = False,
) -> UsageResult:
    """Report usage: up to 10,000 events as JSON, JSON Lines or CloudEvents (structured, batched, or binary).

    Answered when the log has every event that is told as accepted. An event counts once, however often it is sent.
    """
    given = content.given()
    with reading.transaction() as tx:
        judge = seller(tx, reading.tenant, reading.parts.clock.now())
        spread = spread_of(tx, reading.tenant)
    if judge is None:
        raise not_found("the tenant is not registered")
    results, events = _judged(given, judge)
    refused = [each for each in results if each.status == "rejected"]
    if refused and given.is_single:
        only = refused[0]
        raise Problem(422, only.code, only.detail, errors=[Fault(only.code, only.detail, only.field)])
    if refused and all_or_nothing:
        raise _nothing_taken(refused, len(results))
    if events:
        reading.parts.usage.publish(reading.tenant, events, spread)
    if refused:
        response.status_code = 207
    duplicate = sum(1 for each in results if each.status == "duplicate")
    return UsageResult(accepted=len(events), duplicate=duplicate, rejected=len(refused), items=results)


def _nothing_taken(refused: list[ItemResult], given: int) -> Problem:
    told = [
        Fault(each.code, each.detail, f"[{each.index}].{each.field}" if each.field else f"[{each.index}]")
        for each in refused[:FAULTS_TOLD_MAX]
    ]
    said = f"{len(refused):,} of {given:,} events are wrong, so none was taken"
    if len(refused) > len(told):
        said += f"; the first {len(told)} are told"
    return Problem(422, "batch_refused", said, errors=told)


def _judged(given: Given, judge: Seller) -> tuple[list[ItemResult], list[UsageEvent]]:
    results: list[ItemResult] = []
    events: dict[tuple[str, str], UsageEvent] = {}
    for index, item in enumerate(given.items):
        named = item.get("id") if isinstance(item, dict) else None
        result = ItemResult(index, named if isinstance(named, str) and named.isprintable() else None, "accepted")
        try:
            event = _event(item)
            check_event(event, judge.bounds, judge.now)
            readings(event, judge.meters, formula)
            known = events.setdefault((event.source, event.id), event)
            if known is not event and known != event:
                raise Rejected("id_conflict", "the same source and id stand before with other content", field="id")
            results.append(result if known is event else replace(result, status="duplicate"))
        except ValidationError as e:
            fault = faults(e, item)[0]
            results.append(_rejected(result, fault.code, fault.detail, given.told(fault.field)))
        except Rejected as e:
            results.append(_rejected(result, e.code, e.detail, given.told(e.field)))
    return results, list(events.values())


def _event(item: Any) -> UsageEvent:
    """Raises `Rejected` or `ValidationError`."""
    if isinstance(item, Fault):
        raise Rejected(item.code, item.detail, field=item.field)
    return UsageBody.model_validate(item).event()


def _rejected(result: ItemResult, code: str, detail: str, field: str) -> ItemResult:
    return replace(result, status="rejected", code=code, detail=detail, field=field)
