"""Customers: who pays, with which coupons and how."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from billing.credit import CreditKind
from billing.customer import (
    AttachPaymentMethod,
    CreateCustomer,
    PaymentMethod,
    Provider,
    RedeemCoupon,
    SetJurisdiction,
    SetPriceOverride,
)
from billing.ids import CustomerId
from billing.money import Money
from billing.prepaid import BALANCE_PRIORITY, ExpireCredit, GrantCredit
from billing.pricing import PriceOverride
from billing.tax import check_jurisdiction
from infra import postgres
from infra.money_format import check_locale
from services import customer_profile, read_models
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor, PathId
from services.api.parts import Asking, Reading, asking, reading
from services.api.problems import Problem, not_found
from services.customer_profile import Profile
from services.exact_values import ExactDecimal, Identifier, Instant, Name, Text, Whole
from services.read_rows import CustomerRow
from services.shapes import StrictModel, model_of, value_of

OverrideBody = model_of(PriceOverride)
router = APIRouter(tags=["customers"], route_class=EdgeRoute)

_CARD = re.compile(r"(?:[0-9][ -]?){12,18}[0-9]\Z", re.ASCII)
_CARD_FIELDS = frozenset(("card", "card_number", "cvc", "cvv", "cvv2", "exp_month", "exp_year"))


def _no_card(value: object) -> object:
    """A card number must not come near this system: it goes to the provider, which gives a token."""
    if isinstance(value, str) and _CARD.match(value) and _luhn([int(each) for each in value if each.isdigit()]):
        raise PydanticCustomError("card_data_refused", "card data belongs to the payment provider; send its token")
    return value


def _luhn(digits: list[int]) -> bool:
    doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


class PaymentMethodBody(StrictModel):
    """How a customer pays: a provider and its token; never a card number."""

    provider: Annotated[str, Field(pattern="^(manual|sandbox|stripe)$")] = "manual"
    token: Annotated[Text, BeforeValidator(_no_card)] = ""

    @model_validator(mode="before")
    @classmethod
    def _no_card_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and _CARD_FIELDS & given.keys():
            raise PydanticCustomError("card_data_refused", "card data belongs to the payment provider; send its token")
        return given

    def method(self) -> PaymentMethod:
        """The domain's form."""
        return PaymentMethod(provider=Provider(self.provider), token=self.token)


class CustomerBody(StrictModel):
    """A new customer. Name and address stay out of the log."""

    id: Identifier
    name: Annotated[Text, BeforeValidator(_no_card)] = ""
    email: Annotated[Text, BeforeValidator(_no_card)] = ""
    payment_method: PaymentMethodBody = PaymentMethodBody()
    jurisdiction: Text = ""
    locale: Text = ""


class CreditBody(StrictModel):
    """Credit that pays invoices of its currency."""

    id: Identifier
    amount: ExactDecimal
    currency: Name
    priority: Whole = BALANCE_PRIORITY
    kind: Annotated[str, Field(pattern="^(granted|purchased)$")] = "granted"
    expires_at: Instant | None = None
    reason: Annotated[Text, BeforeValidator(_no_card)] = ""


class JurisdictionBody(StrictModel):
    """Where a customer is taxed, such as US-NY; empty for the tenant's own rates."""

    jurisdiction: Text


class CouponBody(StrictModel):
    """A coupon of the price book in force."""

    coupon: Name


@router.post("/v1/customers", status_code=201, response_model=CustomerRow)
def create_customer(body: CustomerBody, asking: Annotated[Asking, Depends(asking)], response: Response) -> Any:
    """Add a customer."""
    if body.locale:
        check_locale(body.locale)
    if body.jurisdiction:
        check_jurisdiction(body.jurisdiction, "jurisdiction")
    command = CreateCustomer(
        customer_id=CustomerId(body.id), payment_method=body.payment_method.method(), jurisdiction=body.jurisdiction
    )
    result = asking.send(command)
    given = Profile(body.name, body.email, body.locale)
    with postgres.tenant_transaction(asking.parts.pool, asking.tenant) as tx:
        stored = customer_profile.write_first(tx, asking.tenant, body.id, given)
    if stored != given and result.replayed:
        raise Problem(422, "idempotency_key_reused", "the key was used for a customer with another name or email")
    if stored != given:
        raise Problem(409, "customer_exists", f"customer {body.id!r} exists with another name or email")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, body.id))


@router.get("/v1/customers")
def list_customers(
    reading: Annotated[Reading, Depends(reading)], response: Response, limit: Limit = 50, cursor: PageCursor = None
) -> Page[CustomerRow]:
    """All customers by id."""
    scope = [reading.tenant, "customers"]
    after = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = read_models.customers(tx, reading.tenant, after=after, limit=limit + 1)
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: row.id)


@router.get("/v1/customers/{customer_id}")
def get_customer(customer_id: PathId, reading: Annotated[Reading, Depends(reading)], response: Response) -> CustomerRow:
    """One customer."""
    with reading.transaction(response) as tx:
        found = read_models.customer(tx, reading.tenant, customer_id)
    if found is None:
        raise not_found("there is no such customer")
    return found


@router.post("/v1/customers/{customer_id}/coupons", status_code=201, response_model=CustomerRow)
def redeem_coupon(
    customer_id: PathId, body: CouponBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Give a customer the discount of a coupon."""
    command = RedeemCoupon(customer_id=CustomerId(customer_id), coupon=body.coupon)
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))


@router.post("/v1/customers/{customer_id}/credits", status_code=201, response_model=CustomerRow)
def grant_credit(
    customer_id: PathId, body: CreditBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Grant a customer credit: it pays invoices by priority, then by what expires first."""
    command = GrantCredit(
        customer_id=CustomerId(customer_id),
        grant_id=body.id,
        amount=Money.exactly(body.amount, body.currency),
        priority=body.priority,
        kind=CreditKind(body.kind),
        expires_at=body.expires_at,
        reason=body.reason,
    )
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))


@router.post("/v1/customers/{customer_id}/credits/{grant_id}/expiry", response_model=CustomerRow)
def expire_credit(
    customer_id: PathId, grant_id: PathId, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Write off what is left of a grant whose time is over; by itself that happens with the customer's next invoice."""
    command = ExpireCredit(customer_id=CustomerId(customer_id), grant_id=grant_id)
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))


@router.put("/v1/customers/{customer_id}/prices", response_model=CustomerRow)
def set_own_prices(
    customer_id: PathId,
    body: OverrideBody,  # type: ignore[valid-type]
    asking: Annotated[Asking, Depends(asking)],
    response: Response,
) -> Any:
    """Have a customer pay own prices for a plan, from the next period of each subscription on; none takes them back."""
    command = SetPriceOverride(customer_id=CustomerId(customer_id), override=value_of(PriceOverride, body))
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))


@router.put("/v1/customers/{customer_id}/jurisdiction", response_model=CustomerRow)
def set_jurisdiction(
    customer_id: PathId, body: JurisdictionBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Have a customer be taxed elsewhere, on invoices that are fixed from now on."""
    command = SetJurisdiction(customer_id=CustomerId(customer_id), jurisdiction=body.jurisdiction)
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))


@router.put("/v1/customers/{customer_id}/payment-method", response_model=CustomerRow)
def attach_payment_method(
    customer_id: PathId, body: PaymentMethodBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Change how a customer pays; attempts from now on use it."""
    command = AttachPaymentMethod(customer_id=CustomerId(customer_id), payment_method=body.method())
    result = asking.send(command, missing="unknown_customer")
    return asking.answer(response, result, lambda tx: read_models.customer(tx, asking.tenant, customer_id))
