"""What the invoice jobs in Postgres promise their workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from billing.envelope import EventEnvelope
from billing.ids import SubscriptionId
from billing.subscription import ActivateSubscription, SubscriptionActivated
from infra import postgres
from infra.settings import Settings
from schemas.codec import encode_event
from services import invoice_jobs
from services.invoice_jobs import InvoiceJobs
from tests.invoicing import airline
from tests.invoicing.airline import ManualClock
from tests.invoicing.handler import MemoryHandler
from tests.waiting import eventually

LEASE = timedelta(milliseconds=400)


class Rows:
    """Jobs, fed by a handler, and their table."""

    def __init__(self, pool: postgres.Pool) -> None:
        self.pool = pool
        self.jobs = InvoiceJobs(pool, LEASE)
        self.handler = MemoryHandler(ManualClock().now)
        self.handler.listeners.append(self._apply)

    def start(self, tenant: str, *names: str) -> None:
        if not self.handler.state(tenant).sequence:
            self.handler.must(tenant, airline.register())
            self.handler.must(tenant, airline.BOOK)
        for name in names:
            self.handler.must(tenant, airline.customer(name))
            self.handler.must(tenant, airline.subscription(name))
            self.handler.must(tenant, ActivateSubscription(subscription_id=SubscriptionId(f"sub-{name}")))

    def rows(self) -> list[tuple[str, str, str, str]]:
        with postgres.transaction(self.pool) as tx:
            return tx.execute(
                "SELECT tenant_id, customer_id, state, detail FROM app.invoice_job ORDER BY tenant_id, sequence"
            ).fetchall()  # type: ignore[return-value]

    def _apply(self, envelope: EventEnvelope) -> None:
        if isinstance(envelope.event, SubscriptionActivated):
            for _ in range(2):  # every event twice: the second time changes nothing
                with postgres.transaction(self.pool) as tx:
                    invoice_jobs.apply(tx, envelope, encode_event(envelope))


@pytest.fixture
def rows(fresh: Settings) -> Iterator[Rows]:
    with postgres.worker_pool(fresh, size=4) as pool:
        yield Rows(pool)


def test_jobs_of_a_tenant_are_claimed_together_in_the_order_of_the_log(rows: Rows) -> None:
    rows.start("one", "UA", "AA", "DL")
    claimed = rows.jobs.claim()
    assert [job.run.customer_id for job in claimed] == ["UA", "AA", "DL"]
    assert [job.sequence for job in claimed] == sorted(job.sequence for job in claimed)
    assert claimed[0].causation_id == f"one:{claimed[0].sequence}"
    assert rows.jobs.claim() == []


def test_a_tenant_is_worked_on_by_one_worker_and_different_tenants_by_several(rows: Rows) -> None:
    rows.start("one", "UA")
    rows.start("two", "AA")
    first, second = rows.jobs.claim(), rows.jobs.claim()
    assert {job.tenant_id for job in (*first, *second)} == {"one", "two"}
    rows.start("one", "DL")  # behind one that is being worked on
    assert rows.jobs.claim() == []
    rows.jobs.done(first)
    assert [job.tenant_id for job in rows.jobs.claim()] == ["one"]


def test_jobs_of_a_worker_that_died_are_claimed_when_its_lease_is_over(rows: Rows) -> None:
    rows.start("one", "UA")
    rows.jobs.claim()
    [job] = eventually(rows.jobs.claim)
    assert job.tries == 2


def test_jobs_given_back_rest_and_hold_back_those_behind_them(rows: Rows) -> None:
    rows.start("one", "UA", "AA")
    first, second = rows.jobs.claim()
    rows.jobs.release([first], LEASE, "usage is not counted yet")
    rows.jobs.done([second])
    assert rows.jobs.claim() == []
    rows.start("one", "DL")
    assert rows.jobs.claim() == []
    assert [job.run.customer_id for job in eventually(rows.jobs.claim)] == ["UA", "DL"]


def test_a_parked_job_holds_back_nobody_and_comes_back_when_unparked(rows: Rows) -> None:
    rows.start("one", "UA", "AA")
    first, _ = rows.jobs.claim()
    rows.jobs.park(first, "ValueError: no")
    with postgres.transaction(rows.pool) as tx:
        [parked] = invoice_jobs.parked(tx, "one")
        assert (parked.invoice_id, parked.reason) == (first.run.invoice_id, "ValueError: no")
        assert invoice_jobs.parked(tx, "two") == []
        assert invoice_jobs.backlog(tx).parked == 1
    assert [job.run.customer_id for job in eventually(rows.jobs.claim)] == ["AA"]
    with postgres.transaction(rows.pool) as tx:
        assert invoice_jobs.unpark(tx, "one", first.run.invoice_id) == 1
    assert eventually(rows.jobs.claim)[0].run.customer_id == "UA"


def test_what_a_worker_says_after_its_lease_does_not_count_unless_the_invoice_is_issued(rows: Rows) -> None:
    rows.start("one", "UA")
    late = rows.jobs.claim()
    eventually(rows.jobs.claim)
    rows.jobs.release(late, timedelta(0), "nonsense")
    rows.jobs.park(late[0], "nonsense")
    assert [state for _, _, state, _ in rows.rows()] == ["claimed"]
    rows.jobs.done(late)
    assert [state for _, _, state, _ in rows.rows()] == ["done"]


def test_many_workers_share_the_work_and_nobody_works_twice(rows: Rows) -> None:
    for n in range(6):
        rows.start(f"tenant-{n}", "UA", "AA")
    claimed: list[tuple[str, int]] = []
    jobs = InvoiceJobs(rows.pool, timedelta(minutes=1))

    def work() -> None:
        while batch := jobs.claim():
            claimed.extend((job.tenant_id, job.sequence) for job in batch)
            jobs.done(batch)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(claimed) == len(set(claimed)) == 12
