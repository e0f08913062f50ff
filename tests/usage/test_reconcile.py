"""The conservation count: it balances when all is well, and names what is missing when it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.catalog import PriceBookPublished
from billing.ids import TenantId
from billing.metering import UsageAmended, UsageVoided
from billing.money import Money
from billing.rated_line import LineKind
from infra import postgres
from infra.kafka import partition_for
from infra.settings import Settings
from projections import generation, usage
from services.invoice_jobs import Job
from services.invoicing import PostgresSnapshot, rate
from services.reconcile import Reconciliation, TenantCount, reconcile
from services.usage_recount import Recount
from tests.projections import log
from tests.projections.history import START, History
from tests.projections.usage_log import append, calls, count_log, cut_by_retention, measure_from_now_on, send
from tests.stack import Stack

IN_JANUARY = START + timedelta(days=3)
BEFORE = START - timedelta(days=3)
IN_FEBRUARY = START + timedelta(days=40)


class Books:
    """A quarter of one tenant: usage billed, unbilled, late, before the subscription, and sent twice."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = postgres.worker_pool(settings)
        past = History("acme").register().subscribe("ann")
        measure_from_now_on(settings, "acme", START)
        send(settings, "acme", calls("ann", 10, IN_JANUARY))
        send(settings, "acme", calls("ann", 4, IN_JANUARY))  # the same ids again
        send(settings, "acme", calls("ann", 3, BEFORE))
        cut = send(settings, "acme", calls("stranger", 2, IN_JANUARY))
        past.issue_awaited()
        january = past.close("ann", positions=cut)
        past.issue(january, 10)
        send(settings, "acme", calls("ann", 5, IN_JANUARY, prefix="late-"))
        send(settings, "acme", calls("ann", 6, IN_FEBRUARY))
        log.append(settings, past.events)
        count_log(settings, self.pool)
        self.past = past
        self.appended = len(past.events)

    def count(self) -> TenantCount:
        (found,) = self.report().tenants
        return found

    def report(self) -> Reconciliation:
        return reconcile(self.settings)

    def tamper(self, statement: str) -> None:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            assert tx.execute(statement).rowcount > 0


@pytest.fixture
def books(stack: Stack) -> Iterator[Books]:
    made = Books(stack.fresh(usage_partitions=2, billing_partitions=1))
    yield made
    made.pool.close()


def test_every_event_is_accounted_for(books: Books) -> None:
    assert books.count() == TenantCount(
        tenant="acme", received=30, counted=21, unmatched=5, duplicate=4, billed=10, unbilled=11
    )
    # The next invoice bills the late ones with its cut.
    end = send(books.settings, "acme", calls("ann", 1, IN_FEBRUARY, prefix="more-"))
    run = books.past.close("ann", positions=end)
    issued = books.past.issue(run, 7)
    log.append(books.settings, books.past.events[books.appended :])
    count_log(books.settings, books.pool)
    assert issued.run.late
    assert books.count() == TenantCount(
        tenant="acme", received=31, counted=22, unmatched=5, duplicate=4, billed=22, unbilled=0
    )


def test_voided_and_amended_events_are_accounted_for(books: Books) -> None:
    """Four of them are billed, one is not; an amended one counts once, where it is now."""
    billed, unbilled = calls("ann", 10, IN_JANUARY), calls("ann", 6, IN_FEBRUARY)
    tenant, partition = TenantId("acme"), partition_for("acme", books.settings.usage_partitions)
    taken_back = [*billed[:4], unbilled[0], *calls("stranger", 1, IN_JANUARY), *calls("nobody", 1, IN_JANUARY)]
    for each in [*taken_back, taken_back[0]]:
        append(
            books.settings,
            "acme",
            UsageVoided(tenant=tenant, source=each.source, id=each.id, reason="a test run"),
            [partition],
        )
    moved = replace(billed[5], time=IN_FEBRUARY)
    append(books.settings, "acme", UsageAmended(tenant=tenant, event=moved, reason="wrong month"), [partition])
    count_log(books.settings, books.pool)
    assert books.count() == TenantCount(
        tenant="acme", received=30, counted=21, unmatched=5, duplicate=4, billed=5, unbilled=11, voided=5
    )
    with recounted(books.settings, books.pool) as recount:
        assert recount.check() == []
    books.tamper("UPDATE usage_fate SET voided = voided + 1")
    assert any(each.startswith("voided one by one") for each in books.count().differences)


def test_what_is_voided_in_a_closed_period_is_given_back_by_the_next_invoice(books: Books) -> None:
    """Ten calls were billed in January and five came late; eight and all of the late ones are voided."""
    late = calls("ann", 5, IN_JANUARY, prefix="late-")
    partition = partition_for("acme", books.settings.usage_partitions)
    for each in [*late, *calls("ann", 8, IN_JANUARY)]:
        void = UsageVoided(tenant=TenantId("acme"), source=each.source, id=each.id, reason="a test run")
        append(books.settings, "acme", void, [partition])
    end = send(books.settings, "acme", calls("ann", 1, IN_FEBRUARY, prefix="more-"))
    count_log(books.settings, books.pool)
    run = books.past.close("ann", positions=end)

    class Known(PostgresSnapshot):
        def book(self, tenant: TenantId, version: int) -> PriceBookPublished:
            return next(each for each in books.past.state.catalog.books if each.version == version)

    with postgres.transaction(books.pool) as tx:
        generation.enter_all(tx)
        made = rate(Job(TenantId("acme"), 1, run, "test", "test", 1), Known(tx))
    told = {each.kind: (each.quantity, each.amount) for each in made.lines if each.charge == "calls"}
    assert told[LineKind.LATE_USAGE] == (Decimal(-8), Money(-4, "USD"))
    assert told[LineKind.USAGE][0] == 7
    assert books.past.send(made)[0].event.invoice_id == run.invoice_id


@contextmanager
def recounted(settings: Settings, pool: postgres.Pool) -> Iterator[Recount]:
    """The second count, of the whole log."""
    recount = Recount(settings, pool)
    try:
        while recount.step(2.0):
            pass
        yield recount
    finally:
        recount.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM usage_identity WHERE batch_index = 0 AND customer_id = 'ann'", "received, and accounted for"),
        ("UPDATE usage_fate SET received = received + 1, counted = counted + 1", "received, and received by"),
        ("UPDATE usage_fate SET duplicate = duplicate - 1, counted = counted + 1", "counted once, and counted by"),
        ("DELETE FROM usage_value WHERE batch_index = 1", "values, and values in hourly windows"),
        ("UPDATE usage_window SET events = events + 1", "values, and values in hourly windows"),
    ],
)
def test_what_is_missing_is_named(books: Books, statement: str, said: str) -> None:
    books.tamper(statement)
    assert any(each.startswith(said) for each in books.count().differences)


def test_what_retention_removed_is_said_and_is_no_difference(books: Books) -> None:
    partition = partition_for("acme", books.settings.usage_partitions)
    whole = books.count()
    cut_by_retention(books.settings, partition, 3)
    report = books.report()
    assert (report.balanced, report.tenants) == (True, [whole])
    (note,) = report.notes
    assert note.startswith(f"usage.events/{partition} begins at offset 3: events appended up to the end of hour")
    books.tamper("DELETE FROM usage_identity WHERE batch_index = 0 AND customer_id = 'ann'")
    assert any(each.startswith("received, and accounted for") for each in books.count().differences)


def test_a_partition_that_retention_emptied_is_said_to_be_unchecked(books: Books) -> None:
    partition = partition_for("acme", books.settings.usage_partitions)
    whole, end = books.count(), books.report().positions[partition]
    cut_by_retention(books.settings, partition, end)
    report = books.report()
    assert (report.balanced, report.tenants) == (True, [whole])
    (note,) = report.notes
    assert note.startswith(f"usage.events/{partition} holds nothing below {end}: ")
    send(books.settings, "acme", calls("ann", 2, IN_FEBRUARY, prefix="after-"))
    count_log(books.settings, books.pool)
    assert (books.count().received, books.report().balanced) == (32, True)


def test_the_command_prints_a_table_and_tells_by_its_exit_code(books: Books, stack: Stack) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", "reconcile", *arguments]
        env = stack.environment(books.settings)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "balanced" in done.stdout
    assert "acme" in done.stdout
    books.tamper("UPDATE usage_fate SET rejected = rejected + 1, received = received + 1")
    done = run("--json", "--tenant", "acme")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["balanced"] is False
    assert told["tenants"][0]["received"] == 30
