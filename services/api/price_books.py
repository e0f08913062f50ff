"""Price books: what is measured and what it costs, in immutable versions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from billing.catalog import PriceBookPublished, PublishPriceBook, check_price_book
from infra.postgres import Cursor
from services import read_models
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor
from services.api.parts import Asking, Reading, asking, reading
from services.api.problems import not_found
from services.meter_expressions import check_expressions
from services.read_rows import PriceBookRow
from services.shapes import model_of, plain, value_of

router = APIRouter(tags=["price books"], route_class=EdgeRoute)

PriceBookBody = model_of(PublishPriceBook)
PriceBook = model_of(PriceBookPublished)


@router.post("/v1/price-books", status_code=201, response_model=PriceBook)
def publish(
    body: PriceBookBody,  # type: ignore[valid-type]  # made from the dataclass
    asking: Annotated[Asking, Depends(asking)],
    response: Response,
) -> Any:
    """Publish the next version; the answer is the newest one, also if it says the same as before."""
    command = value_of(PublishPriceBook, body)
    check_price_book(command)
    check_expressions(command.meters)

    def newest(tx: Cursor) -> Any:
        return plain(read_models.price_book(tx, asking.tenant))

    return asking.answer(response, asking.send(command), newest)


@router.get("/v1/price-books")
def list_price_books(
    reading: Annotated[Reading, Depends(reading)], response: Response, limit: Limit = 50, cursor: PageCursor = None
) -> Page[PriceBookRow]:
    """All versions, newest first."""
    scope = [reading.tenant, "price-books"]
    below = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = read_models.book_versions(tx, reading.tenant, below=int(below) if below else None, limit=limit + 1)
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: str(row.version))


@router.get("/v1/price-books/{version}", response_model=PriceBook)
def get_price_book(
    version: Annotated[int, Path(ge=1, le=2**31 - 1)], reading: Annotated[Reading, Depends(reading)], response: Response
) -> Any:
    """One version, whole."""
    with reading.transaction(response) as tx:
        found = read_models.price_book(tx, reading.tenant, version)
    if found is None:
        raise not_found("there is no such version")
    return plain(found)
