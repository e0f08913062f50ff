"""Payments and the books."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response

from billing.ids import InvoiceId
from billing.payment import RecordManualPayment
from services import read_models
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, OfCustomer, Page, PageCursor, PathId
from services.api.parts import Asking, Reading, asking, reading
from services.exact_values import Name
from services.read_rows import BalanceRow, PaymentRow
from services.shapes import StrictModel

router = APIRouter(route_class=EdgeRoute)

State = Literal["due", "pending", "unknown", "declined", "collected", "exhausted"]


class ManualPaymentBody(StrictModel):
    """A payment that was made outside, such as by bank transfer."""

    reference: Name
    """Where it can be found, such as a line of a bank statement."""


@router.post("/v1/invoices/{invoice_id}/payments", tags=["payments"], status_code=201, response_model=PaymentRow)
def record_payment(
    invoice_id: PathId, body: ManualPaymentBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Record that an invoice was paid in full outside."""
    command = RecordManualPayment(invoice_id=InvoiceId(invoice_id), reference=body.reference)
    result = asking.send(command, missing="unknown_invoice")

    def paid(tx: Any) -> PaymentRow | None:
        return next(iter(read_models.payments(tx, asking.tenant, invoice_id=invoice_id, limit=1)), None)

    return asking.answer(response, result, paid)


@router.get("/v1/payments", tags=["payments"])
def list_payments(
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    customer: OfCustomer = None,
    state: State | None = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[PaymentRow]:
    """What is collected, per invoice, with every attempt."""
    scope = [reading.tenant, "payments", customer or "", state or ""]
    after = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = read_models.payments(tx, reading.tenant, customer_id=customer, state=state, after=after, limit=limit + 1)
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: row.invoice)


@router.get("/v1/ledger/balances", tags=["ledger"])
def ledger_balances(reading: Annotated[Reading, Depends(reading)], response: Response) -> list[BalanceRow]:
    """The trial balance: balances sum to zero per currency."""
    with reading.transaction(response) as tx:
        return read_models.balances(tx, reading.tenant)
