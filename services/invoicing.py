"""From a closed period to an issued invoice.

Consumes  billing.events, group `invoicing`: SubscriptionActivated, BillingPeriodClosed; projections of price books
          and usage
Produces  IssueInvoice
Owns      app.invoice_job and its own place in app.consumer_offset; never rebuilt
Repeats   safely because rows and place are one Postgres transaction, an invoice is a function of the log up to its cut,
          and its command carries the invoice's id as key

    event --> job waiting --> claimed when nobody works on its tenant --> usage passed the cut? --> rated in one
              snapshot --> IssueInvoice --> done
                             +--> refused, or cannot be rated --> parked, and the next one goes on
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as WaitedTooLong
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

from billing.catalog import PriceBookPublished
from billing.envelope import CommandResult, Outcome
from billing.ids import CustomerId, TenantId
from billing.invoice import IssueInvoice
from billing.invoicing import (
    RATING_ENGINES,
    LatePeriod,
    Need,
    PartitionPosition,
    carries_over,
    lines,
    needs,
    one_by_one,
    versions,
)
from billing.metering import Measured
from infra import postgres, telemetry
from infra.errors import Conflict, Transient
from infra.failpoints import failpoint
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import watched
from projections import generation, price_books, usage_read
from services import invoice_jobs
from services.commands import CommandClient
from services.event_intake import EventIntake, consumer
from services.invoice_jobs import InvoiceJobs, Job

log = telemetry.logger("services.invoicing")

NAME: Final = "invoicing"
AWAIT_USAGE: Final = timedelta(milliseconds=200)  # the order of the aggregator's micro-batches
PAUSE: Final = timedelta(seconds=1)
RESULT_S: Final = 20.0  # far below the lease

_ISSUED = telemetry.counter("invoice_jobs_total", "Invoice jobs, by end.", "end")
_OLDEST = telemetry.gauge("invoice_jobs_oldest_seconds", "Age of the oldest invoice that is not issued yet.")
_PARKED = telemetry.gauge("invoice_jobs_parked", "Invoices that wait for a person.")


class Snapshot(Protocol):
    """Prices and usage as of one moment."""

    def passed(self, tenant: TenantId, positions: Sequence[PartitionPosition]) -> bool:
        """Whether all usage below `positions` has been counted, by the definitions that count there."""

    def book(self, tenant: TenantId, version: int) -> PriceBookPublished:
        """A version of the price book. Raises `LookupError`: it is not projected yet."""

    def has_late(self, job: Job, closed: LatePeriod, *, earlier: bool) -> bool:
        """Whether usage of a closed period, or `earlier` usage, arrived since that was billed."""

    def quantities(
        self, tenant: TenantId, customer: CustomerId, wanted: Sequence[Need], one_by_one: Collection[str]
    ) -> Mapping[Need, Measured]:
        """What each meter measured; of the meters `one_by_one` the value of each event, too."""


class Jobs(Protocol):
    """The jobs to work on. Any call may raise `Transient` or `Conflict`: jobs come back by themselves."""

    def claim(self) -> list[Job]:
        """The oldest open jobs of one tenant, in order; empty if there is nothing to do."""

    def release(self, jobs: Sequence[Job], pause: timedelta, detail: str) -> None:
        """Give them back, to be claimed again after `pause`."""

    def done(self, jobs: Sequence[Job]) -> None:
        """Their invoices are in the log."""

    def park(self, job: Job, detail: str) -> None:
        """Set it aside until a person looks at it."""


class Commands(Protocol):
    """Asks the command handler."""

    def ask(
        self, tenant: str, command: Any, *, key: str, actor: str, correlation_id: str, causation_id: str
    ) -> Future[CommandResult]:
        """The result, once it is there; commands are decided in the order of the calls."""


class Snapshots(Protocol):
    """Opens snapshots."""

    def __call__(self) -> AbstractContextManager[Snapshot]: ...


class NotReady(Exception):
    """The job has to wait; says for what."""


class Invoicer:
    """Makes the invoices of one tenant at a time. Several may run beside each other, here and elsewhere."""

    def __init__(self, jobs: Jobs, snapshots: Snapshots, commands: Commands, result_s: float = RESULT_S) -> None:
        self._jobs = jobs
        self._snapshots = snapshots
        self._commands = commands
        self._result_s = result_s

    def step(self) -> bool:
        """Work on the oldest jobs of one tenant; False if nobody has any to do.

        Raises:
            Transient, Conflict: Postgres is away. What was claimed comes back when its lease is over.
        """
        claimed = self._jobs.claim()
        if not claimed:
            return False
        failpoint("invoicing.after_claim")
        rated, left, reason = self._rate(claimed)
        failpoint("invoicing.after_rating")
        # Given back before the first command: the next one may wait for these, nobody waits for those.
        self._jobs.release(left, AWAIT_USAGE, reason)
        self._issue(rated)
        return True

    def _rate(self, claimed: Sequence[Job]) -> tuple[list[tuple[Job, IssueInvoice]], Sequence[Job], str]:
        """The commands of all jobs up to the first that has to wait, those left, and what for.

        In order, so that a tenant's numbers follow its closings; a job that cannot be rated is parked and skipped.
        """
        rated: list[tuple[Job, IssueInvoice]] = []
        with self._snapshots() as snapshot:
            for index, job in enumerate(claimed):
                try:
                    rated.append((job, rate(job, snapshot)))
                except NotReady as e:
                    return rated, claimed[index:], str(e)
                except (Transient, Conflict):
                    raise
                except Exception as e:  # a bug or a broken input: it fails alone, and a person is told why
                    log.exception("invoice cannot be rated", tenant=job.tenant_id, invoice_id=job.run.invoice_id)
                    self._park(job, f"{type(e).__name__}: {e}")
        return rated, [], ""

    def _issue(self, rated: Sequence[tuple[Job, IssueInvoice]]) -> None:
        asked: list[tuple[Job, Future[CommandResult]]] = []
        try:
            for job, command in rated:
                result = self._commands.ask(
                    job.tenant_id,
                    command,
                    key=f"invoicing:{job.run.invoice_id}",
                    actor=NAME,
                    correlation_id=job.correlation_id,
                    causation_id=job.causation_id,
                )
                asked.append((job, result))
        except Transient as e:
            unsent = [job for job, _ in rated[len(asked) :]]
            self._jobs.release(unsent, PAUSE, str(e))
        failpoint("invoicing.after_send")
        wait([result for _, result in asked], timeout=self._result_s)  # all together: the lease is one, too
        done = [job for job, result in asked if self._issued(job, result)]
        self._jobs.done(done)
        _ISSUED.labels("done").inc(len(done))

    def _issued(self, job: Job, result: Future[CommandResult]) -> bool:
        """Whether the job's invoice is in the log; if not, it is parked or given back."""
        try:
            answer = result.result(0)
        except (Transient, WaitedTooLong, CancelledError) as e:
            result.cancel()
            self._jobs.release([job], PAUSE, f"no result in time: {e}")
            return False
        except Exception as e:  # the command itself cannot be sent: too large, or a value that the log cannot hold
            log.exception("invoice cannot be sent", tenant=job.tenant_id, invoice_id=job.run.invoice_id)
            self._park(job, f"{type(e).__name__}: {e}")
            return False
        if answer.outcome is Outcome.ACCEPTED:
            log.info("invoice issued", tenant=job.tenant_id, invoice_id=job.run.invoice_id, replayed=answer.replayed)
            return True
        log.error("invoice refused", tenant=job.tenant_id, invoice_id=job.run.invoice_id, code=answer.code)
        self._park(job, f"{answer.code}: {answer.detail}")
        return False

    def _park(self, job: Job, reason: str) -> None:
        self._jobs.park(job, reason)
        _ISSUED.labels("parked").inc()


def rate(job: Job, snapshot: Snapshot) -> IssueInvoice:
    """The invoice of a run with its lines.

    Raises:
        NotReady: usage up to the cut is not all counted yet, or a price book is not projected yet.
    """
    run = job.run
    if run.rating_engine not in RATING_ENGINES:
        known = ", ".join(RATING_ENGINES)
        raise ValueError(f"the run was fixed for rating engine {run.rating_engine}; this knows {known}")
    if not snapshot.passed(job.tenant_id, run.cut.positions):
        raise NotReady("usage up to the cut is not counted yet")
    try:
        books = {version: snapshot.book(job.tenant_id, version) for version in versions(run, run.late)}
    except LookupError as e:
        raise NotReady(str(e)) from e
    late = [each for each in run.late if snapshot.has_late(job, each, earlier=carries_over(each, books))]
    wanted = needs(run, books, late)
    alone = one_by_one(run, books, late)
    quantities = snapshot.quantities(job.tenant_id, run.customer_id, wanted, alone) if wanted else {}
    return IssueInvoice(invoice_id=run.invoice_id, lines=lines(run, books, late, quantities))


class PostgresSnapshot:
    """The projections in one repeatable-read transaction."""

    def __init__(self, tx: postgres.Cursor) -> None:
        self._tx = tx

    def passed(self, tenant: TenantId, positions: Sequence[PartitionPosition]) -> bool:
        return usage_read.passed(self._tx, tenant, positions)

    def book(self, tenant: TenantId, version: int) -> PriceBookPublished:
        return price_books.book(self._tx, tenant, version)

    def has_late(self, job: Job, closed: LatePeriod, *, earlier: bool) -> bool:
        run, period = job.run, closed.period
        return usage_read.has_late(
            self._tx, job.tenant_id, run.customer_id, period, closed.since, run.cut.positions, earlier=earlier
        )

    def quantities(
        self, tenant: TenantId, customer: CustomerId, wanted: Sequence[Need], one_by_one: Collection[str]
    ) -> Mapping[Need, Measured]:
        return usage_read.quantities(self._tx, tenant, customer, wanted, transactions=one_by_one)


@contextmanager
def snapshot(pool: postgres.Pool) -> Iterator[Snapshot]:
    """Billing and usage as of one moment, in their current generations."""
    with postgres.transaction(pool) as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        generation.enter_all(tx)
        yield PostgresSnapshot(tx)


WORKERS: Final = 2  # tenants at once in one process; rating is Python and takes a core
POLL_S: Final = 0.1
IDLE_S: Final = 0.1
GAUGES_S: Final = 5.0
TROUBLE_S: Final = 1.0
STOP_S: Final = 8.0  # a process has 10 s in all

_PLACES: Final = {"poll": "invoicing.after_poll", "commit": "invoicing.after_job_commit"}


class _Process:
    """The threads of this process: one reads the log, the others make invoices and are woken by new jobs."""

    def __init__(self, pool: postgres.Pool, jobs: InvoiceJobs, commands: CommandClient, stop: threading.Event) -> None:
        self._pool = pool
        self._stop = stop
        self._woken = threading.Condition()
        self._jobs = jobs
        self._commands = commands
        self.failure: BaseException | None = None

    def make_invoices(self) -> None:
        try:
            invoicer = Invoicer(self._jobs, lambda: snapshot(self._pool), self._commands)
            while not self._stop.is_set():
                try:
                    if not invoicer.step():
                        with self._woken:
                            self._woken.wait(IDLE_S)
                except (Transient, Conflict) as e:
                    log.warning("invoicing pauses", reason=str(e))
                    self._stop.wait(TROUBLE_S)
        except BaseException as e:  # carried to the main thread, which ends the process with it
            self.failure = e
            self._stop.set()

    def read_log(self, settings: Settings) -> None:
        events = consumer(settings, NAME)
        intake = EventIntake(
            NAME,
            events,
            self._pool,
            invoice_jobs.WANTED,
            invoice_jobs.apply,
            passing=_PLACES,
            watchdog=watched(settings),
        )
        try:
            while not self._stop.is_set():
                try:
                    if intake.step(POLL_S):
                        with self._woken:
                            self._woken.notify_all()
                except Transient as e:
                    log.warning("invoicing pauses", reason=str(e))
                    self._stop.wait(TROUBLE_S)
        finally:
            intake.close()

    def show_backlog(self) -> None:
        while not self._stop.wait(GAUGES_S):
            try:
                with postgres.transaction(self._pool) as tx:
                    backlog = invoice_jobs.backlog(tx)
            except (Transient, Conflict) as e:
                log.warning("backlog unknown", reason=str(e))
                continue
            _OLDEST.set(backlog.oldest_s)
            _PARKED.set(backlog.parked)


def main(settings: Settings) -> int:
    """Make invoices until SIGTERM."""
    stop = on_signals()
    with postgres.worker_pool(settings, size=WORKERS + 2) as pool, CommandClient(settings) as commands:
        process = _Process(pool, InvoiceJobs(pool, settings.lease), commands, stop)
        work = [process.make_invoices] * WORKERS + [process.show_backlog]
        threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        try:
            process.read_log(settings)
        finally:
            stop.set()
            for thread in threads:
                thread.join(STOP_S / len(threads))
    if process.failure is not None:
        raise process.failure
    return 0
