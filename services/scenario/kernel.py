"""Plays a scenario against the deciders, in memory: one tenant whose clock stops at whatever falls due.

Every step that the timeline asks for, or that time itself brings, is kept (`Played.steps`), so that the running system
can be given exactly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from billing.customer import Active as Buyer
from billing.customer import CreateCustomer, RedeemCoupon, SetJurisdiction, SetPriceOverride
from billing.decision import TenantState, chain, facts, record
from billing.envelope import CommandEnvelope, CommandMeta, EventEnvelope
from billing.errors import Rejected
from billing.ids import CustomerId, SubscriptionId, TenantId
from billing.invoice import InvoiceFinalized, IssueInvoice
from billing.invoicing import BillingRun, LatePeriod, carries_over, lines, needs, one_by_one
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from billing.payment import RecordManualPayment
from billing.plan_change import ChangeBillingZone
from billing.pricing import Books
from billing.subscription import (
    ActivateSubscription,
    Active,
    CloseBillingPeriod,
    Ended,
    Scheduled,
    SubscriptionCanceled,
    SubscriptionCreated,
)
from billing.tenant import AdvanceClock, Registered, grace
from services.scenario import commands
from services.scenario.golden import Outcome, Refusal, Span
from services.scenario.statements import Statement
from services.scenario.text import Scenario
from services.scenario.usage import UsageLog
from services.scenario.verbs import (
    Add,
    Amend,
    Anchor,
    Cancel,
    Change,
    Clock,
    Give,
    Migrate,
    Override,
    Pay,
    Publish,
    Redeem,
    Remove,
    Subscribe,
    TaxIn,
    Use,
    Void,
    Zone,
)

TENANT = TenantId("scenario")
INVOICES_MAX = 1_000  # nobody reads more of them


@dataclass(frozen=True, slots=True)
class Send:
    """A command of the timeline; `line` tells it from all others."""

    line: int
    command: Any


@dataclass(frozen=True, slots=True)
class Arrive:
    """Usage of the timeline, with so many of each event alike."""

    events: tuple[UsageEvent, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Correct:
    """Usage of the timeline that is taken back, or put right."""

    correction: UsageVoided | UsageAmended


@dataclass(frozen=True, slots=True)
class Advance:
    """The clock moves on; what is due by then is billed before the next step."""

    to: datetime


Step = Send | Arrive | Correct | Advance


@dataclass(slots=True)
class Played:
    """What a scenario came to, and the steps that led there."""

    outcome: Outcome
    steps: list[Step] = field(default_factory=list)


class Stuck(Exception):
    """The story cannot go on: catalogue or tenant are refused, or usage cannot be rated; `line` is where."""

    def __init__(self, line: int, refused: Rejected) -> None:
        super().__init__(refused.detail)
        self.line = line
        self.refused = refused


def play(scenario: Scenario) -> Played:
    """Play the whole timeline.

    Raises:
        Stuck: naming the line that could not be played.
    """
    line = scenario.catalogue_line
    try:
        office = _Office(scenario)
        for statement in scenario.timeline:
            line = statement.line
            office.advance(statement.at)
            office.obey(statement)
    except Rejected as e:
        raise Stuck(line, e) from e
    return Played(office.outcome(), office.steps)


class _Office:
    """One tenant: everything that scheduler, command handler and invoicing do for it."""

    def __init__(self, scenario: Scenario) -> None:
        assert scenario.tenant.test_clock is not None
        self._scenario = scenario
        self._state = TenantState(TENANT)
        self._now = scenario.tenant.test_clock
        self._usage = UsageLog(scenario.tenant.bounds)
        self._invoices: list[InvoiceFinalized] = []
        self._refusals: list[Refusal] = []
        self._ends: dict[SubscriptionId, datetime] = {}
        self.steps: list[Step] = []
        self._ask(0, scenario.tenant)
        self._ask(0, scenario.price_book)

    def advance(self, to: datetime) -> None:
        """Let the clock stop wherever something is due on the way to `to`."""
        while (stop := self._next_stop(to)) is not None:
            self._set_clock(stop)
        if to > self._now:
            self._set_clock(to)

    def obey(self, statement: Statement) -> None:
        """Do what a line of the timeline says; a refusal is part of the story."""
        line, verb = statement.line, statement.verb
        try:
            match verb:
                case Subscribe(customer=customer):
                    self._know(line, CustomerId(customer))
                    self._ask(line, commands.subscription(verb))
                case Redeem(customer=customer, coupon=coupon):
                    self._know(line, CustomerId(customer))
                    self._ask(line, RedeemCoupon(customer_id=CustomerId(customer), coupon=coupon))
                case Override(customer=customer):
                    self._know(line, CustomerId(customer))
                    own = self._scenario.own_prices[line]
                    self._ask(line, SetPriceOverride(customer_id=CustomerId(customer), override=own))
                case Change() | Migrate() | Add() | Remove() | Anchor() | Cancel():
                    self._ask(line, commands.of_a_subscription(verb))
                case TaxIn(customer=customer, jurisdiction=jurisdiction):
                    self._know(line, CustomerId(customer))
                    self._ask(line, SetJurisdiction(customer_id=CustomerId(customer), jurisdiction=jurisdiction))
                case Give(customer=customer):
                    self._know(line, CustomerId(customer))
                    self._ask(line, commands.grant(verb))
                case Zone(subscription=subscription, zone=zone):
                    self._ask(line, ChangeBillingZone(subscription_id=SubscriptionId(subscription), zone=zone))
                case Publish():
                    self._ask(line, self._scenario.newer[line])
                case Pay(number=number):
                    self._ask(line, self._payment(number, line))
                case Use():
                    self._arrive(verb, line)
                case Void() | Amend():
                    self._correct(verb)
                case Clock():
                    pass
        except Rejected as e:
            self._refusals.append(Refusal(statement.at, statement.text, e.code, e.detail))
        self._work()

    def outcome(self) -> Outcome:
        """What came of it all so far."""
        credit = [
            (str(customer), amount)
            for customer, buyer in sorted(self._state.customers.items())
            if isinstance(buyer, Buyer)
            for _, amount in sorted(buyer.unused().items())
        ]
        return Outcome(
            zone=self._scenario.tenant.zone,
            invoices=self._invoices,
            refusals=[unnamed(each, self._invoices) for each in self._refusals],
            credit=[each for each in credit if each[1].minor],
            received=self._usage.received,
            counted=self._usage.counted,
            duplicates=self._usage.duplicates,
            voided=self._usage.voided,
            amended=self._usage.amended,
            uncorrected=[(each.id, each.refused.code, each.refused.detail) for each in self._usage.uncorrected],
            refused=[(each.id, each.refused.code, each.refused.detail) for each in self._usage.refused],
            spans=self._spans(),
        )

    def _spans(self) -> list[Span]:
        made = []
        for key, state in self._state.subscriptions.items():
            assert isinstance(state, Scheduled | Active | Ended)
            made.append(Span(state.terms.customer_id, state.terms.starts_at, self._ends.get(key)))
        return made

    def _set_clock(self, to: datetime) -> None:
        self._now = to
        self.steps.append(Advance(to))
        self._decide(AdvanceClock(to=to))
        self._work()

    def _ask(self, line: int, command: Any) -> None:
        """A command of the timeline. Also kept if it is refused: the system must refuse it, too."""
        self.steps.append(Send(line, command))
        self._decide(command)

    def _know(self, line: int, customer: CustomerId) -> None:
        """Create the customer whom the timeline names for the first time."""
        if customer not in self._state.customers:
            self._ask(line, CreateCustomer(customer_id=customer))

    def _decide(self, command: Any) -> list[EventEnvelope]:
        meta = CommandMeta(
            command_id="scenario",
            tenant=TENANT,
            idempotency_key=str(self._state.sequence),
            actor="scenario",
            correlation_id="scenario",
            sent_at=self._now,
        )
        decided = facts(self._state, command, self._now)
        chained = chain(self._state, decided, CommandEnvelope(meta, command), b"", self._now, _place)
        record(self._state, chained)
        made = [each.envelope for each in chained]
        for each in made:
            if isinstance(each.event, InvoiceFinalized):
                self._invoices.append(each.event)
            elif isinstance(each.event, SubscriptionCreated | SubscriptionCanceled) and each.event.ends_at:
                self._ends[each.event.subscription_id] = each.event.ends_at
            for meter in getattr(each.event, "meters", ()):
                self._usage.meters[meter.key] = meter
        return made

    def _arrive(self, use: Use, line: int) -> None:
        made = []
        for number, properties in enumerate(use.each, 1):
            id = use.id or (f"{line}" if len(use.each) == 1 else f"{line}.{number}")
            assert use.at is not None
            made.append(_event(use, id, use.at, properties))
            self._usage.append(made[-1], use.count, self._now)
        self.steps.append(Arrive(tuple(made), use.count))

    def _correct(self, verb: Void | Amend) -> None:
        if isinstance(verb, Void):
            made: UsageVoided | UsageAmended = UsageVoided(
                tenant=TENANT, source=verb.source, id=verb.id, reason="scenario"
            )
        else:
            now = verb.event
            at = now.at or self._usage.time_of(now.source, now.id) or self._now
            made = UsageAmended(tenant=TENANT, event=_event(now, now.id, at, now.each[0]), reason="scenario")
        self._usage.correct(made, self._now)
        self.steps.append(Correct(made))

    def _payment(self, number: str, line: int) -> RecordManualPayment:
        for each in self._invoices:
            if each.number == number:
                return RecordManualPayment(invoice_id=each.invoice_id, reference=f"line {line}")
        raise Rejected("unknown_invoice", f"there is no invoice {number!r} by now", field="number")

    def _due(self) -> list[tuple[datetime, SubscriptionId]]:
        """When each subscription needs something, the earliest first."""
        assert isinstance(self._state.tenant, Registered)
        late = grace(self._state.tenant)
        made = []
        for key, state in self._state.subscriptions.items():
            if isinstance(state, Scheduled):
                made.append((state.terms.starts_at, key))
            elif isinstance(state, Active):
                made.append((state.boundary + late, key))
        return sorted(made)

    def _next_stop(self, to: datetime) -> datetime | None:
        return next((at for at, _ in self._due() if self._now < at < to), None)

    def _work(self) -> None:
        """What scheduler and invoicing do until nothing is due."""
        while True:
            due = next((key for at, key in self._due() if at <= self._now), None)
            if due is None:
                return
            if len(self._invoices) >= INVOICES_MAX:
                raise Rejected("too_long", f"more than {INVOICES_MAX:,} invoices; is a date mistyped?")
            for made in self._decide(self._command(due)):
                run = getattr(made.event, "run", None)
                if isinstance(run, BillingRun):
                    self._issue(run)

    def _command(self, key: SubscriptionId) -> ActivateSubscription | CloseBillingPeriod:
        state = self._state.subscriptions[key]
        if isinstance(state, Active):
            return CloseBillingPeriod(subscription_id=key, period_end=state.boundary, positions=self._usage.positions)
        return ActivateSubscription(subscription_id=key)

    def _issue(self, run: BillingRun) -> None:
        books = {book.version: book for book in self._state.catalog.books}
        late = [each for each in run.late if self._has_late(run, each, books)]
        alone = one_by_one(run, books, late)
        quantities = {
            need: self._usage.measure(run.customer_id, need, need.meter.key in alone)
            for need in needs(run, books, late)
        }
        self._decide(IssueInvoice(invoice_id=run.invoice_id, lines=lines(run, books, late, quantities)))

    def _has_late(self, run: BillingRun, closed: LatePeriod, books: Books) -> bool:
        period, until, earlier = closed.period, run.cut.positions, carries_over(closed, books)
        return self._usage.has_late(run.customer_id, period, closed.since, until, earlier=earlier)


def unnamed(refusal: Refusal, invoices: Sequence[InvoiceFinalized]) -> Refusal:
    """The refusal with numbers of invoices instead of their ids, which differ from tenant to tenant."""
    detail = refusal.detail
    for each in invoices:
        detail = detail.replace(each.invoice_id, each.number)
    return replace(refusal, detail=detail)


def _event(use: Use, id: str, at: datetime, properties: dict[str, str]) -> UsageEvent:
    return UsageEvent(id=id, source=use.source, type=use.type, customer=use.customer, time=at, properties=properties)


def _place(envelope: EventEnvelope) -> bytes:
    """Stands in for the hash of an event's Avro body: nobody reads this chain but the state itself."""
    return envelope.meta.sequence.to_bytes(32, "big")
