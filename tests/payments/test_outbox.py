"""What the payment outbox promises its workers: the fake in memory and the real one in Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest

from billing.customer import AttachPaymentMethod, PaymentMethod, Provider
from billing.envelope import EventEnvelope
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.invoice import IssueInvoice
from billing.invoicing import lines
from billing.money import Money
from billing.payment import (
    DeclineKind,
    RecordManualPayment,
    RecordPaymentDecline,
    RecordPaymentSuccess,
    StartPaymentAttempt,
)
from billing.subscription import ActivateSubscription
from infra import postgres
from projections import generation, tenants
from services import payment_outbox
from services.payment_outbox import PaymentOutbox, PaymentTask
from services.payment_worker import Outbox
from tests.invoicing.airline import JANUARY, TENANT, ManualClock, add_airline, advance, open_airport
from tests.invoicing.handler import MemoryHandler
from tests.payments.memory_outbox import MemoryOutbox
from tests.waiting import eventually

LEASE = timedelta(milliseconds=400)
NOW = timedelta(0)


class Rows:
    """An outbox, fed by a handler, and the way time passes for it."""

    def __init__(
        self, outbox: Outbox, handler: MemoryHandler, clock: ManualClock, pass_time: Callable[[timedelta], object]
    ) -> None:
        self.outbox = outbox
        self.handler = handler
        self.clock = clock
        self.pass_time = pass_time
        open_airport(handler)

    def invoice(self, name: str = "UA", **more: Provider) -> InvoiceId:
        add_airline(self.handler, name, **more)
        self.handler.must(TENANT, ActivateSubscription(subscription_id=SubscriptionId(f"sub-{name}")))
        run = self.handler.log[-1].event.run
        books = {1: self.handler.state(TENANT).catalog.books[0]}
        self.handler.must(TENANT, IssueInvoice(invoice_id=run.invoice_id, lines=lines(run, books, (), {})))
        return InvoiceId(run.invoice_id)

    def take(self) -> PaymentTask:
        task = self.outbox.take()
        assert task is not None
        return task


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.stack)])
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    clock = ManualClock()
    handler = MemoryHandler(clock.now)
    if request.param == "memory":
        memory = MemoryOutbox(clock, lambda name: handler.state(name).tenant.now(clock.at), LEASE)  # type: ignore[union-attr]
        handler.listeners.append(memory.apply)
        yield Rows(memory, handler, clock, lambda span: clock.sleep(span.total_seconds()))
        return
    with postgres.worker_pool(request.getfixturevalue("fresh")) as pool:

        def apply(envelope: EventEnvelope) -> None:
            for _ in range(2):  # every event twice: the second time changes nothing
                with postgres.transaction(pool) as tx:
                    payment_outbox.apply(tx, envelope, b"")
            with postgres.transaction(pool) as tx:
                generation.enter(tx, "billing", writes=True)
                tenants.apply(tx, envelope)

        def now() -> datetime:
            with postgres.transaction(pool) as tx:
                row = tx.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            at: datetime = row[0]
            return at

        def pass_time(span: timedelta) -> None:
            until = now() + span
            eventually(lambda: now() >= until)

        handler.listeners.append(apply)
        yield Rows(PaymentOutbox(pool, LEASE), handler, clock, pass_time)


def start(rows: Rows, invoice: InvoiceId, attempt: int = 1) -> None:
    rows.handler.must(TENANT, StartPaymentAttempt(invoice_id=invoice, attempt=attempt))


def decline(rows: Rows, invoice: InvoiceId, attempt: int = 1, kind: DeclineKind = DeclineKind.SOFT) -> None:
    rows.handler.must(
        TENANT, RecordPaymentDecline(invoice_id=invoice, attempt=attempt, kind=kind, code="insufficient_funds")
    )


def test_a_due_attempt_is_taken_by_one_worker(rows: Rows) -> None:
    invoice = rows.invoice()
    task = rows.take()
    assert (task.tenant_id, task.invoice_id, task.attempt, task.customer_id) == (TENANT, invoice, 1, "UA")
    assert (task.provider, task.tries, task.started) == (Provider.SANDBOX, 1, None)
    assert rows.outbox.take() is None


def test_the_attempt_of_a_worker_that_died_is_taken_when_its_lease_is_over(rows: Rows) -> None:
    rows.invoice()
    rows.take()
    rows.pass_time(LEASE * 1.5)
    assert rows.take().tries == 2


def test_an_attempt_that_began_carries_what_the_log_says_about_it(rows: Rows) -> None:
    invoice = rows.invoice()
    rows.take()
    start(rows, invoice)
    task = rows.take()
    assert task.started is not None
    assert (task.tries, task.started.key, task.started.token) == (1, f"{invoice}-attempt-1", "pm_card_visa")
    assert task.started.amount == Money(50000, "USD")
    assert task.started.started_at == rows.clock.at


def test_an_attempt_given_back_rests_for_its_pause(rows: Rows) -> None:
    rows.invoice()
    rows.outbox.again(rows.take(), LEASE / 2, "later")
    assert rows.outbox.take() is None
    rows.pass_time(LEASE)
    assert rows.outbox.take() is not None


def test_what_a_worker_says_after_its_lease_does_not_count(rows: Rows) -> None:
    rows.invoice()
    late = rows.take()
    rows.pass_time(LEASE * 1.5)
    rows.take()
    rows.outbox.again(late, NOW)
    rows.outbox.park(late, "nonsense")
    assert rows.outbox.take() is None
    rows.pass_time(LEASE * 1.5)
    assert rows.outbox.take() is not None


def test_what_a_worker_says_about_a_start_does_not_touch_the_attempt_that_began(rows: Rows) -> None:
    invoice = rows.invoice()
    starting = rows.take()
    start(rows, invoice)
    rows.outbox.again(starting, timedelta(hours=1))
    rows.outbox.park(starting, "nonsense")
    assert rows.outbox.take() is not None


def test_a_parked_attempt_is_not_taken(rows: Rows) -> None:
    rows.invoice()
    rows.outbox.park(rows.take(), "a person has to look")
    rows.pass_time(LEASE * 1.5)
    assert rows.outbox.take() is None


def test_a_retry_is_due_by_the_tenants_clock(rows: Rows) -> None:
    invoice = rows.invoice()
    rows.take()
    start(rows, invoice)
    decline(rows, invoice)
    rows.pass_time(LEASE)
    assert rows.outbox.take() is None
    advance(rows.handler, JANUARY + timedelta(days=1) - timedelta(microseconds=1))
    assert rows.outbox.take() is None
    advance(rows.handler, JANUARY + timedelta(days=1))
    assert rows.take().attempt == 2


@pytest.mark.parametrize("end", ["collected", "exhausted", "paid outside"])
def test_nothing_is_left_to_do_when_the_log_says_that_it_is_over(rows: Rows, end: str) -> None:
    invoice = rows.invoice()
    rows.take()
    if end == "paid outside":
        rows.handler.must(TENANT, RecordManualPayment(invoice_id=invoice, reference="statement 7"))
    else:
        start(rows, invoice)
    if end == "collected":
        due = Money(50000, "USD")
        rows.handler.must(TENANT, RecordPaymentSuccess(invoice_id=invoice, attempt=1, amount=due, reference="pi_1"))
    if end == "exhausted":
        decline(rows, invoice, kind=DeclineKind.HARD)
    advance(rows.handler, JANUARY + timedelta(days=100))
    rows.pass_time(LEASE * 1.5)
    assert rows.outbox.take() is None


def test_who_pays_by_transfer_is_left_alone_until_a_card_is_attached(rows: Rows) -> None:
    rows.invoice(provider=Provider.MANUAL)
    assert rows.outbox.take() is None
    card = PaymentMethod(provider=Provider.SANDBOX, token="pm_card_visa")
    rows.handler.must(TENANT, AttachPaymentMethod(customer_id=CustomerId("UA"), payment_method=card))
    assert rows.take().provider is Provider.SANDBOX
    rows.handler.must(TENANT, AttachPaymentMethod(customer_id=CustomerId("UA"), payment_method=PaymentMethod()))
    rows.pass_time(LEASE * 1.5)
    assert rows.outbox.take() is None
