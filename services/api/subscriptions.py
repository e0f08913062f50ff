"""Subscriptions: customers on plans."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from billing.ids import CustomerId, SubscriptionId
from billing.plan_change import (
    AddAddOn,
    ChangeBillingAnchor,
    ChangeBillingZone,
    ChangePlan,
    MigrateSubscription,
    RemoveAddOn,
)
from billing.pricing import AddOnQuantity
from billing.subscription import CancelSubscription, CreateSubscription
from services import read_models
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, OfCustomer, Page, PageCursor, PathId
from services.api.parts import Asking, Reading, asking, reading
from services.api.problems import not_found
from services.exact_values import Identifier, Instant, Name, Whole
from services.read_rows import SubscriptionRow
from services.shapes import StrictModel, model_of, value_of

AddOnQuantitySection = model_of(AddOnQuantity)
router = APIRouter(tags=["subscriptions"], route_class=EdgeRoute)


class SubscriptionBody(StrictModel):
    """A new subscription."""

    id: Identifier
    customer: Identifier
    plan: Name
    starts_at: Instant | None = None
    """From when it bills; null means now."""
    currency: Name | None = None
    """ISO 4217 code of the prices it is billed in; null for the plan's first."""
    add_ons: list[AddOnQuantitySection] = Field(default_factory=list)  # type: ignore[valid-type]
    """What it includes from the start."""
    trial: Name | None = None
    """Length of its trial, an ISO 8601 duration; null for that of the plan, P0D for none."""
    ends_at: Instant | None = None
    """When it ends by itself; null for never."""
    billing_day: Whole | None = None
    """Day of the month, 1 to 31, on which periods of an anniversary plan begin; null for that of its start."""
    zone: Name | None = None
    """IANA zone in which its boundaries are local times; null for the seller's."""


class ChangeBody(StrictModel):
    """What a subscription is to be billed by."""

    plan: Name | None = None
    """Key of the new plan; null keeps the plan and takes its newest version."""
    at_period_end: bool = True
    """False changes it now: unused fees are credited, new ones charged for the rest of the period."""


class AddOnBody(StrictModel):
    """How many of an add-on a subscription has from then on."""

    add_on: Name
    """Key of the add-on."""
    quantity: Whole = 1
    """0 removes it."""
    at_period_end: bool = False
    """True waits for the next period; now, fees are charged and credited for the rest of this one."""


class AnchorBody(StrictModel):
    """When the periods of a subscription are to begin."""

    anchor: Instant | None = None
    """When a period begins, or would have begun; null for when the change takes effect."""
    at_period_end: bool = True
    """False ends the current period now; the part up to the next boundary is prorated either way."""


class ZoneBody(StrictModel):
    """In which zone the boundaries of a subscription are local times."""

    zone: Name
    """IANA zone."""


class CancellationBody(StrictModel):
    """How a subscription is to end."""

    at_period_end: bool = True
    """False ends it now, and credits the unused part of fees paid in advance."""


@router.post("/v1/subscriptions", status_code=201, response_model=SubscriptionRow)
def create_subscription(body: SubscriptionBody, asking: Annotated[Asking, Depends(asking)], response: Response) -> Any:
    """Put a customer on a plan."""
    command = CreateSubscription(
        subscription_id=SubscriptionId(body.id),
        customer_id=CustomerId(body.customer),
        plan=body.plan,
        starts_at=body.starts_at,
        currency=body.currency,
        add_ons=value_of(tuple[AddOnQuantity, ...], body.add_ons),
        trial=body.trial,
        ends_at=body.ends_at,
        billing_day=body.billing_day,
        zone=body.zone,
    )
    result = asking.send(command)
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, body.id))


@router.get("/v1/subscriptions")
def list_subscriptions(
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    customer: OfCustomer = None,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[SubscriptionRow]:
    """Subscriptions by id, of all customers or one."""
    scope = [reading.tenant, "subscriptions", customer or ""]
    after = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = read_models.subscriptions(tx, reading.tenant, customer_id=customer, after=after, limit=limit + 1)
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: row.id)


@router.get("/v1/subscriptions/{subscription_id}")
def get_subscription(
    subscription_id: PathId, reading: Annotated[Reading, Depends(reading)], response: Response
) -> SubscriptionRow:
    """One subscription."""
    with reading.transaction(response) as tx:
        found = read_models.subscription(tx, reading.tenant, subscription_id)
    if found is None:
        raise not_found("there is no such subscription")
    return found


@router.post("/v1/subscriptions/{subscription_id}/change", response_model=SubscriptionRow)
def change_subscription(
    subscription_id: PathId, body: ChangeBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Put a subscription on another plan, or on the newest version of its plan, with its next period or at once."""
    id = SubscriptionId(subscription_id)
    command: ChangePlan | MigrateSubscription = MigrateSubscription(
        subscription_id=id, at_period_end=body.at_period_end
    )
    if body.plan is not None:
        command = ChangePlan(subscription_id=id, plan=body.plan, at_period_end=body.at_period_end)
    result = asking.send(command, missing="unknown_subscription")
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, subscription_id))


@router.post("/v1/subscriptions/{subscription_id}/add-ons", response_model=SubscriptionRow)
def set_add_on(
    subscription_id: PathId, body: AddOnBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Include an add-on in a quantity, or none of it."""
    id = SubscriptionId(subscription_id)
    command: AddAddOn | RemoveAddOn = RemoveAddOn(
        subscription_id=id, add_on=body.add_on, at_period_end=body.at_period_end
    )
    if body.quantity != 0:
        command = AddAddOn(
            subscription_id=id, add_on=body.add_on, quantity=body.quantity, at_period_end=body.at_period_end
        )
    result = asking.send(command, missing="unknown_subscription")
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, subscription_id))


@router.post("/v1/subscriptions/{subscription_id}/billing-anchor", response_model=SubscriptionRow)
def change_billing_anchor(
    subscription_id: PathId, body: AnchorBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Have the periods of a subscription begin at other times, from its next one on or at once."""
    command = ChangeBillingAnchor(
        subscription_id=SubscriptionId(subscription_id), anchor=body.anchor, at_period_end=body.at_period_end
    )
    result = asking.send(command, missing="unknown_subscription")
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, subscription_id))


@router.post("/v1/subscriptions/{subscription_id}/billing-zone", response_model=SubscriptionRow)
def change_billing_zone(
    subscription_id: PathId, body: ZoneBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Have the boundaries of a subscription be local times of another zone; its current period ends by it."""
    command = ChangeBillingZone(subscription_id=SubscriptionId(subscription_id), zone=body.zone)
    result = asking.send(command, missing="unknown_subscription")
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, subscription_id))


@router.post("/v1/subscriptions/{subscription_id}/cancel", response_model=SubscriptionRow)
def cancel_subscription(
    subscription_id: PathId, body: CancellationBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """End a subscription, with its current period or at once."""
    command = CancelSubscription(subscription_id=SubscriptionId(subscription_id), at_period_end=body.at_period_end)
    result = asking.send(command, missing="unknown_subscription")
    return asking.answer(response, result, lambda tx: read_models.subscription(tx, asking.tenant, subscription_id))
