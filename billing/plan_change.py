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
from billing.pricing import AddOnQuantity, PriceOverride, Pricing
from billing.segments import BilledSpan


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddOn:
    """Have a subscription include an add-on, in a quantity."""

    subscription_id: SubscriptionId
    """The subscription."""
    add_on: str
    """Key of an add-on in the price book that the subscription is billed under."""
    quantity: int = 1
    """How many there are from then on; another number than before is a change of it."""
    at_period_end: bool = False
    """True waits for the next period; now, its fees are charged for the rest of the period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAddOn:
    """Take an add-on off a subscription."""

    subscription_id: SubscriptionId
    """The subscription."""
    add_on: str
    """Key of the add-on."""
    at_period_end: bool = True
    """False removes it now, and credits the unused part of its fees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeBillingAnchor:
    """Have the periods of a subscription begin at other times."""

    subscription_id: SubscriptionId
    """The subscription."""
    anchor: datetime | None = None
    """When a period begins, or would have begun; every other one is counted from it. Null: when the change takes
    effect."""
    at_period_end: bool = True
    """False ends the current period now; the part up to the next boundary is prorated either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeBillingZone:
    """Have the boundaries of a subscription be local times of another zone."""

    subscription_id: SubscriptionId
    """The subscription."""
    zone: str
    """IANA zone."""


Command = ChangePlan | MigrateSubscription | AddAddOn | RemoveAddOn | ChangeBillingAnchor | ChangeBillingZone


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
    keeps_periods: bool = False
    """Whether the periods go on as they are by then, whatever the anchor says."""

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
    override: PriceOverride | None = None
    """The customer's own prices for it; null for those of the plan."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOnAdded:
    """A subscription includes an add-on from an instant on."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    effective_at: datetime
    """From when on (UTC); later than the event if it waits for the period's end."""
    add_on: str
    """Key of the add-on."""
    quantity: int
    """How many there are from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOnRemoved:
    """A subscription includes an add-on no more from an instant on."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    effective_at: datetime
    """From when on (UTC); later than the event if it waits for the period's end."""
    add_on: str
    """Key of the add-on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingAnchorChanged:
    """The periods of a subscription are counted from another anchor from an instant on, where one of them ends."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    effective_at: datetime
    """From when on (UTC): the current period ends then, if not before."""
    anchor: str
    """Local date-time, ISO 8601 without offset, from which its periods are computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingZoneChanged:
    """The boundaries of a subscription are local times of another zone."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    zone: str
    """IANA zone."""
    period_end: datetime
    """When the current period ends by now (UTC); what waited for its end waits for this."""
    running: tuple[BilledSpan, ...] = ()
    """The same for its charges with intervals of their own, in their order."""


Event = SubscriptionPlanChanged | SubscriptionMigrated | AddOnAdded | AddOnRemoved | BillingAnchorChanged
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
        case BillingAnchorChanged(), BillingAnchorChanged():
            return True
        case AddOnAdded() | AddOnRemoved(), AddOnAdded() | AddOnRemoved():
            return change.add_on == earlier.add_on
        case _:
            return False


def repriced(pricing: Pricing, change: Event) -> Pricing:
    """What rates a subscription once `change` took effect."""
    match change:
        case SubscriptionPlanChanged(terms=terms) if terms.plan == pricing.plan:
            return pricing  # what waited was taken back
        case SubscriptionPlanChanged(terms=terms, override=override):
            version, number = terms.price_book_version, min(pricing.period_number, 1)  # a trial stays one
            return replace(
                pricing, plan=terms.plan, price_book_version=version, period_number=number, override=override
            )
        case SubscriptionMigrated(terms=terms):
            return replace(pricing, price_book_version=terms.price_book_version)
        case AddOnAdded(add_on=add_on, quantity=quantity):
            return replace(pricing, add_ons=_added(pricing, add_on, quantity))
        case AddOnRemoved(add_on=add_on):
            return replace(pricing, add_ons=_added(pricing, add_on, 0))
        case BillingAnchorChanged():
            return pricing


def _added(pricing: Pricing, add_on: str, quantity: int) -> tuple[AddOnQuantity, ...]:
    others = [each for each in pricing.add_ons if each.add_on != add_on]
    own = [AddOnQuantity(add_on=add_on, quantity=quantity)] if quantity else []
    return tuple(sorted((*others, *own), key=lambda each: each.add_on))


def at(pricing: Pricing, changes: Sequence[Event], instant: datetime) -> Pricing:
    """What rates a subscription from `instant` on, with all that takes effect by then."""
    for change in changes:
        if change.effective_at <= instant:
            pricing = repriced(pricing, change)
    return pricing


def cadence_at(cadence: Cadence, changes: Sequence[Event], instant: datetime) -> Cadence:
    """The rule that gives the period which begins at `instant`, with all that takes effect by then."""
    for change in changes:
        match change:
            case SubscriptionPlanChanged(terms=terms) | SubscriptionMigrated(terms=terms) if (
                change.effective_at <= instant and not terms.keeps_periods
            ):
                cadence = terms.cadence(cadence.zone)
            case BillingAnchorChanged(anchor=anchor) if change.effective_at <= instant:
                cadence = replace(cadence, anchor=datetime.fromisoformat(anchor), day=None)
    return cadence


def waiting_for(changes: Sequence[Event], before: datetime, after: datetime) -> Changes:
    """`changes` when the end of the current period moves: those that wait for it still do."""
    return tuple(replace(each, effective_at=after) if each.effective_at == before else each for each in changes)


def timeline(pricing: Pricing, changes: Sequence[Event], start: datetime) -> list[tuple[datetime, Pricing]]:
    """From when on what holds, beginning with `pricing` at `start`."""
    made = [(start, pricing)]
    for change in changes:
        made.append((max(change.effective_at, start), repriced(made[-1][1], change)))
    return made
