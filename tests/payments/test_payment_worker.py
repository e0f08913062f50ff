"""The loop that collects: one charge per invoice, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from billing.customer import AttachPaymentMethod, PaymentMethod, Provider
from billing.ids import CustomerId, InvoiceId
from billing.invoice import InvoicePaid, IssueInvoice
from billing.payment import (
    DeclineKind,
    DunningExhausted,
    PaymentAttemptStarted,
    PaymentDeclined,
    PaymentDue,
    PaymentOutcomeUnknown,
    PaymentSucceeded,
    RecordManualPayment,
)
from billing.subscription import ActivateSubscription
from infra.collection import Collected, Collection, Declined
from infra.errors import Misconfigured, Poison
from infra.sandbox_book import Book
from services.payment_worker import KEY_AGE_MAX, PaymentWorker
from tests.invoicing import airline
from tests.invoicing.airline import JANUARY, TENANT, ManualClock, add_airline, advance, open_airport
from tests.invoicing.handler import MemoryHandler
from tests.payments.book_gateway import BookGateway
from tests.payments.memory_outbox import MemoryOutbox

HALF_HOUR = timedelta(minutes=30)


class World:
    """Handler, outbox, provider and worker around one clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.handler = MemoryHandler(self.clock.now)
        self.outbox = MemoryOutbox(self.clock, self._tenant_now)
        self.handler.listeners.append(self.outbox.apply)
        self.provider = BookGateway(Book(folder / "book.sqlite3", self.clock.now))
        self.worker = self.new_worker()
        open_airport(self.handler)

    def new_worker(self) -> PaymentWorker:
        return PaymentWorker(self.outbox, self.handler, {Provider.SANDBOX: self.provider}, self.clock)

    def invoice(self, name: str, token: str = "pm_card_visa", **more: Provider) -> InvoiceId:
        """An airline and its first invoice, which is due at once."""
        add_airline(self.handler, name, token, **more)
        activated = f"sub-{name}"
        self.handler.must(TENANT, ActivateSubscription(subscription_id=activated))  # type: ignore[arg-type]
        run = self.handler.log[-1].event.run
        from billing.invoicing import lines

        books = {1: self.handler.state(TENANT).catalog.books[0]}
        self.handler.must(TENANT, IssueInvoice(invoice_id=run.invoice_id, lines=lines(run, books, (), {})))
        return InvoiceId(run.invoice_id)

    def run(self, within: timedelta = HALF_HOUR) -> None:
        """Work for a while by the real clock; pauses pass at once."""
        until = self.clock.at + within
        while self.clock.at < until:
            if not self.worker.step():
                self.clock.sleep(5)

    def charges(self) -> list[str]:
        return [each["metadata"]["invoice_id"] for each in self.provider.book.charges()]

    def count(self, kind: type) -> int:
        return len(self.handler.events(kind))

    def _tenant_now(self, tenant: str) -> object:
        return self.handler.state(tenant).tenant.now(self.clock.at)  # type: ignore[union-attr]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.provider.book.close()


def test_a_due_invoice_is_charged_once_and_paid(world: World) -> None:
    invoice = world.invoice("UA")
    world.run()
    assert world.charges() == [invoice]
    assert world.count(InvoicePaid) == 1
    assert world.outbox.states() == ["closed"]


def test_the_provider_is_asked_only_after_the_log_says_that_the_attempt_began(world: World) -> None:
    world.invoice("UA")
    world.handler.lose_before = 1
    assert world.worker.step()
    assert world.provider.posts == []
    assert world.count(PaymentAttemptStarted) == 0
    world.run()
    assert len(world.charges()) == 1


def test_a_soft_decline_is_retried_when_the_tenants_clock_says_so(world: World) -> None:
    world.invoice("F9", "pm_card_declinesOnceInsufficientFunds")
    world.run()
    assert world.charges() == []
    assert world.count(PaymentDeclined) == 1
    world.run(timedelta(days=5))  # real time does not make a retry due
    assert world.charges() == []
    advance(world.handler, JANUARY + timedelta(days=1))
    world.run()
    assert len(world.charges()) == 1
    assert world.count(InvoicePaid) == 1


def test_a_hard_decline_ends_dunning_at_once(world: World) -> None:
    world.invoice("UA", "pm_card_chargeDeclinedExpiredCard")
    world.run()
    assert world.count(DunningExhausted) == 1
    assert len(world.provider.posts) == 1
    assert world.outbox.states() == ["closed"]


def test_retries_end_when_the_schedule_is_used_up(world: World) -> None:
    world.invoice("UA", "pm_card_chargeDeclinedInsufficientFunds")
    for day in range(10):
        advance(world.handler, JANUARY + timedelta(days=day + 1))
        world.run()
    assert [each.retry_at for each in world.handler.events(PaymentDeclined)][-1] is None
    assert len(set(world.provider.posts)) == 3  # the first, and one after 1 and 3 days
    assert world.count(DunningExhausted) == 1


@pytest.mark.parametrize("fault", ["before", "after", "500_charged"])
def test_a_lost_answer_is_recorded_as_unknown_and_resolved_by_asking(world: World, fault: str) -> None:
    invoice = world.invoice("UA")
    world.provider.faults = [fault]
    world.run()
    assert world.count(PaymentOutcomeUnknown) == 1
    assert world.charges() == [invoice]
    assert set(world.provider.posts) == {f"{invoice}-attempt-1"}
    assert world.count(PaymentSucceeded) == 1


def test_a_server_error_that_stays_is_a_decline_after_a_day_and_the_next_attempt_pays(world: World) -> None:
    invoice = world.invoice("UA")
    world.provider.faults = ["500"]
    world.run(timedelta(hours=22))
    assert (world.charges(), world.count(PaymentDeclined)) == ([], 0)
    world.run(timedelta(hours=2))
    assert [each.code for each in world.handler.events(PaymentDeclined)] == ["not_received"]
    advance(world.handler, JANUARY + timedelta(days=1))
    world.run()
    assert world.charges() == [invoice]


def test_a_key_older_than_23_hours_is_looked_up_and_never_posted(world: World) -> None:
    invoice = world.invoice("UA")
    world.provider.faults = ["after"]
    while not world.count(PaymentOutcomeUnknown):
        world.worker.step()
    posted = len(world.provider.posts)
    world.clock.sleep(25 * 3600)  # the worker was away; the provider has forgotten the key
    world.run()
    assert len(world.provider.posts) == posted
    assert world.charges() == [invoice]
    assert world.count(PaymentSucceeded) == 1


def test_the_key_is_still_posted_just_before_its_age_limit(world: World) -> None:
    invoice = world.invoice("UA")
    world.provider.faults = ["before"]
    while not world.count(PaymentOutcomeUnknown):
        world.worker.step()
    world.clock.sleep((KEY_AGE_MAX - timedelta(minutes=1)).total_seconds())
    world.run(timedelta(seconds=30))
    assert world.charges() == [invoice]


@pytest.mark.parametrize("lost", range(4))
def test_lost_answers_of_the_handler_change_nothing(world: World, lost: int) -> None:
    invoice = world.invoice("UA")
    for _ in range(lost):
        world.worker.step()
    world.handler.lose_after = 2
    world.run()
    assert world.charges() == [invoice]
    assert (world.count(PaymentAttemptStarted), world.count(PaymentSucceeded)) == (1, 1)


def test_two_workers_on_one_row_charge_once(world: World) -> None:
    """A worker that was paused beyond its lease goes on beside the one that took over."""
    invoice = world.invoice("UA")
    world.worker.step()
    paused = world.worker.take()
    assert paused is not None
    world.clock.sleep(120)
    world.run()
    world.worker.work(paused)
    assert world.charges() == [invoice]
    assert world.count(PaymentSucceeded) == 1


def test_an_outcome_recorded_before_a_crash_is_not_recorded_twice(world: World) -> None:
    invoice = world.invoice("UA")
    world.handler.listeners.clear()  # the outbox writer is down: rows stay as they are
    world.worker.step()
    world.clock.sleep(120)
    assert world.count(PaymentAttemptStarted) == 1
    world.run()
    assert world.charges() == []
    for each in world.handler.log:
        world.outbox.apply(each)
    world.run()
    for each in world.handler.log:
        world.outbox.apply(each)
    assert world.charges() == [invoice]
    assert world.count(PaymentSucceeded) == 1
    assert world.outbox.states() == ["closed"]


def test_a_manual_payment_waits_for_its_record(world: World) -> None:
    invoice = world.invoice("UA", provider=Provider.MANUAL)
    world.run()
    assert world.count(PaymentAttemptStarted) == 0
    world.handler.must(TENANT, RecordManualPayment(invoice_id=invoice, reference="statement 7"))
    world.run()
    assert world.outbox.states() == ["closed"]


def test_a_card_attached_later_collects_what_waited_for_a_transfer(world: World) -> None:
    invoice = world.invoice("UA", provider=Provider.MANUAL)
    world.run()
    card = PaymentMethod(provider=Provider.SANDBOX, token="pm_card_visa")
    world.handler.must(TENANT, AttachPaymentMethod(customer_id=CustomerId("UA"), payment_method=card))
    world.run()
    assert world.charges() == [invoice]


def test_an_invoice_paid_outside_between_two_attempts_is_not_charged(world: World) -> None:
    invoice = world.invoice("UA", "pm_card_chargeDeclinedInsufficientFunds")
    world.run()
    world.handler.must(TENANT, RecordManualPayment(invoice_id=invoice, reference="statement 7"))
    advance(world.handler, JANUARY + timedelta(days=30))
    world.run()
    assert len(world.provider.posts) == 1


def test_a_refused_request_is_parked_and_holds_up_nobody(world: World) -> None:
    class Refusing(BookGateway):
        def collect(self, wanted: Collection) -> Collected | Declined:
            if wanted.customer_id == "UA":
                raise Poison("the key was used with other parameters")
            return super().collect(wanted)

    world.provider = Refusing(world.provider.book)
    world.worker = world.new_worker()
    world.invoice("UA")
    other = world.invoice("AA")
    world.run()
    assert world.charges() == [other]
    assert sorted(world.outbox.states()) == ["closed", "parked"]


def test_a_provider_that_refuses_our_key_stops_nobody_else_and_loses_nothing(world: World) -> None:
    class Locked(BookGateway):
        locked = True

        def collect(self, wanted: Collection) -> Collected | Declined:
            if self.locked:
                raise Misconfigured("401")
            return super().collect(wanted)

    world.provider = locked = Locked(world.provider.book)
    world.worker = world.new_worker()
    invoice = world.invoice("UA")
    world.run()
    assert world.charges() == []
    locked.locked = False
    world.run()
    assert world.charges() == [invoice]


def test_a_provider_that_collects_another_amount_is_noticed(world: World) -> None:
    class Greedy(BookGateway):
        def collect(self, wanted: Collection) -> Collected | Declined:
            outcome = super().collect(wanted)
            assert isinstance(outcome, Collected)
            return Collected(reference=outcome.reference, amount=outcome.amount + outcome.amount)

    world.provider = Greedy(world.provider.book)
    world.worker = world.new_worker()
    world.invoice("UA")
    world.run()
    assert world.outbox.states() == ["parked"]
    assert world.count(PaymentSucceeded) == 0


def test_no_provider_is_asked_when_none_is_configured(world: World) -> None:
    world.invoice("UA", provider=Provider.STRIPE)
    world.run()
    assert world.count(PaymentAttemptStarted) == 0
    assert world.outbox.states() == ["due"]


def test_decline_kinds_reach_the_log(world: World) -> None:
    world.invoice("UA", "pm_card_chargeDeclinedLostCard")
    world.run()
    [declined] = world.handler.events(PaymentDeclined)
    assert (declined.kind, declined.code) == (DeclineKind.HARD, "lost_card")
    assert world.count(PaymentDue) == 1
    assert airline.BOOK.plans[0].currency == "USD"
