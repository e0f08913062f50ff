"""A subscription: a customer on a plan, billed period by period.

    (absent) --CreateSubscription--> Scheduled --ActivateSubscription--> Active --CloseBillingPeriod--> Active ...
                                         |                                  |
                                         +--CancelSubscription--> Ended     +--CancelSubscription--> Active until
                                                                                ends_at --CloseBillingPeriod--> Ended

Every boundary is a stored instant: `starts_at` of a scheduled subscription, the end of the current period of an
active one. Whoever asks what is due compares it with the tenant's clock (SEMANTICS 10).

A change of plan takes effect now or at the period's end. Until the period is closed it waits in a list; the closing
cuts the period into segments and opens the next one under what holds by then (`billing/plan_change.py`).

    starts_at        calendar month               (a trial is a period of its own before the first one)
        |- period 1 -|---- period 2 ----|---- period 3 ----|
        ^ invoice:   ^ invoice:         ^ invoice:
          fee 1        usage 1 + fee 2    usage 2 + fee 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from billing import plan_change
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, SubscriptionId
from billing.period import Alignment, Cadence, Period, full_period
from billing.plan_change import (
    AddOnAdded,
    AddOnRemoved,
    BillingAnchorChanged,
    BillingZoneChanged,
    Changes,
    SubscriptionMigrated,
    SubscriptionPlanChanged,
    at,
    waiting_for,
    with_change,
)
from billing.plan_change import Event as PricingChange
from billing.pricing import AddOnQuantity, Pricing
from billing.run import BillingRun, ChargePeriod, LatePeriod, PartitionPosition, late_after
from billing.segments import BilledSpan, Segment

# A period that ended where it began could not be told from the one before it, which ended there, too.
INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSubscription:
    """Put a customer on a plan."""

    subscription_id: SubscriptionId
    """Chosen by the tenant."""
    customer_id: CustomerId
    """Who pays."""
    plan: str
    """Key of a plan in the price book in force at the start."""
    starts_at: datetime | None = None
    """From when it bills; null means now."""
    currency: str | None = None
    """ISO 4217 code of the prices it is billed in; null for the plan's first."""
    add_ons: tuple[AddOnQuantity, ...] = ()
    """What it includes from the start."""
    trial: str | None = None
    """Length of its trial, an ISO 8601 duration; null for that of the plan, P0D for none."""
    ends_at: datetime | None = None
    """When it ends by itself; null for never."""
    billing_day: int | None = None
    """Day of the month, 1 to 31, on which periods of an anniversary plan begin; null for that of its start."""
    zone: str | None = None
    """IANA zone in which its boundaries are local times; null for the seller's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateSubscription:
    """Start a scheduled subscription whose time has come."""

    subscription_id: SubscriptionId
    """The subscription."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseBillingPeriod:
    """Close the current period at its end, with the usage that the log holds by now."""

    OBSERVED = ("positions",)

    subscription_id: SubscriptionId
    """The subscription."""
    period_end: datetime
    """End of the period that is meant; another one is refused."""
    positions: tuple[PartitionPosition, ...]
    """End of each of the tenant's usage partitions, read after the period ended; observed, not part of the wish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSubscription:
    """End a subscription, with its current period or at once."""

    subscription_id: SubscriptionId
    """The subscription."""
    at_period_end: bool = True
    """False ends it now: the unused part of fees paid in advance is credited."""


Command = CreateSubscription | ActivateSubscription | CloseBillingPeriod | CancelSubscription


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionCreated:
    """A customer was put on a plan."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    plan: str
    """Key of the plan."""
    price_book_version: int
    """Version of the price book under which it is billed."""
    currency: str
    """ISO 4217 code of its prices."""
    starts_at: datetime
    """From when it bills (UTC)."""
    zone: str
    """IANA zone of its boundaries."""
    anchor: str
    """Local date-time, ISO 8601 without offset, from which every period is computed."""
    interval: str
    """Length of a period, ISO 8601 duration."""
    alignment: Alignment = Alignment.CALENDAR
    """Whether periods start with the calendar or on the anniversary."""
    add_ons: tuple[AddOnQuantity, ...] = ()
    """What it includes from the start, by key."""
    trial_ends_at: datetime | None = None
    """Until when it is on trial (UTC); null without a trial."""
    ends_at: datetime | None = None
    """When it ends by itself (UTC); null for never."""
    billing_day: int | None = None
    """Day of the month on which periods begin instead of the anchor's, clamped; null for the anchor's."""

    @property
    def pricing(self) -> Pricing:
        """What rates it before any change."""
        return Pricing(
            plan=self.plan,
            price_book_version=self.price_book_version,
            currency=self.currency,
            period_number=0 if self.trial_ends_at else 1,
            add_ons=self.add_ons,
        )

    @property
    def cadence(self) -> Cadence:
        """The rule that gives its periods."""
        return Cadence(
            zone=self.zone,
            anchor=datetime.fromisoformat(self.anchor),
            interval=self.interval,
            alignment=self.alignment,
            day=self.billing_day,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionActivated:
    """A subscription began to bill."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    activated_at: datetime
    """Its start (UTC)."""
    first: Segment
    """The first period and what rates it."""
    run: BillingRun | None = None
    """The invoice to be made for fees in advance; null if the plan has none."""
    running: tuple[ChargePeriod, ...] = ()
    """Charges with intervals of their own that began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPeriodClosed:
    """A period was closed: what its invoice is made of can no longer change."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    span: BilledSpan
    """The closed period."""
    next: Segment | None = None
    """The period that began at its end and what rates it; null if the subscription ended with it."""
    run: BillingRun
    """The invoice to be made, with every input."""
    running: tuple[ChargePeriod, ...] = ()
    """Charges with intervals of their own that go on, or begin with the next period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionCanceled:
    """A subscription is to end."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    ends_at: datetime
    """When (UTC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionEnded:
    """A subscription ended."""

    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    ended_at: datetime
    """When (UTC)."""


Event = (
    SubscriptionCreated
    | SubscriptionActivated
    | BillingPeriodClosed
    | PricingChange
    | BillingZoneChanged
    | SubscriptionCanceled
    | SubscriptionEnded
)


@dataclass(frozen=True, slots=True)
class Absent:
    """Not known."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Waits for its start."""

    terms: SubscriptionCreated
    changes: Changes = ()
    """What was changed before the start."""

    @property
    def pricing(self) -> Pricing:
        """What rates its first period."""
        return at(self.terms.pricing, self.changes, self.terms.starts_at)


@dataclass(frozen=True, slots=True)
class Active:
    """Bills."""

    terms: SubscriptionCreated
    """As it was created; its cadence and its plan may have changed since."""
    cadence: Cadence
    """The rule that gives the current period."""
    current: Segment
    """The current period, and what rated it when it began."""
    prepaid: BillingRun | None
    """The run that billed the fees in advance of the current period."""
    late: tuple[LatePeriod, ...] = ()
    """Closed periods in which late usage is still looked for, and up to where each was billed."""
    ends_at: datetime | None = None
    changes: Changes = ()
    """Changes of what rates it that took effect since the current period began, or are to, in the order of effect."""
    running: tuple[ChargePeriod, ...] = ()
    """Charges with intervals of their own, as they stood when the current period began."""

    @property
    def period_end(self) -> datetime:
        """When the current period ends, by its length or by a change of the anchor within it."""
        cuts = [each.effective_at for each in self.changes if isinstance(each, BillingAnchorChanged)]
        return min([self.current.period.end, *cuts])

    @property
    def boundary(self) -> datetime:
        """When the current period is to be closed: at its end or, if that comes first, at the subscription's."""
        return min(self.period_end, self.ends_at or self.period_end)


@dataclass(frozen=True, slots=True)
class Ended:
    """Bills no more."""

    terms: SubscriptionCreated
    late: tuple[LatePeriod, ...] = ()


State = Absent | Scheduled | Active | Ended
initial = Absent()


def cadence_at(known: Scheduled | Active, instant: datetime) -> Cadence:
    """The rule that gives the period which begins at `instant`."""
    cadence = known.cadence if isinstance(known, Active) else known.terms.cadence
    return plan_change.cadence_at(cadence, known.changes, instant)


def period_end(state: Active, now: datetime) -> datetime:
    """End of the period that holds `now`: the current one, unless it is over and only waits to be closed."""
    current = state.period_end
    return current if now < current else full_period(cadence_at(state, now), now).end


def cancel(state: State, command: CancelSubscription, now: datetime) -> Sequence[Event]:
    """The facts that follow from a cancellation; none if it is already to end then.

    Raises:
        Rejected: there is no such subscription.
    """
    match state:
        case Scheduled(terms=terms):
            subscription, customer = terms.subscription_id, terms.customer_id
            return [
                SubscriptionCanceled(subscription_id=subscription, customer_id=customer, ends_at=now),
                SubscriptionEnded(subscription_id=subscription, customer_id=customer, ended_at=now),
            ]
        case Active(terms=terms) as s:
            ends_at = period_end(s, now) if command.at_period_end else max(now, s.current.period.start + INSTANT)
            if s.ends_at is not None and s.ends_at <= ends_at:
                return []
            return [
                SubscriptionCanceled(
                    subscription_id=terms.subscription_id, customer_id=terms.customer_id, ends_at=ends_at
                )
            ]
        case Ended():
            return []
        case _:
            raise Rejected(
                "unknown_subscription", f"there is no subscription {command.subscription_id!r}", field="subscription_id"
            )


def evolve(state: State, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case Absent(), SubscriptionCreated():
            return Scheduled(event)
        case Scheduled(terms=terms) as s, SubscriptionActivated() as e:
            cadence = cadence_at(s, e.activated_at)
            return Active(terms, cadence, e.first, prepaid=e.run, ends_at=terms.ends_at, running=e.running)
        case (Scheduled() | Active()) as s, (
            SubscriptionPlanChanged() | SubscriptionMigrated() | AddOnAdded() | AddOnRemoved() | BillingAnchorChanged()
        ) as e:
            return replace(s, changes=with_change(s.changes, e))
        case Active() as s, BillingZoneChanged() as e:
            return _moved(s, e)
        case Active() as s, BillingPeriodClosed(next=Segment() as following) as e:
            return replace(
                s,
                cadence=cadence_at(s, following.period.start),
                current=following,
                prepaid=e.run,
                late=late_after(s.late, e.run),
                changes=tuple(each for each in s.changes if each.effective_at > following.period.start),
                running=e.running,
            )
        case Active() as s, BillingPeriodClosed() as e:
            return replace(s, late=late_after(s.late, e.run))
        case Active() as s, SubscriptionCanceled(ends_at=ends_at):
            return replace(s, ends_at=ends_at)
        case Scheduled() as s, SubscriptionCanceled():
            return s
        case Scheduled(terms=terms), SubscriptionEnded():
            return Ended(terms)
        case Active(terms=terms, late=late), SubscriptionEnded():
            return Ended(terms, late)
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def _moved(state: Active, e: BillingZoneChanged) -> Active:
    """In another zone: the end of the current period moves, and with it what waits for it."""
    before, until, span = state.current.period.end, e.period_end, state.current.span
    ends_at = until if state.ends_at == before else state.ends_at
    if until != before:
        span = replace(span, period=Period(span.period.start, until), whole=Period(span.whole.start, until))
    return replace(
        state,
        cadence=replace(state.cadence, zone=e.zone),
        current=replace(state.current, span=replace(span, zone=e.zone)),
        ends_at=ends_at,
        changes=waiting_for(state.changes, before, until),
        running=tuple(replace(each, span=span) for each, span in zip(state.running, e.running, strict=True)),
    )
