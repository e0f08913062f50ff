"""Given events, when a command, then events or a rejection: the deciders as their callers know them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.catalog import Plan, PublishPriceBook
from billing.customer import CreateCustomer, PaymentMethod, Provider
from billing.decision import Replayed, TenantState, chain, decide, record
from billing.discount import Coupon
from billing.envelope import CommandEnvelope, CommandMeta, EventEnvelope
from billing.errors import Rejected
from billing.ids import CustomerId, InvoiceId, SubscriptionId, TenantId
from billing.invoice import InvoiceFinalized, IssueInvoice
from billing.invoicing import LineKind, PartitionPosition, RatedLine
from billing.metering import Meter
from billing.money import Money
from billing.period import Period
from billing.price import Charge, Flat, PerUnit
from billing.subscription import ActivateSubscription, CloseBillingPeriod, CreateSubscription
from billing.tax import TaxRate
from billing.tenant import AdvanceClock, RegisterTenant
from schemas.hashing import event_hash, payload_hash

WALL = datetime(2026, 11, 21, 12, tzinfo=UTC)
JANUARY, FEBRUARY, MARCH, APRIL, MAY = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3, 4, 5))

CARD = PaymentMethod(provider=Provider.SANDBOX, token="tok_visa")
OTHER_CARD = PaymentMethod(provider=Provider.SANDBOX, token="tok_mastercard")
C1, S1 = CustomerId("c1"), SubscriptionId("s1")

REGISTER = RegisterTenant(name="Harbour Air", currency="USD", zone="UTC", test_clock=JANUARY)
CALLS = Meter(key="calls", event_type="api.called")
BASE_FEE = Charge(key="base", name="Base fee", model=Flat(Decimal("31.00")), in_advance=True)
CALLS_CHARGE = Charge(key="calls", name="Calls", model=PerUnit(Decimal("0.10")), meter="calls")
PRO = Plan(key="pro", name="Pro", currency="USD", charges=(BASE_FEE, CALLS_CHARGE))
METERED = Plan(key="metered", name="Metered", currency="USD", charges=(CALLS_CHARGE,))
TENTH_OFF = Coupon(code="TENTH", percent=Decimal(10), invoices=1)
BOOK = PublishPriceBook(meters=(CALLS,), plans=(PRO, METERED), coupons=(TENTH_OFF,))
CREATE_C1 = CreateCustomer(customer_id=C1, payment_method=CARD)
SUBSCRIBE = CreateSubscription(subscription_id=S1, customer_id=C1, plan="pro")
ACTIVATE = ActivateSubscription(subscription_id=S1)
POSITIONS = (PartitionPosition(partition=0, offset=100),)


def close(end: datetime, subscription: SubscriptionId = S1) -> CloseBillingPeriod:
    return CloseBillingPeriod(subscription_id=subscription, period_end=end, positions=POSITIONS)


def until(instant: datetime) -> AdvanceClock:
    return AdvanceClock(to=instant)


def line(amount: str, charge: str = "base", kind: LineKind = LineKind.FEE, **more: Any) -> RatedLine:
    """A line of USD for January, unless told otherwise."""
    return RatedLine(
        kind=kind,
        charge=charge,
        description=charge,
        period=more.pop("period", Period(JANUARY, FEBRUARY)),
        amount=Money.from_major(Decimal(amount), more.pop("currency", "USD")),
        explanation=amount,
        **more,
    )


@dataclass
class Life:
    """A tenant from its first event on: commands are decided, and what they decide is recorded."""

    state: TenantState = field(default_factory=lambda: TenantState(TenantId("acme")))
    envelopes: list[EventEnvelope] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    wall: datetime = WALL
    sent: int = 0
    rejected: Rejected | None = None
    decided: list[Any] = field(default_factory=list)
    replayed: Replayed | None = None

    def given(self, *commands: Any) -> Life:
        """Ask for each, all of which are accepted."""
        for command in commands:
            self.when(command)
            assert self.rejected is None, f"{command} was rejected: {self.rejected}"
        return self

    def when(self, command: Any, key: str | None = None) -> Life:
        """Ask for one."""
        self.sent += 1
        meta = CommandMeta(
            command_id=f"command-{self.sent}",
            tenant=self.state.tenant_id,
            idempotency_key=f"test:{self.sent}" if key is None else key,
            actor="test",
            correlation_id=f"command-{self.sent}",
            sent_at=self.wall,
        )
        envelope = CommandEnvelope(meta, command)
        self.rejected, self.replayed, self.decided = None, None, []
        try:
            outcome = decide(self.state, envelope, payload_hash(command), self.wall)
        except Rejected as e:
            self.rejected = e
            return self
        if isinstance(outcome, Replayed):
            self.replayed = outcome
            return self
        made = chain(self.state, outcome, envelope, payload_hash(command), self.wall, event_hash)
        record(self.state, made)
        self.envelopes += [each.envelope for each in made]
        self.hashes += [each.hash for each in made]
        self.decided = [each.envelope.event for each in made]
        return self

    def then(self, *events: Any) -> Life:
        """Exactly these events followed."""
        assert self.rejected is None, self.rejected
        assert self.decided == list(events)
        return self

    def then_names(self, *names: str) -> Life:
        """Events of exactly these types followed."""
        assert self.rejected is None, self.rejected
        assert [type(each).__name__ for each in self.decided] == list(names)
        return self

    def then_rejected(self, code: str, field: str = "") -> Life:
        """It was refused, and nothing followed."""
        assert self.rejected is not None, f"accepted: {self.decided}"
        assert (self.rejected.code, self.rejected.field) == (code, field)
        return self

    def later(self, span: timedelta) -> Life:
        """Let the real clock move on."""
        self.wall += span
        return self

    @property
    def event(self) -> Any:
        """The one event that followed."""
        (only,) = self.decided
        return only

    @property
    def names(self) -> list[str]:
        """Types of all events so far."""
        return [each.meta.type for each in self.envelopes]

    @property
    def last_invoice(self) -> InvoiceFinalized:
        """The latest invoice."""
        found: InvoiceFinalized = self.last(InvoiceFinalized)
        return found

    def last(self, kind: type) -> Any:
        """The latest event of a type."""
        return next(each.event for each in reversed(self.envelopes) if isinstance(each.event, kind))

    def folded(self) -> TenantState:
        """The state as the log alone gives it."""
        state = TenantState(self.state.tenant_id)
        for envelope, hashed in zip(self.envelopes, self.hashes, strict=True):
            state.apply(envelope, hashed)
        return state


def a_tenant(**changes: Any) -> Life:
    """Registered, with a price book and a customer."""
    return Life().given(replace(REGISTER, **changes), BOOK, CREATE_C1)


def a_subscriber(plan: str = "pro", **changes: Any) -> Life:
    """On a plan since the first of January."""
    return a_tenant(**changes).given(replace(SUBSCRIBE, plan=plan), ACTIVATE)


def issue(life: Life, *lines: RatedLine) -> IssueInvoice:
    """Issue the invoice that was awaited last."""
    return IssueInvoice(invoice_id=awaited(life), lines=tuple(lines))


def awaited(life: Life) -> InvoiceId:
    """The invoice of the latest run."""
    run = next(run for each in reversed(life.envelopes) if (run := getattr(each.event, "run", None)) is not None)
    return InvoiceId(run.invoice_id)


def taxed(percent: str, *, inclusive: bool = False) -> tuple[TaxRate, ...]:
    return (TaxRate(code="vat", percent=Decimal(percent), inclusive=inclusive),)
