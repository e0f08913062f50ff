"""Histories to project: commands of one tenant, decided by the real rules, as the events they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from billing import decision, invoicing
from billing.catalog import Plan, PriceBookPublished, PublishPriceBook
from billing.customer import CreateCustomer, PaymentMethod, Provider, RedeemCoupon, SetPriceOverride
from billing.discount import Coupon
from billing.entitlement import Entitlement, EntitlementKind, LimitKind
from billing.envelope import CommandEnvelope, CommandMeta, EventEnvelope
from billing.ids import CustomerId, SubscriptionId, TenantId
from billing.invoice import Awaited, InvoiceFinalized, IssueInvoice
from billing.invoicing import BillingRun, PartitionPosition
from billing.metering import Aggregation, Measured, Meter
from billing.money import Money
from billing.payment import DeclineKind, RecordPaymentDecline, RecordPaymentSuccess, StartPaymentAttempt
from billing.plan_change import ChangePlan
from billing.prepaid import GrantCredit
from billing.price import Charge, Flat, PerUnit
from billing.pricing import PriceOverride
from billing.subscription import (
    ActivateSubscription,
    Active,
    CancelSubscription,
    CloseBillingPeriod,
    CreateSubscription,
)
from billing.tax import TaxRate
from billing.tenant import AdvanceClock, RegisterTenant
from schemas.codec import encode_event
from schemas.hashing import hash_of_stored, payload_hash

START = datetime(2013, 1, 1, 5, tzinfo=UTC)  # midnight of 1 January in New York
CALLS = Meter(key="calls", event_type="call", aggregation=Aggregation.COUNT)
PLAN = Plan(
    key="pro",
    name="Pro",
    currency="USD",
    charges=(
        Charge(key="base", name="Base fee", model=Flat(amount=Decimal("20.00")), in_advance=True),
        Charge(key="calls", name="Calls", model=PerUnit(unit=Decimal("0.005")), meter="calls"),
    ),
    entitlements=(
        Entitlement(feature="sso"),
        Entitlement(
            feature="calls",
            kind=EntitlementKind.METERED,
            meter="calls",
            limit=Decimal(1000),
            limit_kind=LimitKind.HARD,
        ),
    ),
)


@dataclass
class History:
    """One tenant's events, grown command by command."""

    tenant: str = "acme"
    events: list[EventEnvelope] = field(default_factory=list)
    wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.state = decision.TenantState(TenantId(self.tenant))
        self._commands = 0

    def send(self, command: Any) -> list[EventEnvelope]:
        """Decide `command`; the events it led to."""
        self._commands += 1
        self.wall += timedelta(seconds=1)
        meta = CommandMeta(
            command_id=f"00000000-0000-4000-8000-{self._commands:012d}",
            tenant=TenantId(self.tenant),
            idempotency_key=f"test:{self._commands}",
            actor="test",
            correlation_id=f"c{self._commands}",
            sent_at=self.wall,
        )
        envelope = CommandEnvelope(meta, command)
        digest = payload_hash(command)
        decided = decision.decide(self.state, envelope, digest, self.wall)
        assert isinstance(decided, list)
        made = decision.chain(self.state, decided, envelope, digest, self.wall, _hash)
        decision.record(self.state, made)
        events = [each.envelope for each in made]
        self.events += events
        return events

    def register(self, **changed: Any) -> History:
        """A seller in New York on a test clock, with one price book."""
        self.send(
            RegisterTenant(
                **{
                    "name": "Acme Inc",
                    "currency": "USD",
                    "zone": "America/New_York",
                    "taxes": (TaxRate(code="sales", percent=Decimal("8.875"), jurisdiction="NY"),),
                    "test_clock": START,
                    **changed,
                }
            )
        )
        self.send(PublishPriceBook(meters=(CALLS,), plans=(PLAN,), coupons=(Coupon(code="TEN", percent=Decimal(10)),)))
        return self

    def subscribe(self, customer: str, *, coupon: str | None = None, provider: Provider = Provider.SANDBOX) -> History:
        """A customer who pays by card, on the plan from now on."""
        token = "" if provider is Provider.MANUAL else "pm_card_visa"
        method = PaymentMethod(provider=provider, token=token)
        self.send(CreateCustomer(customer_id=CustomerId(customer), payment_method=method))
        if coupon:
            self.send(RedeemCoupon(customer_id=CustomerId(customer), coupon=coupon))
        subscription = SubscriptionId(f"sub_{customer}")
        self.send(CreateSubscription(subscription_id=subscription, customer_id=CustomerId(customer), plan="pro"))
        self.send(ActivateSubscription(subscription_id=subscription))
        return self

    def advance(self, to: datetime) -> History:
        self.send(AdvanceClock(to=to))
        return self

    def close(self, customer: str, *, positions: tuple[PartitionPosition, ...] = ()) -> BillingRun:
        """Move the clock to the end of the customer's period and close it."""
        subscription = SubscriptionId(f"sub_{customer}")
        active = self.state.subscriptions[subscription]
        assert isinstance(active, Active)
        seller = self.state.tenant
        if seller.clock < active.boundary:  # type: ignore[union-attr]
            self.advance(active.boundary)
        command = CloseBillingPeriod(subscription_id=subscription, period_end=active.boundary, positions=positions)
        return self.send(command)[0].event.run  # type: ignore[no-any-return]

    def cancel(self, customer: str) -> History:
        self.send(CancelSubscription(subscription_id=SubscriptionId(f"sub_{customer}")))
        return self

    def own_prices(self, customer: str) -> History:
        """A tenth off the plan, from the next period on."""
        own = PriceOverride(plan="pro", discount_percent=Decimal(10))
        self.send(SetPriceOverride(customer_id=CustomerId(customer), override=own))
        return self

    def change_plan(self, customer: str) -> History:
        """Another plan, from the next period on."""
        self.send(PublishPriceBook(meters=(CALLS,), plans=(PLAN, replace(PLAN, key="team", name="Team"))))
        self.send(ChangePlan(subscription_id=SubscriptionId(f"sub_{customer}"), plan="team"))
        return self

    def issue_awaited(self, calls: int = 0) -> list[InvoiceFinalized]:
        """Issue every invoice that is awaited, each for `calls` calls."""
        awaited = [each.run for each in self.state.invoices.values() if isinstance(each, Awaited)]
        return [self.issue(run, calls) for run in awaited]

    def issue(self, run: BillingRun, calls: int = 0) -> InvoiceFinalized:
        books: dict[int, PriceBookPublished] = {each.version: each for each in self.state.catalog.books}
        measured = dict.fromkeys(invoicing.needs(run, books, ()), Measured(Decimal(calls), events=calls))
        lines = invoicing.lines(run, books, (), measured)
        return self.send(IssueInvoice(invoice_id=run.invoice_id, lines=lines))[0].event  # type: ignore[no-any-return]

    def grant(self, customer: str, id: str, minor: int, **more: Any) -> History:
        """Credit in dollars for a customer."""
        amount = Money(minor, "USD")
        self.send(GrantCredit(customer_id=CustomerId(customer), grant_id=id, amount=amount, **more))
        return self

    def pay(self, invoice: InvoiceFinalized, attempt: int = 1) -> History:
        self.send(StartPaymentAttempt(invoice_id=invoice.invoice_id, attempt=attempt))
        self.send(
            RecordPaymentSuccess(
                invoice_id=invoice.invoice_id, attempt=attempt, amount=invoice.amount_due, reference=f"ch_{attempt}"
            )
        )
        return self

    def decline(self, invoice: InvoiceFinalized, attempt: int = 1, kind: DeclineKind = DeclineKind.SOFT) -> History:
        self.send(StartPaymentAttempt(invoice_id=invoice.invoice_id, attempt=attempt))
        self.send(
            RecordPaymentDecline(invoice_id=invoice.invoice_id, attempt=attempt, kind=kind, code="insufficient_funds")
        )
        return self


def a_quarter(tenant: str = "acme", customers: Sequence[str] = ("ann", "bob")) -> History:
    """Three months of some customers: fees, usage, a coupon, a decline that is collected later, a cancellation."""
    history = History(tenant).register()
    for number, customer in enumerate(customers):
        history.subscribe(customer, coupon="TEN" if number == 0 else None)
    for month in range(3):
        for number, invoice in enumerate(history.issue_awaited(calls=1000 * (month + 1))):
            if number == 0 and month == 1:
                history.decline(invoice)
                history.pay(invoice, attempt=2)
            else:
                history.pay(invoice)
        for customer in customers:
            history.close(customer)
    history.cancel(customers[0])
    history.issue_awaited(calls=7)
    history.close(customers[0])
    history.own_prices(customers[-1]).change_plan(customers[-1])
    history.grant(customers[-1], "welcome", 500)
    return history


def _hash(envelope: EventEnvelope) -> bytes:
    return hash_of_stored(encode_event(envelope))
