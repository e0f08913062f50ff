"""Quantities of a meter by window, customer and dimension: usage as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from billing.metering import Aggregation
from billing.period import Period, check_zone
from projections import generation, usage_meters, usage_query
from projections.usage_query import Answer, Question
from services.api.bodies import EdgeRoute
from services.api.pages import PAGE_MAX, OfCustomer, PageCursor
from services.api.parts import Reading, reading
from services.api.usage_reads import present
from services.exact_values import Instant, Name

router = APIRouter(tags=["usage"], route_class=EdgeRoute)


@dataclass(frozen=True, slots=True)
class QuantityBody:
    """What was measured in one window, for one customer or all, and one combination of dimension values."""

    start: datetime
    end: datetime
    customer: str | None
    """Null where customers are not told apart."""
    dimensions: dict[str, str]
    quantity: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class UsageQuantities:
    """An answer about a meter; with `by=customer` a page of it."""

    meter: str
    aggregation: Aggregation
    start: datetime
    end: datetime
    """On each page what it was on the first."""
    window: str | None
    zone: str
    data: list[QuantityBody]
    """In order of time, customer and dimensions. Where nothing was measured there is no row: a page may be empty and
    still have a `next_cursor`."""
    next_cursor: str | None
    """Ask with it for the customers that follow; null on the last page, and where customers are not told apart."""


@router.get("/v1/usage")
def query_usage(
    reading: Annotated[Reading, Depends(reading)],
    meter: Annotated[Name, Query(description="Key of the meter.")],
    start: Annotated[Instant, Query(alias="from", description="From this event time on.")],
    end: Annotated[Instant | None, Query(alias="to", description="Before this event time. Default: now.")] = None,
    window: Annotated[Literal["minute", "hour", "day", "week", "month"] | None, Query()] = None,
    zone: Annotated[str, Query(description="IANA zone of the windows.")] = "UTC",
    customer: OfCustomer = None,
    by: Annotated[
        list[Name] | None, Query(description="`customer` or a dimension: a row for each. May be repeated.")
    ] = None,
    where: Annotated[
        list[Name] | None, Query(description="`dimension:value`: only usage with it. May be repeated.")
    ] = None,
    limit: Annotated[
        int, Query(ge=1, le=PAGE_MAX, description="How many customers at most, with `by=customer`: not rows.")
    ] = 50,
    cursor: PageCursor = None,
) -> UsageQuantities:
    """Quantities of a meter: exact, and equal to what an invoice at this moment would bill.

    With `by=customer` they come in pages: all rows of up to `limit` customers, by name; fewer where there are many
    windows. A customer without usage in the span takes its place in a page and has no row.
    """
    check_zone(zone, "zone")
    names = list(dict.fromkeys(by or ()))
    asked = [meter, start.isoformat(), end.isoformat() if end else "", window or "", zone, customer or ""]
    split = [*(f"by:{each}" for each in names), *(f"where:{each}" for each in where or ())]
    scope = [reading.tenant, "quantities", *asked, *split]
    until, _, after = reading.parts.cursors.open(scope, cursor).partition(" ")
    with reading.transaction() as tx:
        generation.enter_all(tx)
        upto = datetime.fromisoformat(until) if until else end or present(reading, tx)
        question = Question(
            meter=usage_meters.meter(tx, reading.tenant, meter),
            period=Period.between(start, upto, "to"),
            window=window,
            zone=zone,
            customer=customer,
            by_customer="customer" in names,
            by=tuple(each for each in names if each != "customer"),
            where=usage_query.conditions(where or ()),
        )
        page = usage_query.page(tx, reading.tenant, question, after=after, limit=limit)
    following = None
    if page.following is not None:
        # With the end: what is asked up to now means the same span on every page.
        following = reading.parts.cursors.seal(scope, f"{upto.isoformat()} {page.following}")
    data = [_body(each, question) for each in page.rows]
    return UsageQuantities(meter, question.meter.aggregation, start, upto, window, zone, data, following)


def _body(each: Answer, question: Question) -> QuantityBody:
    return QuantityBody(
        each.period.start,
        each.period.end,
        each.customer,
        dict(zip(question.by, each.dimensions, strict=True)),
        each.quantity,
        each.events,
    )
