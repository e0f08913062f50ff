"""Deciding: one command against everything one tenant is, in the order of the log.

`decide` is pure: it reads the state and returns facts. `TenantState.apply` records facts, those just decided and
those read back from the log alike, and is the only way in which a state changes. Whoever cannot confirm that the
facts were committed throws the state away and folds the log again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from billing import (
    backfilling,
    breakage,
    catalog,
    changing,
    customer,
    invoice,
    moving,
    payment,
    plan_change,
    prepaid,
    subscribing,
    subscription,
    tenant,
)
from billing.closing import activate, close
from billing.envelope import GENESIS, CommandEnvelope, EventEnvelope, EventMeta
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, InvoiceId, SubscriptionId, TenantId, event_id
from billing.override import checked_override

KEY_LENGTH_MAX = 255
KEY_RETENTION = timedelta(days=30)  # promise 7: an idempotency key is known for at least 30 days of log time


@dataclass(frozen=True, slots=True)
class Accepted:
    """An idempotency key's first outcome."""

    payload_hash: bytes
    first_sequence: int
    last_sequence: int
    recorded_at: datetime
    aggregate_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """An event and the aggregate it belongs to."""

    aggregate_id: str
    event: Any


@dataclass(slots=True)
class TenantState:
    """Everything later decisions about one tenant need; a cache of its events."""

    tenant_id: TenantId
    sequence: int = 0
    last_hash: bytes = GENESIS
    tenant: tenant.State = tenant.initial
    catalog: catalog.State = catalog.initial
    customers: dict[CustomerId, customer.State] = field(default_factory=dict)
    subscriptions: dict[SubscriptionId, subscription.State] = field(default_factory=dict)
    invoices: dict[InvoiceId, invoice.State] = field(default_factory=dict)
    payments: dict[InvoiceId, payment.State] = field(default_factory=dict)
    serial: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    keys: dict[str, Accepted] = field(default_factory=dict)

    def apply(self, envelope: EventEnvelope, event_hash: bytes) -> None:
        """Record one fact. `event_hash` is the SHA-256 of its Avro body.

        Raises:
            CorruptHistory: it does not follow the last one: a gap, a repetition, or a broken chain.
        """
        meta = envelope.meta
        if meta.sequence != self.sequence + 1:
            raise CorruptHistory(f"{self.tenant_id}: event {meta.sequence} after {self.sequence}")
        if meta.previous_hash != self.last_hash:
            raise CorruptHistory(f"{self.tenant_id}: event {meta.sequence} does not continue the hash chain")
        if meta.aggregate_version != self.versions.get(meta.aggregate_id, 0) + 1:
            raise CorruptHistory(f"{meta.aggregate_id}: version {meta.aggregate_version} out of order")
        self._evolve(envelope.event)
        self.sequence, self.last_hash = meta.sequence, event_hash
        self.versions[meta.aggregate_id] = meta.aggregate_version
        self._remember(meta)

    def _remember(self, meta: EventMeta) -> None:
        known = self.keys.pop(meta.idempotency_key, None)
        first = known.first_sequence if known and known.payload_hash == meta.payload_hash else meta.sequence
        ids = known.aggregate_ids if known and first != meta.sequence else ()
        self.keys[meta.idempotency_key] = Accepted(
            meta.payload_hash, first, meta.sequence, meta.recorded_at, tuple(dict.fromkeys((*ids, meta.aggregate_id)))
        )
        # Oldest first, as dictionaries keep the order of insertion: forgetting is cheap and exact.
        while (oldest := next(iter(self.keys))) and meta.recorded_at - self.keys[oldest].recorded_at > KEY_RETENTION:
            del self.keys[oldest]

    def _evolve(self, event: Any) -> None:
        match event:
            case (
                tenant.TenantRegistered()
                | tenant.TenantSettingsChanged()
                | tenant.ClockAdvanced()
                | tenant.UsageSpreadSet()
            ):
                self.tenant = tenant.evolve(self.tenant, event)
            case backfilling.MeterBackfillOrdered():
                pass  # of what is counted, not of what is decided
            case catalog.PriceBookPublished():
                self.catalog = catalog.evolve(self.catalog, event)
            case (
                customer.CustomerCreated()
                | customer.PaymentMethodAttached()
                | customer.JurisdictionSet()
                | customer.CouponRedeemed()
                | customer.CustomerCredited()
                | customer.PriceOverrideSet()
                | prepaid.CreditGranted()
                | prepaid.CreditExpired()
            ):
                known = self.customers.get(event.customer_id, customer.initial)
                self.customers[event.customer_id] = customer.evolve(known, event)
            case (
                subscription.SubscriptionCreated()
                | subscription.SubscriptionActivated()
                | subscription.BillingPeriodClosed()
                | plan_change.SubscriptionPlanChanged()
                | plan_change.SubscriptionMigrated()
                | plan_change.AddOnAdded()
                | plan_change.AddOnRemoved()
                | plan_change.BillingAnchorChanged()
                | plan_change.BillingZoneChanged()
                | subscription.SubscriptionCanceled()
                | subscription.SubscriptionEnded()
            ):
                self._evolve_subscription(event)
            case invoice.InvoiceFinalized():
                self._evolve_invoice(event)
                self.serial = event.serial
                taken = {each.coupon: each.amount for each in event.discounts}
                payer = self.customers.get(event.customer_id, customer.initial)
                self.customers[event.customer_id] = customer.invoiced(payer, taken, event.credit_applied, event.credits)
            case invoice.InvoicePaid() | invoice.InvoiceOmitted():
                self._evolve_invoice(event)
            case _:
                self.payments[event.invoice_id] = payment.evolve(self.payments.get(event.invoice_id), event)

    def _evolve_subscription(self, event: subscription.Event) -> None:
        known = self.subscriptions.get(event.subscription_id, subscription.initial)
        self.subscriptions[event.subscription_id] = subscription.evolve(known, event)
        match event:
            case subscription.SubscriptionActivated(run=run) | subscription.BillingPeriodClosed(run=run) if run:
                self.invoices[run.invoice_id] = invoice.Awaited(run)

    def _evolve_invoice(self, event: invoice.Event) -> None:
        self.invoices[event.invoice_id] = invoice.evolve(self.invoices.get(event.invoice_id), event)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The same wish was accepted before: its outcome, again."""

    accepted: Accepted


def decide(state: TenantState, envelope: CommandEnvelope, payload_hash: bytes, wall: datetime) -> list[Fact] | Replayed:
    """The facts that follow from a command; none if it changes nothing; or the outcome of its first run.

    Raises:
        Rejected: the rules say no. The state is as before.
    """
    if not 0 < len(envelope.meta.idempotency_key) <= KEY_LENGTH_MAX:
        raise Rejected(
            "idempotency_key_invalid", f"a key has 1 to {KEY_LENGTH_MAX} characters", field="idempotency_key"
        )
    known = state.keys.get(envelope.meta.idempotency_key)
    if known is not None:
        if known.payload_hash != payload_hash:
            raise Rejected(
                "idempotency_key_reused",
                f"key {envelope.meta.idempotency_key!r} was used for another request",
                field="idempotency_key",
            )
        return Replayed(known)
    return facts(state, envelope.command, wall)


def facts(state: TenantState, command: Any, wall: datetime) -> list[Fact]:
    """The facts that follow from `command`, as a table: who decides it, with what.

    Raises:
        Rejected: the rules say no.
    """
    if isinstance(command, tenant.RegisterTenant | tenant.ChangeTenantSettings | tenant.AdvanceClock):
        return [Fact("tenant", each) for each in tenant.decide(state.tenant, command)]
    seller = state.tenant
    if not isinstance(seller, tenant.Registered):
        raise Rejected("unknown_tenant", f"tenant {state.tenant_id!r} is not registered", field="tenant")
    now = seller.now(wall)
    match command:
        case tenant.SpreadUsage():
            return [Fact("tenant", each) for each in tenant.spread_usage(seller, command, now)]
        case backfilling.BackfillMeter():
            meters = {meter.key for book in state.catalog.books for meter in book.meters}
            return [Fact("tenant", each) for each in backfilling.backfill_meter(seller, meters, command, now)]
        case catalog.PublishPriceBook():
            return [Fact("catalog", each) for each in catalog.decide(state.catalog, command, now)]
        case customer.SetPriceOverride():
            book = state.catalog.at(now)
            command = replace(command, override=checked_override(command.override, book))
            return _customer(state, command, now)
        case (
            customer.CreateCustomer()
            | customer.AttachPaymentMethod()
            | customer.SetJurisdiction()
            | customer.RedeemCoupon()
            | prepaid.GrantCredit()
        ):
            return _customer(state, command, now)
        case prepaid.ExpireCredit(customer_id=payer):
            return [Fact(f"customer:{payer}", each) for each in breakage.expire(state, command, now)]
        case subscription.CreateSubscription():
            return _of_subscription(command.subscription_id, subscribing.create(state, seller, command, now))
        case subscription.ActivateSubscription():
            return _of_subscription(command.subscription_id, activate(state, seller, command, now))
        case subscription.CloseBillingPeriod():
            return _of_subscription(command.subscription_id, close(state, seller, command, now))
        case plan_change.ChangePlan():
            return _of_subscription(command.subscription_id, changing.change_plan(state, command, now))
        case plan_change.MigrateSubscription():
            return _of_subscription(command.subscription_id, changing.migrate(state, command, now))
        case plan_change.AddAddOn():
            return _of_subscription(command.subscription_id, changing.add(state, command, now))
        case plan_change.RemoveAddOn():
            return _of_subscription(command.subscription_id, changing.remove(state, command, now))
        case plan_change.ChangeBillingAnchor():
            return _of_subscription(command.subscription_id, moving.change_anchor(state, command, now))
        case plan_change.ChangeBillingZone():
            return _of_subscription(command.subscription_id, moving.change_zone(state, command, now))
        case subscription.CancelSubscription():
            known = state.subscriptions.get(command.subscription_id, subscription.initial)
            return _of_subscription(command.subscription_id, subscription.cancel(known, command, now))
        case invoice.IssueInvoice():
            return _issue(state, seller, command, now)
        case _:
            return _collect(state, seller, command, now, wall)


@dataclass(frozen=True, slots=True)
class Chained:
    """An event in its place, and the hash that the tenant's next event continues from."""

    envelope: EventEnvelope
    hash: bytes


def chain(
    state: TenantState,
    decided: Sequence[Fact],
    cause: CommandEnvelope,
    payload_hash: bytes,
    wall: datetime,
    hash_of: Callable[[EventEnvelope], bytes],
) -> list[Chained]:
    """Give the facts their places in the tenant's order and chain. `state` is as before: `record` changes it."""
    seller = state.tenant
    occurred_at = seller.now(wall) if isinstance(seller, tenant.Registered) else wall
    previous = state.last_hash
    versions: dict[str, int] = {}
    made: list[Chained] = []
    for sequence, fact in enumerate(decided, state.sequence + 1):
        version = versions.get(fact.aggregate_id, state.versions.get(fact.aggregate_id, 0)) + 1
        versions[fact.aggregate_id] = version
        meta = EventMeta(
            event_id=event_id(state.tenant_id, sequence),
            tenant=state.tenant_id,
            sequence=sequence,
            type=type(fact.event).__name__,
            aggregate_id=fact.aggregate_id,
            aggregate_version=version,
            command_id=cause.meta.command_id,
            idempotency_key=cause.meta.idempotency_key,
            payload_hash=payload_hash,
            correlation_id=cause.meta.correlation_id,
            causation_id=cause.meta.causation_id,
            actor=cause.meta.actor,
            occurred_at=occurred_at,
            recorded_at=wall,
            previous_hash=previous,
        )
        envelope = EventEnvelope(meta, fact.event)
        previous = hash_of(envelope)
        made.append(Chained(envelope, previous))
    return made


def record(state: TenantState, made: Sequence[Chained]) -> None:
    """Apply what `chain` made. After an error here `state` is spoiled: throw it away and fold the log."""
    for each in made:
        state.apply(each.envelope, each.hash)


def _customer(state: TenantState, command: customer.Command, now: datetime) -> list[Fact]:
    coupon = state.catalog.at(now).coupon(command.coupon) if isinstance(command, customer.RedeemCoupon) else None
    known = state.customers.get(command.customer_id, customer.initial)
    decided = customer.decide(known, command, coupon, now)
    return [Fact(f"customer:{command.customer_id}", each) for each in decided]


def _of_subscription(subscription_id: SubscriptionId, decided: Sequence[Any]) -> list[Fact]:
    return [Fact(f"subscription:{subscription_id}", each) for each in decided]


def _issue(state: TenantState, seller: tenant.Registered, command: invoice.IssueInvoice, now: datetime) -> list[Fact]:
    """Issue an invoice: its number, the payer's coupons and credit, and what is to be collected."""
    known = state.invoices.get(command.invoice_id)
    if not isinstance(known, invoice.Awaited):
        return [Fact(f"invoice:{command.invoice_id}", each) for each in invoice.issue(known, command, _no_terms(now))]
    payer = state.customers[known.run.customer_id]
    assert isinstance(payer, customer.Active)
    serial = state.serial + 1
    policies = seller.settings.policies
    terms = invoice.Terms(
        seller=seller.settings.name,
        serial=serial,
        number=f"{policies.number_prefix}{serial:06d}",
        coupons=payer.coupons(),
        left=payer.left(),
        credits=payer.credits(known.run.currency),
        now=now,
        payment_terms_days=policies.payment_terms_days,
    )
    made: list[Fact] = []
    left = payer
    for event in invoice.issue(known, command, terms):
        made.append(Fact(f"invoice:{command.invoice_id}", event))
        if not isinstance(event, invoice.InvoiceFinalized):
            continue
        if event.total.minor < 0:
            credited = customer.CustomerCredited(
                customer_id=event.customer_id, amount=-event.total, reason=event.invoice_id
            )
            made.append(Fact(f"customer:{event.customer_id}", credited))
        if event.amount_due.minor:
            method = payer.payment_method
            due = payment.due(event.invoice_id, event.customer_id, event.amount_due, method, event.issued_at)
            made.append(Fact(f"payment:{command.invoice_id}", due))
        left = customer.invoiced(payer, {}, event.credit_applied, event.credits)
    broken = breakage.after(state, left, command.invoice_id, now)
    return [*made, *(Fact(f"customer:{each.customer_id}", each) for each in broken)]


def _no_terms(now: datetime) -> invoice.Terms:
    """Terms of an invoice that is not awaited: it is refused or already issued, so they are never used."""
    return invoice.Terms("", 0, "", (), {}, (), now, 0)


def _collect(
    state: TenantState, seller: tenant.Registered, command: payment.Command, now: datetime, wall: datetime
) -> list[Fact]:
    """Decide about a payment; a payment that succeeds also settles its invoice."""
    known = state.payments.get(command.invoice_id)
    method = customer.PaymentMethod()
    open_invoice = state.invoices.get(command.invoice_id)
    if isinstance(open_invoice, invoice.Open):
        payer = state.customers[open_invoice.customer_id]
        assert isinstance(payer, customer.Active)
        method = payer.payment_method
    decided = payment.decide(known, command, method, seller.settings.policies.retry_days, now, wall)
    made = [Fact(f"payment:{command.invoice_id}", each) for each in decided]
    if any(isinstance(each, payment.PaymentSucceeded) for each in decided):
        assert isinstance(open_invoice, invoice.Open)
        settled = invoice.paid(open_invoice, command.invoice_id, now)
        made.append(Fact(f"invoice:{command.invoice_id}", settled))
    return made
