"""Changes of a subscription's pricing: asked for, decided to take effect at an instant, and folded in that order.

A change at the period's end waits in the list of what is pending. A later command about the same thing replaces what
waits, so that the last word counts whatever instant it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from billing.ids import CustomerId, SubscriptionId
from billing.period import Alignment, Cadence
from billing.pricing import Pricing


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePlan:
    """Put a subscription on another plan."""

    subscription_id: SubscriptionId
    """The subscription."""
    plan: str
    """Key of a plan in the price book in force when the change takes effect."""
    at_period_end: bool = True
    """False changes it now: unused fees are credited, the new plan is charged for the rest of the period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateSubscription:
    """Put a subscription on the newest version of its plan."""

    subscription_id: SubscriptionId
    """The subscription."""
    at_period_end: bool = True
    """False migrates it now."""


Command = ChangePlan | MigrateSubscription


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """A plan of a price book, and the rule that gives its periods."""

    plan: str
    """Key of the plan."""
    price_book_version: int
    """Version of the price book that has it."""
    anchor: str
    """Local date-time, ISO 8601 without offset, from which its periods are computed."""
    interval: str
    """Length of a period, ISO 8601 duration."""
    alignment: Alignment = Alignment.CALENDAR
    """Whether periods start with the calendar or on the anniversary."""

    def cadence(self, zone: str) -> Cadence:
        """The rule that gives its periods, in the subscription's zone."""
        return Cadence(zone, datetime.fromisoformat(self.anchor), self.interval, self.alignment)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionPlanChanged:
    """A subscription is on another plan from an instant on."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    effective_at: datetime
    """From when on (UTC); later than the event if it waits for the period's end."""
    terms: PlanTerms
    """The plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionMigrated:
    """A subscription is on another version of its plan from an instant on."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    effective_at: datetime
    """From when on (UTC); later than the event if it waits for the period's end."""
    terms: PlanTerms
    """The plan in that version."""


Event = SubscriptionPlanChanged | SubscriptionMigrated
Changes = tuple[Event, ...]


def with_change(pending: Changes, change: Event) -> Changes:
    """`pending` with one more change, in the order of effect; what it replaces is left out."""
    kept = [each for each in pending if not _replaces(change, each)]
    kept.append(change)
    return tuple(sorted(kept, key=lambda each: each.effective_at))  # stable: equal instants keep their order


def _replaces(change: Event, earlier: Event) -> bool:
    if earlier.effective_at < change.effective_at:
        return False
    match change, earlier:
        case SubscriptionPlanChanged(), SubscriptionPlanChanged() | SubscriptionMigrated():
            return True
        case SubscriptionMigrated(), SubscriptionMigrated():
            return True
        case _:
            return False


def repriced(pricing: Pricing, change: Event) -> Pricing:
    """What rates a subscription once `change` took effect."""
    match change:
        case SubscriptionPlanChanged(terms=terms) | SubscriptionMigrated(terms=terms):
            return replace(pricing, plan=terms.plan, price_book_version=terms.price_book_version)


def at(pricing: Pricing, changes: Sequence[Event], instant: datetime) -> Pricing:
    """What rates a subscription from `instant` on, with all that takes effect by then."""
    for change in changes:
        if change.effective_at <= instant:
            pricing = repriced(pricing, change)
    return pricing


def timeline(pricing: Pricing, changes: Sequence[Event], start: datetime) -> list[tuple[datetime, Pricing]]:
    """From when on what holds, beginning with `pricing` at `start`."""
    made = [(start, pricing)]
    for change in changes:
        made.append((max(change.effective_at, start), repriced(made[-1][1], change)))
    return made
