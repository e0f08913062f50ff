"""Any life a tenant can lead keeps the laws: hypothesis asks for anything, at any time, in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from billing import invoice as invoices
from billing.customer import (
    AttachPaymentMethod,
    CreateCustomer,
    PaymentMethod,
    Provider,
    RedeemCoupon,
    SetPriceOverride,
)
from billing.discount import Coupon
from billing.envelope import GENESIS
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.invoice import InvoiceFinalized, IssueInvoice
from billing.invoicing import RatedLine, lines, needs
from billing.ledger import Account, imbalance
from billing.metering import NOTHING
from billing.money import Money
from billing.payment import (
    DeclineKind,
    Due,
    Exhausted,
    Pending,
    RecordManualPayment,
    RecordPaymentDecline,
    RecordPaymentSuccess,
    RecordPaymentUnknown,
    StartPaymentAttempt,
)
from billing.period import Alignment
from billing.plan import AddOn
from billing.plan_change import (
    AddAddOn,
    ChangeBillingAnchor,
    ChangeBillingZone,
    ChangePlan,
    MigrateSubscription,
    RemoveAddOn,
)
from billing.price import Charge, Flat
from billing.pricing import PriceOverride
from billing.subscription import ActivateSubscription, Active, CancelSubscription
from tests.billing.tenants import (
    BASE_FEE,
    BOOK,
    METERED,
    PRO,
    REGISTER,
    SUBSCRIBE,
    TENTH_OFF,
    Life,
    close,
    line,
    taxed,
    until,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
CUSTOMERS = [CustomerId(f"c{n}") for n in range(3)]
SUBSCRIPTIONS = [SubscriptionId(f"s{n}") for n in range(3)]
METHODS = [
    PaymentMethod(),
    PaymentMethod(provider=Provider.SANDBOX, token="tok_visa"),
    PaymentMethod(provider=Provider.STRIPE, token="pm_1"),
]
FIXED = Coupon(code="FIXED", amount=Decimal("12.34"), currency="USD", carry_over=True)

SEATS = AddOn(
    key="seats",
    name="Seats",
    currency="USD",
    charges=(Charge(key="fee", name="Seats", model=Flat(Decimal("3.10")), in_advance=True),),
)

WEEKLY = replace(PRO, key="weekly", interval="P1W", alignment=Alignment.ANCHOR, trial="P5D", free_periods=1)
PLANS = (PRO, METERED, WEEKLY)
OFFERED = ["pro", "metered", "weekly", "gold"]  # the last one is not

customers = st.sampled_from(CUSTOMERS)
subscriptions = st.sampled_from(SUBSCRIPTIONS)
ZONES = ["UTC", "Asia/Tokyo", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago"]
WHAT = ["start", "start", "success", "decline", "refuse", "unknown", "manual"]
attempts = st.integers(1, 4)
amounts = st.lists(st.integers(-5_000, 20_000), max_size=3)


class TenantsLife(RuleBasedStateMachine):
    """Commands of every kind, sensible and not; what is accepted must keep every invariant."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life()
        self.now = START
        self.asked: list[tuple[object, str]] = []

    @initialize(inclusive=st.booleans(), percent=st.sampled_from(["0", "7.7", "20"]))
    def register(self, inclusive: bool, percent: str) -> None:
        seller = replace(REGISTER, test_clock=START, taxes=taxed(percent, inclusive=inclusive))
        self.life.given(seller, replace(BOOK, plans=PLANS, coupons=(TENTH_OFF, FIXED), add_ons=(SEATS,)))
        for customer, method in zip(CUSTOMERS[:2], METHODS[1:], strict=True):
            self.ask(CreateCustomer(customer_id=customer, payment_method=method))

    def ask(self, command: object) -> None:
        key = f"key:{len(self.asked)}"
        self.asked.append((command, key))
        before = self.life.state.sequence
        self.life.when(command, key=key)
        if self.life.rejected is not None:
            assert self.life.state.sequence == before
            assert self.life.rejected.code

    @rule(customer=customers, method=st.sampled_from(METHODS))
    def create_customer(self, customer: CustomerId, method: PaymentMethod) -> None:
        self.ask(CreateCustomer(customer_id=customer, payment_method=method))

    @rule(customer=customers, method=st.sampled_from(METHODS))
    def attach(self, customer: CustomerId, method: PaymentMethod) -> None:
        self.ask(AttachPaymentMethod(customer_id=customer, payment_method=method))

    @rule(customer=customers, code=st.sampled_from(["TENTH", "FIXED", "NONE"]))
    def redeem(self, customer: CustomerId, code: str) -> None:
        self.ask(RedeemCoupon(customer_id=customer, coupon=code))

    @rule(
        subscription=subscriptions,
        customer=customers,
        plan=st.sampled_from(["pro", "metered", "weekly"]),
        days=st.none() | st.integers(-40, 40),
        trial=st.sampled_from([None, "P0D", "P9D"]),
        lasts=st.none() | st.integers(-1, 60),
    )
    def subscribe(
        self,
        subscription: SubscriptionId,
        customer: CustomerId,
        plan: str,
        days: int | None,
        trial: str | None,
        lasts: int | None,
    ) -> None:
        starts_at = None if days is None else self.now + timedelta(days=days)
        ends_at = None if lasts is None else (starts_at or self.now) + timedelta(days=lasts)
        wish = replace(SUBSCRIBE, subscription_id=subscription, customer_id=customer, plan=plan, starts_at=starts_at)
        self.ask(replace(wish, trial=trial, ends_at=ends_at))

    @rule(subscription=subscriptions, customer=customers)
    def subscribe_now(self, subscription: SubscriptionId, customer: CustomerId) -> None:
        self.ask(replace(SUBSCRIBE, subscription_id=subscription, customer_id=customer))
        self.ask(ActivateSubscription(subscription_id=subscription))

    @rule(subscription=subscriptions)
    def activate(self, subscription: SubscriptionId) -> None:
        self.ask(ActivateSubscription(subscription_id=subscription))

    @rule(subscription=subscriptions, at_period_end=st.booleans())
    def cancel(self, subscription: SubscriptionId, at_period_end: bool) -> None:
        self.ask(CancelSubscription(subscription_id=subscription, at_period_end=at_period_end))

    @rule(
        subscription=subscriptions,
        plan=st.sampled_from(OFFERED),
        at_period_end=st.booleans(),
    )
    def change_plan(self, subscription: SubscriptionId, plan: str, at_period_end: bool) -> None:
        self.ask(ChangePlan(subscription_id=subscription, plan=plan, at_period_end=at_period_end))

    @rule(subscription=subscriptions, fee=st.sampled_from(["10.00", "31.00"]), at_period_end=st.booleans())
    def publish_and_migrate(self, subscription: SubscriptionId, fee: str, at_period_end: bool) -> None:
        dearer = replace(PRO, charges=(replace(BASE_FEE, model=Flat(Decimal(fee))), *PRO.charges[1:]))
        self.ask(replace(BOOK, plans=(dearer, *PLANS[1:]), coupons=(TENTH_OFF, FIXED), add_ons=(SEATS,)))
        self.ask(MigrateSubscription(subscription_id=subscription, at_period_end=at_period_end))

    @rule(subscription=subscriptions, quantity=st.integers(0, 3), at_period_end=st.booleans())
    def add(self, subscription: SubscriptionId, quantity: int, at_period_end: bool) -> None:
        if quantity:
            added = AddAddOn(
                subscription_id=subscription, add_on="seats", quantity=quantity, at_period_end=at_period_end
            )
            self.ask(added)
        else:
            self.ask(RemoveAddOn(subscription_id=subscription, add_on="seats", at_period_end=at_period_end))

    @rule(subscription=subscriptions, days=st.none() | st.integers(-40, 40), at_period_end=st.booleans())
    def change_anchor(self, subscription: SubscriptionId, days: int | None, at_period_end: bool) -> None:
        anchor = None if days is None else self.now + timedelta(days=days)
        self.ask(ChangeBillingAnchor(subscription_id=subscription, anchor=anchor, at_period_end=at_period_end))

    @rule(subscription=subscriptions, zone=st.sampled_from(ZONES))
    def change_zone(self, subscription: SubscriptionId, zone: str) -> None:
        self.ask(ChangeBillingZone(subscription_id=subscription, zone=zone))

    @rule(customer=customers, percent=st.integers(0, 100))
    def own_prices(self, customer: CustomerId, percent: int) -> None:
        own = PriceOverride(plan="pro", discount_percent=Decimal(percent))
        self.ask(SetPriceOverride(customer_id=customer, override=own))

    @rule(hours=st.sampled_from([1, 24, 24 * 7, 24 * 31, 24 * 70]))
    def advance(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self.ask(until(self.now))

    @rule(subscription=subscriptions)
    def close_too_early_or_not(self, subscription: SubscriptionId) -> None:
        known = self.life.state.subscriptions.get(subscription)
        self.ask(close(known.boundary if isinstance(known, Active) else self.now, subscription))

    @precondition(lambda self: self.active())
    @rule(data=st.data(), minors=amounts, promptly=st.booleans())
    def let_a_period_end(self, data: st.DataObject, minors: list[int], promptly: bool) -> None:
        """The clock passes a boundary, the period is closed, and its invoice is issued now or some time."""
        subscription = data.draw(st.sampled_from(self.active()))
        known = self.life.state.subscriptions[subscription]
        assert isinstance(known, Active)
        self.now = max(self.now, known.boundary)
        self.ask(until(self.now))
        self.ask(close(known.boundary, subscription))
        if promptly:
            self.issue_all(minors)

    @rule(minors=amounts)
    def issue_all(self, minors: list[int]) -> None:
        """Every invoice that waits is issued."""
        for invoice, known in list(self.life.state.invoices.items()):
            if isinstance(known, invoices.Awaited):
                self.ask(IssueInvoice(invoice_id=invoice, lines=tuple(_fee(known, minor) for minor in minors)))

    @precondition(lambda self: self.life.state.invoices)
    @rule(data=st.data(), minors=amounts)
    def issue_again(self, data: st.DataObject, minors: list[int]) -> None:
        invoice = data.draw(st.sampled_from(sorted(self.life.state.invoices)))
        self.ask(IssueInvoice(invoice_id=invoice, lines=tuple(line(str(Decimal(each) / 100)) for each in minors)))

    @precondition(lambda self: self.life.state.payments)
    @rule(data=st.data(), attempt=st.none() | attempts, what=st.sampled_from(WHAT))
    def collect(self, data: st.DataObject, attempt: int | None, what: str) -> None:
        """The next step of a collection, or one that does not fit."""
        invoice = InvoiceId(data.draw(st.sampled_from(sorted(self.life.state.payments))))
        known = self.life.state.payments[invoice]
        n = attempt if attempt is not None else getattr(known, "attempt", 1)
        amount = known.due.amount if isinstance(known, Due | Pending | Exhausted) else Money(1, "USD")
        match what:
            case "start":
                self.ask(StartPaymentAttempt(invoice_id=invoice, attempt=n))
            case "success":
                self.ask(RecordPaymentSuccess(invoice_id=invoice, attempt=n, amount=amount, reference="p"))
            case "decline":
                self.ask(RecordPaymentDecline(invoice_id=invoice, attempt=n, kind=DeclineKind.SOFT, code="nsf"))
            case "refuse":
                self.ask(RecordPaymentDecline(invoice_id=invoice, attempt=n, kind=DeclineKind.HARD, code="stolen"))
            case "unknown":
                self.ask(RecordPaymentUnknown(invoice_id=invoice, attempt=n, detail="timed out"))
            case _:
                self.ask(RecordManualPayment(invoice_id=invoice, reference="bank"))

    def active(self) -> list[SubscriptionId]:
        known = self.life.state.subscriptions
        return [each for each in SUBSCRIPTIONS if isinstance(known.get(each), Active)]

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Any earlier command again under its key: an accepted one with events never makes further events."""
        command, key = data.draw(st.sampled_from(self.asked))
        known = self.life.state.keys.get(key)
        before = self.life.state.sequence
        self.life.when(command, key=key)
        if known is not None:
            assert self.life.replayed is not None
            assert self.life.replayed.accepted == known
            assert self.life.state.sequence == before

    @invariant()
    def events_are_gapless_and_chained(self) -> None:
        previous = GENESIS
        for sequence, (each, hashed) in enumerate(zip(self.life.envelopes, self.life.hashes, strict=True), 1):
            assert each.meta.sequence == sequence
            assert each.meta.previous_hash == previous
            previous = hashed

    @invariant()
    def numbers_are_gapless_and_each_run_has_one_invoice(self) -> None:
        issued = [each.event for each in self.life.envelopes if isinstance(each.event, InvoiceFinalized)]
        assert [each.serial for each in issued] == list(range(1, len(issued) + 1))
        assert max(Counter(each.invoice_id for each in issued).values(), default=1) == 1
        runs = [run.invoice_id for each in self.life.envelopes if (run := getattr(each.event, "run", None))]
        assert max(Counter(runs).values(), default=1) <= 2  # the run, and the invoice that carries it

    @invariant()
    def postings_balance_and_receivables_are_what_is_open(self) -> None:
        receivable = 0
        for each in self.life.envelopes:
            made = getattr(each.event, "postings", ())
            assert imbalance(made) == {}
            receivable += sum(one.amount.minor for one in made if one.account is Account.RECEIVABLE)
        known = self.life.state.invoices.values()
        assert receivable == sum(each.amount_due.minor for each in known if isinstance(each, invoices.Open))

    @invariant()
    def an_invoice_is_collected_at_most_once(self) -> None:
        paid = Counter(each.event.invoice_id for each in self.life.envelopes if each.meta.type == "InvoicePaid")
        assert max(paid.values(), default=1) == 1

    @invariant()
    def credit_is_never_overdrawn(self) -> None:
        for each in self.life.state.customers.values():
            for balance in getattr(each, "credit", {}).values():
                assert balance.minor >= 0

    @invariant()
    def a_carried_over_coupon_gives_no_more_than_its_amount(self) -> None:
        given: Counter[CustomerId] = Counter()
        for each in self.life.envelopes:
            if isinstance(each.event, InvoiceFinalized):
                given[each.event.customer_id] += sum(
                    one.amount.minor for one in each.event.discounts if one.coupon == "FIXED"
                )
        assert max(given.values(), default=0) <= 1234

    @invariant()
    def a_run_can_be_rated_and_its_segments_tile_its_period(self) -> None:
        run = getattr(self.life.envelopes[-1].event, "run", None) if self.life.envelopes else None
        if run is None:
            return
        books = self.life.state.catalog.by_version
        lines(run, books, run.late, dict.fromkeys(needs(run, books, run.late), NOTHING))
        assert all(a.period.end == b.period.start for a, b in pairwise(run.segments))
        assert all(a.pricing != b.pricing for a, b in pairwise(run.segments))

    @invariant()
    def periods_of_a_subscription_adjoin(self) -> None:
        for subscription in SUBSCRIPTIONS:
            end = None
            for each in self.life.envelopes:
                span = getattr(each.event, "span", getattr(each.event, "first", None))
                if getattr(each.event, "subscription_id", None) != subscription or span is None:
                    continue
                span = span.period
                if each.meta.type == "BillingPeriodClosed":
                    assert end is None or span.start == end
                    end = span.end
                else:
                    end = span.start

    def teardown(self) -> None:
        """The log alone gives the same state."""
        assert self.life.folded() == self.life.state


def _fee(awaited: invoices.Awaited, minor: int) -> RatedLine:
    span = awaited.run.advance or awaited.run.arrears
    assert span is not None
    return line(str(Decimal(minor) / 100), period=span.period)


TestATenantsLife = TenantsLife.TestCase
TestATenantsLife.settings = settings(max_examples=25, stateful_step_count=60, deadline=None)
