"""Changing what rates a subscription: which change follows from a command, from when on, and whether it can bill.

    |--------- current period ---------|-- next ...
             ^ now                     ^ at the period's end (default)

Whatever waits is looked at, too: a change that would leave a later one without a plan, or without a price in the
subscription's currency, is refused when it is asked for and not when the period is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from billing.catalog import Plan
from billing.closing import refused
from billing.errors import Rejected
from billing.ids import SubscriptionId
from billing.override import own_prices
from billing.plan_change import (
    AddAddOn,
    AddOnAdded,
    AddOnRemoved,
    ChangePlan,
    Changes,
    Event,
    MigrateSubscription,
    PlanTerms,
    RemoveAddOn,
    SubscriptionMigrated,
    SubscriptionPlanChanged,
    at,
    timeline,
    with_change,
)
from billing.pricing import AddOnQuantity, Pricing, check_quantity, priced
from billing.subscription import Absent, Active, Scheduled, cadence_at, period_end

if TYPE_CHECKING:
    from billing.decision import TenantState


@dataclass(frozen=True, slots=True)
class _Moment:
    """A subscription and the instant at which a change of it is to take effect."""

    known: Scheduled | Active
    effective_at: datetime
    before: Pricing
    """What rates it up to that instant, if it ever did."""
    pricing: Pricing
    """What would rate it from then on without the change."""

    @property
    def kept(self) -> Changes:
        """Its changes without a plan that waits for that instant or later: another one takes its place."""
        return tuple(
            each
            for each in self.known.changes
            if each.effective_at < self.effective_at or not isinstance(each, SubscriptionPlanChanged)
        )


def change_plan(state: TenantState, command: ChangePlan, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it is on that plan then.

    Raises:
        Rejected: there is no such subscription or plan, it ends before, or the plan cannot take its place.
    """
    moment = _moment(state, command.subscription_id, command.at_period_end, now, "ChangePlan")
    if moment.pricing.plan == command.plan:
        return []
    if moment.before.plan == command.plan:  # a change that waited is taken back: nothing changed in between
        version = moment.before.price_book_version
    else:
        version = state.catalog.at(moment.effective_at).version
    terms = _terms(state, moment, command.plan, version, not command.at_period_end)
    change = SubscriptionPlanChanged(
        subscription_id=command.subscription_id,
        customer_id=moment.known.terms.customer_id,
        effective_at=moment.effective_at,
        terms=terms,
        override=own_prices(command.plan, moment.pricing.currency, moment.known.terms.customer_id, state.customers),
    )
    return _checked(state, moment, change)


def migrate(state: TenantState, command: MigrateSubscription, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it is on the newest version then.

    Raises:
        Rejected: there is no such subscription, it ends before, or the newest version has no such plan.
    """
    moment = _moment(state, command.subscription_id, command.at_period_end, now, "MigrateSubscription")
    newest = state.catalog.at(moment.effective_at).version
    if moment.pricing.price_book_version == newest:
        return []
    terms = _terms(state, moment, moment.pricing.plan, newest, not command.at_period_end)
    change = SubscriptionMigrated(
        subscription_id=command.subscription_id,
        customer_id=moment.known.terms.customer_id,
        effective_at=moment.effective_at,
        terms=terms,
    )
    return _checked(state, moment, change)


def add(state: TenantState, command: AddAddOn, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it includes that many then.

    Raises:
        Rejected: there is no such subscription or add-on, it ends before, or the add-on does not fit the plan.
    """
    check_quantity(command.quantity, "quantity")
    moment = _moment(state, command.subscription_id, command.at_period_end, now, "AddAddOn")
    if AddOnQuantity(add_on=command.add_on, quantity=command.quantity) in moment.pricing.add_ons:
        return []
    change = AddOnAdded(
        subscription_id=command.subscription_id,
        customer_id=moment.known.terms.customer_id,
        effective_at=moment.effective_at,
        add_on=command.add_on,
        quantity=command.quantity,
    )
    return _checked(state, moment, change)


def remove(state: TenantState, command: RemoveAddOn, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it includes none of them then.

    Raises:
        Rejected: there is no such subscription, or it ends before.
    """
    moment = _moment(state, command.subscription_id, command.at_period_end, now, "RemoveAddOn")
    if command.add_on not in [each.add_on for each in moment.pricing.add_ons]:
        return []
    change = AddOnRemoved(
        subscription_id=command.subscription_id,
        customer_id=moment.known.terms.customer_id,
        effective_at=moment.effective_at,
        add_on=command.add_on,
    )
    return _checked(state, moment, change)


def _moment(
    state: TenantState, subscription: SubscriptionId, at_period_end: bool, now: datetime, command: str
) -> _Moment:
    match state.subscriptions.get(subscription, Absent()):
        case Scheduled(terms=terms) as s:
            return _Moment(s, terms.starts_at, s.pricing, s.pricing)
        case Active() as s:
            effective_at = period_end(s, now) if at_period_end else max(now, s.current.period.start)
            if s.ends_at is not None and s.ends_at <= effective_at:
                raise Rejected("ending", f"it ends at {s.ends_at}; the change would take effect at {effective_at}")
            earlier = [each for each in s.changes if each.effective_at < effective_at]
            before = at(s.current.pricing, earlier, effective_at)
            return _Moment(s, effective_at, before, at(s.current.pricing, s.changes, effective_at))
        case other:
            raise refused(other, command)


def _terms(state: TenantState, moment: _Moment, plan: str, version: int, now: bool) -> PlanTerms:
    """The terms of `plan`. Another rhythm starts where it takes effect; within a period there is no room for one.

    Raises:
        Rejected: the version has no such plan, or the plan has other periods and cannot wait for the end of this one.
    """
    found: Plan = state.catalog.books[version - 1].plan(plan)
    cadence = cadence_at(replace(moment.known, changes=moment.kept), moment.effective_at)
    anchor = cadence.anchor
    keeps_periods = (found.interval, found.alignment) == (cadence.interval, cadence.alignment)
    if not keeps_periods:
        in_trial = isinstance(moment.known, Active) and moment.known.current.pricing.in_trial
        if now and isinstance(moment.known, Active) and not in_trial:
            detail = f"plan {plan!r} bills every {found.interval}, not {cadence.interval}; allowed at the period's end"
            raise Rejected("other_interval", detail, field="at_period_end")
        begins = moment.effective_at
        if moment.pricing.in_trial:
            begins = max(begins, moment.known.terms.trial_ends_at or begins)
        anchor = begins.astimezone(ZoneInfo(cadence.zone)).replace(tzinfo=None)
    return PlanTerms(
        plan=plan,
        price_book_version=version,
        anchor=anchor.isoformat(),
        interval=found.interval,
        alignment=found.alignment,
        keeps_periods=keeps_periods,
    )


def _checked(state: TenantState, moment: _Moment, change: Event) -> Sequence[Event]:
    """`change`, if everything that holds from then on can be billed.

    Raises:
        Rejected: naming what is missing.
    """
    known = moment.known
    begun = known.current.pricing if isinstance(known, Active) else known.pricing
    start = known.current.period.start if isinstance(known, Active) else known.terms.starts_at
    for effective_at, pricing in timeline(begun, with_change(known.changes, change), start):
        if effective_at < change.effective_at:
            continue
        priced(pricing, state.catalog.by_version)
    return [change]
