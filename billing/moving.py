"""Moving the boundaries of a subscription: to another anchor, or to another zone (SEMANTICS 8).

              |--------- period ---------|--------- period ...
anchor, now   |---- period ----|- stub -|--- period, from the new anchor on ...
at its end    |--------- period ---------|- stub -|--- period, from the new anchor on ...
zone          |--------- period -----------|------- at the same local times of the new zone ...

Every period begins where the one before ended; a stub is prorated like any partial period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from billing.closing import refused
from billing.errors import Rejected
from billing.ids import SubscriptionId
from billing.period import Alignment, Period, check_zone, moved
from billing.plan_change import BillingAnchorChanged, BillingZoneChanged, ChangeBillingAnchor, ChangeBillingZone
from billing.segments import BilledSpan
from billing.subscription import INSTANT, Absent, Active, Event, cadence_at, period_end

if TYPE_CHECKING:
    from billing.decision import TenantState


def change_anchor(state: TenantState, command: ChangeBillingAnchor, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if its periods are counted from there by then.

    Raises:
        Rejected: there is no such subscription, it ends before, it bills by the calendar, or its period cannot end now.
    """
    active = _active(state, command.subscription_id, "ChangeBillingAnchor")
    effective_at = period_end(active, now) if command.at_period_end else max(now, active.current.period.start + INSTANT)
    if active.ends_at is not None and active.ends_at <= effective_at:
        raise Rejected("ending", f"it ends at {active.ends_at}; the change would take effect at {effective_at}")
    cadence = cadence_at(active, effective_at)
    if cadence.alignment is Alignment.CALENDAR:
        said = "its plan bills with the calendar; allowed for plans that bill on the anniversary"
        raise Rejected("calendar_plan", said, field="subscription_id")
    instant = _utc(command.anchor) if command.anchor is not None else effective_at
    anchor = instant.astimezone(ZoneInfo(cadence.zone)).replace(tzinfo=None)
    if cadence.anchor == anchor and cadence.day is None:
        return []
    if not command.at_period_end:
        _check_may_end(active, effective_at)
    return [
        BillingAnchorChanged(
            subscription_id=command.subscription_id,
            customer_id=active.terms.customer_id,
            effective_at=effective_at,
            anchor=anchor.isoformat(),
        )
    ]


def change_zone(state: TenantState, command: ChangeBillingZone, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it is billed in that zone.

    A period that is over, and only waits to be closed, keeps its end; so does one that the subscription's own end cuts.

    Raises:
        Rejected: there is no such subscription or zone, or it does not bill.
    """
    check_zone(command.zone, "zone")
    active = _active(state, command.subscription_id, "ChangeBillingZone")
    if active.cadence.zone == command.zone:
        return []
    period = active.current.period
    end = period.end
    if now < active.boundary and end == active.current.whole.end:
        end = max(moved(period, active.cadence.zone, command.zone).end, period.start + INSTANT)
    return [
        BillingZoneChanged(
            subscription_id=command.subscription_id,
            customer_id=active.terms.customer_id,
            zone=command.zone,
            period_end=end,
            running=tuple(_moved(each.span, active, command.zone) for each in active.running),
        )
    ]


def _moved(span: BilledSpan, active: Active, zone: str) -> BilledSpan:
    """A charge's own period in another zone; one that the subscription's own end cuts keeps it."""
    if span.period.end != span.whole.end:
        return replace(span, zone=zone)
    end = max(moved(span.period, active.cadence.zone, zone).end, span.period.start + INSTANT)
    return BilledSpan(period=Period(span.period.start, end), whole=Period(span.whole.start, end), zone=zone)


def _active(state: TenantState, subscription: SubscriptionId, command: str) -> Active:
    match state.subscriptions.get(subscription, Absent()):
        case Active() as active:
            return active
        case other:
            raise refused(other, command)


def _check_may_end(active: Active, at: datetime) -> None:
    """Refuse to end the current period before its time while something waits for that."""
    if active.current.pricing.in_trial:
        said = f"it is on trial until {active.current.period.end}; allowed at its end"
        raise Rejected("on_trial", said, field="at_period_end")
    others = [each for each in active.changes if not isinstance(each, BillingAnchorChanged)]  # which it replaces
    waiting = [each.effective_at for each in others if each.effective_at > at]
    waiting += [active.ends_at] if active.ends_at is not None else []
    if waiting:
        said = f"something waits for {min(waiting)}; allowed at the period's end, or when it is taken back"
        raise Rejected("changes_waiting", said, field="at_period_end")


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise Rejected("invalid_time", "a time needs an offset, such as 2026-02-01T00:00:00Z", field="anchor")
    return instant.astimezone(UTC)
