"""The loop that makes invoices: one per run, in order, and a job that cannot work holds up nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from billing.catalog import PriceBookPublished
from billing.envelope import EventEnvelope
from billing.ids import CustomerId, SubscriptionId, TenantId
from billing.invoice import InvoiceFinalized, IssueInvoice
from billing.invoicing import LatePeriod, Need, PartitionPosition
from billing.metering import Measured
from billing.money import Money
from billing.subscription import ActivateSubscription, CloseBillingPeriod
from services.invoice_jobs import LEASE, Job
from services.invoicing import Invoicer
from tests.invoicing.airline import FEBRUARY, MARCH, TENANT, ManualClock, add_airline, advance, open_airport
from tests.invoicing.handler import MemoryHandler


@dataclass(slots=True)
class Row:
    job: Job
    state: str
    not_before: datetime
    detail: str = ""


class MemoryJobs:
    """Invoice jobs by tenant and invoice; `test_jobs.py` holds the real ones to the same."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.rows: dict[tuple[str, str], Row] = {}

    def apply(self, envelope: EventEnvelope) -> None:
        run = getattr(envelope.event, "run", None)
        if run is None or isinstance(envelope.event, InvoiceFinalized):
            return
        meta = envelope.meta
        job = Job(meta.tenant, meta.sequence, run, meta.correlation_id, meta.event_id, 0)
        self.rows.setdefault((meta.tenant, run.invoice_id), Row(job, "waiting", self._clock.now()))

    def claim(self) -> list[Job]:
        now = self._clock.now()
        tenants: dict[str, list[Row]] = {}
        for row in sorted(self.rows.values(), key=lambda each: each.job.sequence):
            if row.state in ("waiting", "claimed"):
                tenants.setdefault(row.job.tenant_id, []).append(row)
        ready = [rows for rows in tenants.values() if rows[0].not_before <= now]
        if not ready:
            return []
        for row in ready[0]:
            row.job = replace(row.job, tries=row.job.tries + 1)
            row.state, row.not_before = "claimed", now + LEASE
        return [row.job for row in ready[0]]

    def release(self, jobs: Sequence[Job], pause: timedelta, detail: str) -> None:
        for row in self._held(jobs):
            row.state, row.not_before, row.detail = "waiting", self._clock.now() + pause, detail

    def done(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.rows[job.tenant_id, job.run.invoice_id].state = "done"

    def park(self, job: Job, detail: str) -> None:
        for row in self._held([job]):
            row.state, row.detail = "parked", detail

    def states(self) -> list[str]:
        return [row.state for row in self.rows.values()]

    def _held(self, jobs: Sequence[Job]) -> list[Row]:
        rows = [(self.rows[job.tenant_id, job.run.invoice_id], job) for job in jobs]
        return [row for row, job in rows if row.state == "claimed" and row.job.tries == job.tries]


class World:
    """Handler, jobs, projections and invoicer around one clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.handler = MemoryHandler(self.clock.now)
        self.jobs = MemoryJobs(self.clock)
        self.handler.listeners.append(self.jobs.apply)
        self.counted_up_to = 0
        self.projected = True
        self.broken: set[str] = set()
        self.departures = Decimal(3)
        self.invoicer = self.new_invoicer()
        open_airport(self.handler)

    def new_invoicer(self) -> Invoicer:
        return Invoicer(self.jobs, self.snapshot, self.handler, result_s=0.01)

    @contextmanager
    def snapshot(self) -> Iterator[World]:
        yield self

    def passed(self, tenant: TenantId, positions: Sequence[PartitionPosition]) -> bool:
        return all(self.counted_up_to >= each.offset for each in positions)

    def book(self, tenant: TenantId, version: int) -> PriceBookPublished:
        if not self.projected:
            raise LookupError(f"price book {version} is not projected yet")
        return self.handler.state(tenant).catalog.books[version - 1]

    def has_late(self, job: Job, closed: LatePeriod, *, earlier: bool) -> bool:
        return False

    def quantities(
        self, tenant: TenantId, customer: CustomerId, wanted: Sequence[Need], one_by_one: Collection[str]
    ) -> Mapping[Need, Measured]:
        if customer in self.broken:
            raise ArithmeticError("a meter that cannot be read")
        return {need: Measured(self.departures) for need in wanted}

    def start(self, *names: str) -> None:
        for name in names:
            add_airline(self.handler, name)
            self.handler.must(TENANT, ActivateSubscription(subscription_id=SubscriptionId(f"sub-{name}")))

    def close(self, name: str, end: datetime, offset: int = 0) -> None:
        positions = (PartitionPosition(partition=0, offset=offset),)
        self.handler.must(
            TENANT,
            CloseBillingPeriod(subscription_id=SubscriptionId(f"sub-{name}"), period_end=end, positions=positions),
        )

    def run(self, steps: int = 20) -> None:
        for _ in range(steps):
            if not self.invoicer.step():
                self.clock.sleep(5)

    def issued(self) -> list[InvoiceFinalized]:
        return self.handler.events(InvoiceFinalized)


@pytest.fixture
def world() -> World:
    return World()


def test_a_period_becomes_one_invoice_with_its_usage_and_the_next_fee(world: World) -> None:
    world.start("UA")
    advance(world.handler, FEBRUARY)
    world.close("UA", FEBRUARY)
    world.run()
    first, second = world.issued()
    assert first.total == Money(50000, "USD")
    assert second.total == Money(50000 + 3 * 1200, "USD")
    assert world.jobs.states() == ["done", "done"]


def test_numbers_follow_the_order_of_closing(world: World) -> None:
    names = [f"A{n}" for n in range(8)]
    world.start(*names)
    advance(world.handler, FEBRUARY)
    for name in reversed(names):
        world.close(name, FEBRUARY)
    world.run()
    assert [each.customer_id for each in world.issued()] == names + names[::-1]
    assert [each.serial for each in world.issued()] == list(range(1, 17))


def test_an_invoice_waits_until_the_usage_below_its_cut_is_counted(world: World) -> None:
    world.start("UA")
    world.run()
    advance(world.handler, FEBRUARY)
    world.close("UA", FEBRUARY, offset=500)
    world.counted_up_to = 499
    world.run()
    assert len(world.issued()) == 1
    assert "waiting" in world.jobs.states()
    world.counted_up_to = 500
    world.run()
    assert len(world.issued()) == 2


def test_one_that_waits_is_not_overtaken_by_a_later_one_of_its_tenant(world: World) -> None:
    world.start("UA", "AA")
    world.run()
    advance(world.handler, FEBRUARY)
    world.close("UA", FEBRUARY, offset=500)
    world.close("AA", FEBRUARY, offset=0)
    world.run()
    assert len(world.issued()) == 2
    world.counted_up_to = 500
    world.run()
    assert [each.customer_id for each in world.issued()[2:]] == ["UA", "AA"]


def test_a_price_book_that_is_not_projected_yet_is_waited_for(world: World) -> None:
    world.projected = False
    world.start("UA")
    world.run()
    assert world.issued() == []
    world.projected = True
    world.run()
    assert len(world.issued()) == 1


def test_a_job_that_cannot_be_rated_is_parked_with_its_reason_and_the_others_go_on(world: World) -> None:
    world.start("UA", "AA", "DL")
    world.run()
    advance(world.handler, FEBRUARY)
    world.broken = {"AA"}
    for name in ("UA", "AA", "DL"):
        world.close(name, FEBRUARY)
    world.run()
    assert [each.customer_id for each in world.issued()[3:]] == ["UA", "DL"]
    [parked] = [row for row in world.jobs.rows.values() if row.state == "parked"]
    assert parked.detail == "ArithmeticError: a meter that cannot be read"
    world.broken = set()
    parked.state = "waiting"  # unpark
    world.run()
    assert world.issued()[-1].customer_id == "AA"


def test_a_refused_invoice_is_parked(world: World) -> None:
    world.start("UA")
    [row] = world.jobs.rows.values()
    row.job = replace(row.job, run=replace(row.job.run, invoice_id="inv_unknown"))
    world.jobs.rows = {(TENANT, "inv_unknown"): row}
    world.run()
    assert world.jobs.states() == ["parked"]
    assert row.detail.startswith("unknown_invoice: ")


def test_a_run_for_another_rating_engine_is_parked(world: World) -> None:
    world.start("UA")
    [row] = world.jobs.rows.values()
    row.job = replace(row.job, run=replace(row.job.run, rating_engine="0"))
    world.run()
    assert world.jobs.states() == ["parked"]


@pytest.mark.parametrize("lost", ["lose_before", "lose_after"])
def test_a_lost_answer_leads_to_no_second_invoice(world: World, lost: str) -> None:
    world.start("UA", "AA", "DL")
    setattr(world.handler, lost, 2)
    world.run()
    assert sorted(each.customer_id for each in world.issued()) == ["AA", "DL", "UA"]
    assert world.jobs.states() == ["done"] * 3


def test_a_job_whose_worker_died_is_done_by_the_next(world: World) -> None:
    world.start("UA")
    assert len(world.jobs.claim()) == 1  # and dies
    world.run(3)
    assert world.issued() == []
    world.clock.sleep(LEASE.total_seconds())
    world.run()
    assert len(world.issued()) == 1


def test_two_workers_on_one_job_issue_one_invoice(world: World) -> None:
    world.start("UA")
    paused = world.jobs.claim()
    world.clock.sleep(LEASE.total_seconds() + 1)
    world.run()
    other = world.new_invoicer()
    rated, left, _ = other._rate(paused)
    assert not left
    other._issue(rated)
    assert len(world.issued()) == 1
    assert world.jobs.states() == ["done"]


def test_rating_again_gives_the_same_command_so_that_its_key_recognises_it(world: World) -> None:
    world.start("UA")
    advance(world.handler, FEBRUARY)
    world.close("UA", FEBRUARY)
    advance(world.handler, MARCH)
    world.handler.lose_after = 10
    world.run()
    sent: dict[str, set[IssueInvoice]] = {}
    for key, command in world.handler.asked:
        if isinstance(command, IssueInvoice):
            sent.setdefault(key, set()).add(command)
    assert all(len(commands) == 1 for commands in sent.values())
    assert len(world.issued()) == 2
