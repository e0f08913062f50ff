"""Subscribing: a customer is put on a plan, with a trial, an end and a billing day if wished.

starts_at      trial_ends_at = anchor
    |--- trial ---|---- period 1 ----|---- period 2 ----|
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from billing import tenant
from billing.catalog_check import check_trial
from billing.errors import Rejected
from billing.ids import check_id
from billing.period import add_interval, check_day, check_zone
from billing.plan import Plan, prices_in
from billing.pricing import check_quantities, priced
from billing.subscription import Absent, Active, CreateSubscription, Event, Scheduled, SubscriptionCreated, initial

if TYPE_CHECKING:
    from billing.decision import TenantState

NO_TRIAL = "P0D"


def create(
    state: TenantState, seller: tenant.Registered, command: CreateSubscription, now: datetime
) -> Sequence[Event]:
    """The facts that follow; none if it exists just so.

    Raises:
        Rejected: naming the field that could not be billed, or it exists on other terms.
    """
    if command.customer_id not in state.customers:
        raise Rejected("unknown_customer", f"there is no customer {command.customer_id!r}", field="customer_id")
    starts_at = _utc(command.starts_at, "starts_at") if command.starts_at else now
    book = state.catalog.at(max(starts_at, now))
    zone = command.zone or seller.settings.zone
    check_zone(zone, "zone")
    made = _created(command, book.plan(command.plan), book.version, zone, starts_at)
    check_quantities(command.add_ons)
    priced(made.pricing, state.catalog.by_version)  # or it is refused
    match state.subscriptions.get(command.subscription_id, initial):
        case Absent():
            return [made]
        case Scheduled(terms=terms) | Active(terms=terms) if terms == made:
            return []
    raise Rejected("subscription_exists", f"subscription {command.subscription_id!r} exists")


def _created(
    command: CreateSubscription, plan: Plan, version: int, zone: str, starts_at: datetime
) -> SubscriptionCreated:
    """The fact that `command` asks for, under the terms of `plan`."""
    check_id(command.subscription_id, "subscription_id")
    currency = command.currency or plan.currency
    if prices_in(plan, currency) is None:
        known = ", ".join([plan.currency, *(each.currency for each in plan.prices)])
        raise Rejected("currency_mismatch", f"plan {plan.key!r} has prices in {known}", field="currency")
    trial_ends_at = _trial_end(command, plan, zone, starts_at)
    anchor = trial_ends_at or starts_at
    made = SubscriptionCreated(
        subscription_id=command.subscription_id,
        customer_id=command.customer_id,
        plan=plan.key,
        price_book_version=version,
        currency=currency,
        starts_at=starts_at,
        zone=zone,
        anchor=anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None).isoformat(),
        interval=plan.interval,
        alignment=plan.alignment,
        add_ons=tuple(sorted(command.add_ons, key=lambda each: each.add_on)),
        trial_ends_at=trial_ends_at,
        ends_at=_end(command, starts_at),
        billing_day=command.billing_day,
    )
    check_day(made.cadence, "billing_day")
    return made


def _trial_end(command: CreateSubscription, plan: Plan, zone: str, starts_at: datetime) -> datetime | None:
    """At the local time of the start, so that a trial of two weeks ends on the same weekday at the same hour."""
    length = plan.trial if command.trial is None else command.trial
    if length is None or length == NO_TRIAL:
        return None
    check_trial(length, "trial")
    return add_interval(starts_at, length, 1, zone)


def _end(command: CreateSubscription, starts_at: datetime) -> datetime | None:
    if command.ends_at is None:
        return None
    ends_at = _utc(command.ends_at, "ends_at")
    if ends_at <= starts_at:
        said = f"{ends_at} is not after the start, {starts_at}; allowed is any later time"
        raise Rejected("end_before_start", said, field="ends_at")
    return ends_at


def _utc(instant: datetime, field: str) -> datetime:
    """`instant` in UTC.

    Raises:
        Rejected: it has no offset.
    """
    if instant.tzinfo is None:
        raise Rejected("invalid_time", "a time needs an offset, such as 2026-02-01T00:00:00Z", field=field)
    return instant.astimezone(UTC)
