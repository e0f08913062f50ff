"""Closing a billing period: fixing every input of its invoice in one event.

|------ period ------|          tenant's clock passes the end, usage is awaited for the grace,
                     ^ grace    then the cut is taken: event time < end, log position < positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from billing import customer, invoice, tenant
from billing.errors import Rejected
from billing.ids import CustomerId, InvoiceId, invoice_id
from billing.invoicing import RATING_ENGINE, BillingRun, Cut, InvoiceReason, UnusedFee
from billing.money import Money
from billing.override import with_own_prices
from billing.own_interval import OwnCharges, span_from
from billing.period import Period
from billing.plan_change import at, timeline
from billing.pricing import Priced, Pricing, priced
from billing.proration import Proration
from billing.run import ChargePeriod
from billing.segments import BilledSpan, Segment, charge_spans, tiled, used_until
from billing.subscription import (
    Absent,
    ActivateSubscription,
    Active,
    BillingPeriodClosed,
    CloseBillingPeriod,
    Ended,
    Event,
    Scheduled,
    SubscriptionActivated,
    SubscriptionCreated,
    SubscriptionEnded,
    cadence_at,
)
from billing.tax import TaxRate, rates_of

if TYPE_CHECKING:
    from billing.decision import TenantState


def activate(
    state: TenantState, seller: tenant.Registered, command: ActivateSubscription, now: datetime
) -> Sequence[Event]:
    """The facts that follow when a scheduled subscription's time has come; none if it is active already.

    Raises:
        Rejected: it is unknown, has ended, or its start is still ahead.
    """
    match state.subscriptions.get(command.subscription_id, Absent()):
        case Scheduled(terms=terms) as scheduled if terms.starts_at <= now:
            pricing = with_own_prices(scheduled.pricing, terms.customer_id, state.customers)
            first = Segment(span=first_span(scheduled), pricing=pricing)
            own = _own(state, (), terms.ends_at)
            own.go_on(terms.starts_at, pricing, cadence_at(scheduled, terms.starts_at))
            run = _opening_run(state, seller, terms, first, own)
            return [
                SubscriptionActivated(
                    subscription_id=terms.subscription_id,
                    customer_id=terms.customer_id,
                    activated_at=terms.starts_at,
                    first=first,
                    run=run,
                    running=tuple(own.running.values()),
                )
            ]
        case Scheduled(terms=terms):
            raise Rejected("not_yet", f"it starts at {terms.starts_at}; the tenant's clock stands at {now}")
        case Active():
            return []
        case other:
            raise refused(other, "ActivateSubscription")


def close(state: TenantState, seller: tenant.Registered, command: CloseBillingPeriod, now: datetime) -> Sequence[Event]:
    """The facts that follow when the current period is over; none if it is closed already.

    Raises:
        Rejected: the period is not over, or is not the one meant, or what it prepaid is still being invoiced.
    """
    match state.subscriptions.get(command.subscription_id, Absent()):
        case Active() as active if command.period_end == active.boundary:
            if active.boundary + tenant.grace(seller) > now:
                raise Rejected("not_yet", f"the period ends at {active.boundary}; the tenant's clock stands at {now}")
            return _closed(state, seller, active, command)
        case Active(current=current) if command.period_end <= current.period.start:
            return []
        case Active() as active:
            raise Rejected("other_period", f"the current period ends at {active.boundary}", field="period_end")
        case Ended():
            return []
        case other:
            raise refused(other, "CloseBillingPeriod")


def _closed(
    state: TenantState, seller: tenant.Registered, active: Active, command: CloseBillingPeriod
) -> Sequence[Event]:
    terms = active.terms
    boundary = active.boundary
    start = active.current.period.start
    span = BilledSpan(period=Period(start, boundary), whole=active.current.whole, zone=active.cadence.zone)
    segments = tiled(span, timeline(active.current.pricing, active.changes, start))
    ending = active.ends_at is not None and active.ends_at <= boundary
    following = None if ending else _following(state, active)
    invoice_of_run = invoice_id(state.tenant_id, terms.subscription_id, InvoiceReason.PERIOD_END, start, boundary)
    own = _passed(state, active, segments, following)
    own.bill_ahead(invoice_of_run)
    run = BillingRun(
        invoice_id=invoice_of_run,
        subscription_id=terms.subscription_id,
        customer_id=terms.customer_id,
        reason=InvoiceReason.PERIOD_END,
        currency=terms.currency,
        rating_engine=RATING_ENGINE,
        segments=segments,
        prepaid=_prepaid(active),
        advance=following,
        unused=(*_unused(state, active, segments), *own.unused),
        late=active.late,
        cut=Cut(until=boundary, positions=command.positions),
        taxes=_taxes(state, seller, terms.customer_id),
        coupon_order=seller.settings.policies.coupon_order,
        tax_rounding=seller.settings.policies.tax_rounding,
        charges=tuple(own.billed),
    )
    subscription, customer = terms.subscription_id, terms.customer_id
    closed = BillingPeriodClosed(
        subscription_id=subscription,
        customer_id=customer,
        span=span,
        next=following,
        run=run,
        running=tuple(own.running.values()),
    )
    if following is not None:
        return [closed]
    return [closed, SubscriptionEnded(subscription_id=subscription, customer_id=customer, ended_at=boundary)]


def _passed(state: TenantState, active: Active, segments: tuple[Segment, ...], following: Segment | None) -> OwnCharges:
    """The charges with an interval of their own, after the closed period and where the next one begins."""
    own = _own(state, active.running, active.ends_at)
    for segment in segments:
        own.go_on(segment.period.start, segment.pricing, active.cadence)
    if following is None:
        for known in list(own.running.values()):
            own.end(known, active.boundary)
        return own
    start = following.period.start
    cadence = cadence_at(active, start)
    own.go_on(start, following.pricing, cadence, anew=cadence != active.cadence)
    return own


def _own(state: TenantState, running: tuple[ChargePeriod, ...], ends_at: datetime | None) -> OwnCharges:
    def net_of(known: ChargePeriod) -> Money:
        assert known.invoice_id is not None
        return _fees(state, known.invoice_id).get(known.charge, Money.zero(known.pricing.currency))

    def resolve(pricing: Pricing) -> Priced:
        return priced(pricing, state.catalog.by_version)

    return OwnCharges(resolve, net_of, ends_at, {each.charge: each for each in running})


def _fees(state: TenantState, invoice_id: InvoiceId) -> dict[str, Money]:
    """What an issued invoice billed in advance, net, by charge.

    Raises:
        Rejected: it is not issued yet.
    """
    billed = state.invoices.get(invoice_id)
    if not isinstance(billed, invoice.Open | invoice.Paid):
        raise Rejected("awaiting_invoice", f"invoice {invoice_id} is not issued yet; try again")
    return dict(billed.fees)


def _following(state: TenantState, active: Active) -> Segment:
    """The period that begins where the current one ends, with what holds by then."""
    boundary = active.period_end
    earlier = [each for each in active.changes if each.effective_at < boundary]
    ended = at(active.current.pricing, earlier, boundary)
    pricing = at(replace(ended, period_number=ended.period_number + 1), active.changes[len(earlier) :], boundary)
    pricing = with_own_prices(pricing, active.terms.customer_id, state.customers)
    return Segment(span=span_from(cadence_at(active, boundary), boundary, active.ends_at), pricing=pricing)


def first_span(scheduled: Scheduled) -> BilledSpan:
    """What it begins with: its trial, or the first period from the start to the first boundary."""
    terms = scheduled.terms
    if terms.trial_ends_at is None:
        return span_from(cadence_at(scheduled, terms.starts_at), terms.starts_at, terms.ends_at)
    trial = Period(terms.starts_at, terms.trial_ends_at)
    span = Period(trial.start, min(trial.end, terms.ends_at or trial.end))
    return BilledSpan(period=span, whole=trial, zone=terms.zone)


def _prepaid(active: Active) -> Pricing | None:
    """Under which the fees of the current period were billed when it began."""
    return active.prepaid.advance.pricing if active.prepaid and active.prepaid.advance else None


def _unused(state: TenantState, active: Active, segments: tuple[Segment, ...]) -> tuple[UnusedFee, ...]:
    """What a subscription that ends or changes within its period gets back of its prepaid fees."""
    period, prepaid = active.current.period, _prepaid(active)
    if prepaid is None or active.prepaid is None:
        return ()

    def resolve(pricing: Pricing) -> Priced:
        return priced(pricing, state.catalog.by_version)

    plan = resolve(prepaid)
    if plan.proration is Proration.NONE:
        return ()
    spans = charge_spans(segments, prepaid, resolve)
    fees = [each.charge for each in plan.charges if each.in_advance and each.charge.prorate]
    ended = {fee.key: until for fee in fees if (until := used_until(fee.key, period.start, spans)) < period.end}
    if not ended:
        return ()
    return tuple(
        UnusedFee(charge=charge, billed=net, period=period, unused=Period(ended[charge], period.end))
        for charge, net in _fees(state, active.prepaid.invoice_id).items()
        if charge in ended and net > Money.zero(net.currency)
    )


def _opening_run(
    state: TenantState, seller: tenant.Registered, terms: SubscriptionCreated, first: Segment, own: OwnCharges
) -> BillingRun | None:
    """The invoice at a subscription's start; None if its plan charges nothing in advance."""
    period, reason = first.period, InvoiceReason.SUBSCRIPTION_START
    invoice_of_run = invoice_id(state.tenant_id, terms.subscription_id, reason, period.start, period.end)
    own.bill_ahead(invoice_of_run)
    charges = priced(first.pricing, state.catalog.by_version).charges
    if not own.billed and not any(each.in_advance for each in charges):
        return None
    return BillingRun(
        invoice_id=invoice_of_run,
        subscription_id=terms.subscription_id,
        customer_id=terms.customer_id,
        reason=reason,
        currency=terms.currency,
        rating_engine=RATING_ENGINE,
        advance=first,
        cut=Cut(until=period.start, positions=()),
        taxes=_taxes(state, seller, terms.customer_id),
        charges=tuple(own.billed),
        coupon_order=seller.settings.policies.coupon_order,
        tax_rounding=seller.settings.policies.tax_rounding,
    )


def _taxes(state: TenantState, seller: tenant.Registered, customer_id: CustomerId) -> tuple[TaxRate, ...]:
    """The rates of the payer's jurisdiction; those of the tenant if it has none that is known."""
    payer = state.customers.get(customer_id, customer.initial)
    where = payer.jurisdiction if isinstance(payer, customer.Active) else ""
    return rates_of(where, seller.settings.jurisdictions, seller.settings.taxes)


def refused(state: object, command: str) -> Rejected:
    """That `command` is not allowed on a subscription in `state`."""
    if isinstance(state, Absent):
        return Rejected("unknown_subscription", "there is no such subscription", field="subscription_id")
    return Rejected("invalid_state", f"{command} is not allowed on {type(state).__name__}")
