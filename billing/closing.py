"""Closing a billing period: fixing every input of its invoice in one event.

|------ period ------|          tenant's clock passes the end, usage is awaited for the grace,
                     ^ grace    then the cut is taken: event time < end, log position < positions
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from billing import invoice, tenant
from billing.errors import Rejected
from billing.ids import invoice_id
from billing.invoicing import RATING_ENGINE, BilledSpan, BillingRun, Cut, InvoiceReason, UnusedFee
from billing.money import Money
from billing.period import Period
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
    first_span,
    span_after,
)
from billing.tax import TaxRate

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
        case Scheduled(terms=terms) if terms.starts_at <= now:
            span = first_span(terms)
            return [
                SubscriptionActivated(
                    subscription_id=terms.subscription_id,
                    customer_id=terms.customer_id,
                    activated_at=terms.starts_at,
                    span=span,
                    run=_opening_run(state, seller, terms, span),
                )
            ]
        case Scheduled(terms=terms):
            raise Rejected("not_yet", f"it starts at {terms.starts_at}; the tenant's clock stands at {now}")
        case Active():
            return []
        case other:
            raise _refused(other, "ActivateSubscription")


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
            raise _refused(other, "CloseBillingPeriod")


def _closed(
    state: TenantState, seller: tenant.Registered, active: Active, command: CloseBillingPeriod
) -> Sequence[Event]:
    terms = active.terms
    boundary = active.boundary
    span = BilledSpan(period=Period(active.current.period.start, boundary), whole=active.current.whole)
    ending = active.ends_at is not None and active.ends_at <= boundary
    following = None if ending else span_after(terms, active.current)
    run = BillingRun(
        invoice_id=invoice_id(
            state.tenant_id, terms.subscription_id, InvoiceReason.PERIOD_END, span.period.start, span.period.end
        ),
        subscription_id=terms.subscription_id,
        customer_id=terms.customer_id,
        reason=InvoiceReason.PERIOD_END,
        currency=terms.currency,
        plan=terms.plan,
        price_book_version=terms.price_book_version,
        rating_engine=RATING_ENGINE,
        arrears=span,
        advance=following,
        unused=_unused(state, active, boundary),
        late=active.late,
        cut=Cut(until=boundary, positions=command.positions),
        taxes=_taxes(seller),
    )
    subscription, customer = terms.subscription_id, terms.customer_id
    closed = BillingPeriodClosed(subscription_id=subscription, customer_id=customer, span=span, next=following, run=run)
    if following is not None:
        return [closed]
    return [closed, SubscriptionEnded(subscription_id=subscription, customer_id=customer, ended_at=boundary)]


def _unused(state: TenantState, active: Active, boundary: datetime) -> tuple[UnusedFee, ...]:
    """What a subscription that ends within its period gets back of its prepaid fees."""
    period = active.current.period
    if boundary >= period.end or active.prepaid is None:
        return ()
    billed = state.invoices.get(active.prepaid.invoice_id)
    if not isinstance(billed, invoice.Open | invoice.Paid):
        raise Rejected("awaiting_invoice", f"invoice {active.prepaid.invoice_id} is not issued yet; try again")
    unused = Period(boundary, period.end)
    plan = state.catalog.books[active.terms.price_book_version - 1].plan(active.terms.plan)
    prorated = {charge.key for charge in plan.charges if charge.prorate}
    return tuple(
        UnusedFee(charge=charge, billed=net, period=period, unused=unused)
        for charge, net in billed.fees
        if charge in prorated and net > Money.zero(net.currency)
    )


def _opening_run(
    state: TenantState, seller: tenant.Registered, terms: SubscriptionCreated, span: BilledSpan
) -> BillingRun | None:
    """The invoice at a subscription's start; None if its plan charges nothing in advance."""
    plan = state.catalog.books[terms.price_book_version - 1].plan(terms.plan)
    if not any(charge.in_advance for charge in plan.charges):
        return None
    period = span.period
    return BillingRun(
        invoice_id=invoice_id(
            state.tenant_id, terms.subscription_id, InvoiceReason.SUBSCRIPTION_START, period.start, period.end
        ),
        subscription_id=terms.subscription_id,
        customer_id=terms.customer_id,
        reason=InvoiceReason.SUBSCRIPTION_START,
        currency=terms.currency,
        plan=terms.plan,
        price_book_version=terms.price_book_version,
        rating_engine=RATING_ENGINE,
        advance=span,
        cut=Cut(until=period.start, positions=()),
        taxes=_taxes(seller),
    )


def _taxes(seller: tenant.Registered) -> tuple[TaxRate, ...]:
    return seller.settings.taxes


def _refused(state: object, command: str) -> Rejected:
    if isinstance(state, Absent):
        return Rejected("unknown_subscription", "there is no such subscription", field="subscription_id")
    return Rejected("invalid_state", f"{command} is not allowed on {type(state).__name__}")
