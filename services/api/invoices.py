"""Invoices: issued documents and how their payment goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import HTMLResponse

from billing.money import Money
from services import invoice_document, read_models
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, OfCustomer, Page, PageCursor, PathId
from services.api.parts import Reading, reading
from services.api.problems import not_found
from services.read_rows import Amount, InvoiceRow, IssuedInvoice, PaymentRow

router = APIRouter(tags=["invoices"], route_class=EdgeRoute)


@dataclass(frozen=True, slots=True)
class LineBody:
    """One line."""

    kind: str
    charge: str
    description: str
    period_start: datetime
    period_end: datetime
    quantity: Decimal | None
    amount: Amount
    discount: Amount
    explanation: str
    """The arithmetic as text."""


@dataclass(frozen=True, slots=True)
class DiscountBody:
    """What one coupon took off."""

    coupon: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class TaxBody:
    """Tax of one rate, rounded once."""

    code: str
    percent: Decimal
    inclusive: bool
    amount: Amount


@dataclass(frozen=True, slots=True)
class CreditPaidBody:
    """What one grant paid."""

    grant: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class PositionBody:
    """Up to where one partition of the usage log is billed, exclusive."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class InvoiceBody:
    """An invoice with everything that it was made of."""

    invoice: InvoiceRow
    customer_name: str
    seller: str
    lines: list[LineBody]
    discounts: list[DiscountBody]
    taxes: list[TaxBody]
    credit_applied: Amount
    credits: list[CreditPaidBody]
    """What grants paid of that, in the order of spending; the rest is credit of negative invoices."""
    plan: str
    price_book_version: int
    rating_engine: str
    cut_until: datetime
    cut_positions: list[PositionBody]
    canonical_hash: str
    """SHA-256 of the document, hexadecimal; a replay gives the same."""
    payment: PaymentRow | None


@router.get("/v1/invoices")
def list_invoices(
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    customer: OfCustomer = None,
    status: Literal["open", "paid"] | None = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[InvoiceRow]:
    """Invoices in the order of their numbers."""
    scope = [reading.tenant, "invoices", customer or "", status or ""]
    after = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = read_models.invoice_rows(
            tx, reading.tenant, customer_id=customer, status=status, after=int(after or 0), limit=limit + 1
        )
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: str(row.serial))


# Before the route without the suffix: an id may hold a point, so that one would take this address too.
@router.get("/v1/invoices/{invoice_id}.html", response_class=HTMLResponse)
def invoice_as_html(invoice_id: PathId, reading: Annotated[Reading, Depends(reading)]) -> HTMLResponse:
    """One invoice for printing: one file, nothing to fetch."""
    page = invoice_document.as_html(_found(reading, invoice_id, None))
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


@router.get("/v1/invoices/{invoice_id}")
def get_invoice(invoice_id: PathId, reading: Annotated[Reading, Depends(reading)], response: Response) -> InvoiceBody:
    """One invoice by id or number."""
    return body(_found(reading, invoice_id, response))


def _found(reading: Reading, name: str, response: Response | None) -> IssuedInvoice:
    with reading.transaction(response) as tx:
        found = read_models.invoice(tx, reading.tenant, name)
    if found is None:
        raise not_found("there is no such invoice")
    return found


def body(issued: IssuedInvoice) -> InvoiceBody:
    """`issued` as programs read it."""
    document = issued.document
    return InvoiceBody(
        invoice=issued.row,
        customer_name=issued.buyer.name,
        seller=document.seller,
        lines=[
            LineBody(
                kind=str(each.rated.kind),
                charge=each.rated.charge,
                description=each.rated.description,
                period_start=each.rated.period.start,
                period_end=each.rated.period.end,
                quantity=each.rated.quantity,
                amount=_amount(each.rated.amount),
                discount=_amount(each.discount),
                explanation=each.rated.explanation,
            )
            for each in document.lines
        ],
        discounts=[DiscountBody(each.coupon, _amount(each.amount)) for each in document.discounts],
        taxes=[
            TaxBody(each.rate.code, each.rate.percent, each.rate.inclusive, _amount(each.amount))
            for each in document.taxes
        ],
        credit_applied=_amount(document.credit_applied),
        credits=[CreditPaidBody(each.grant_id, _amount(each.amount)) for each in document.credits],
        plan=document.run.plan,
        price_book_version=document.run.price_book_version,
        rating_engine=document.run.rating_engine,
        cut_until=document.run.cut.until,
        cut_positions=[PositionBody(each.partition, each.offset) for each in document.run.cut.positions],
        canonical_hash=issued.canonical_hash,
        payment=issued.payment,
    )


def _amount(money: Money) -> Amount:
    return Amount.of(money.minor, money.currency)
