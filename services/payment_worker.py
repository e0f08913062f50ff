"""Collects what is due, at most once per invoice, whatever crashes, times out or is repeated.

Consumes  rows of app.payment_outbox that are due by their tenant's clock
Produces  StartPaymentAttempt, RecordPaymentSuccess, RecordPaymentDecline, RecordPaymentUnknown; calls to a provider
Owns      nothing: the log opens, starts and closes the rows; a worker holds one for the time of a lease
Repeats   safely because a provider is called only after the log says that the attempt has begun, with the key, amount
          and payment method that the log holds, and with no other key before the outcome of this one is known

    take row --> not begun: StartPaymentAttempt --> (outbox writer reads PaymentAttemptStarted) --> take row again
             --> begun: ask the provider with the log's key --> record the outcome --> (outbox writer closes the row)
                           ^                 |
                           +--- unknown -----+   look it up; repeat under the same key; after 23 h only look it up
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Protocol

from billing.customer import Provider
from billing.envelope import CommandResult, Outcome
from billing.payment import (
    RecordPaymentDecline,
    RecordPaymentSuccess,
    RecordPaymentUnknown,
    StartPaymentAttempt,
)
from infra import postgres, telemetry
from infra.clock import Clock, SystemClock
from infra.collection import Collected, Collection, Declined, declined
from infra.errors import Conflict, Misconfigured, Poison, Transient
from infra.failpoints import failpoint
from infra.sandbox_gateway import SandboxGateway
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.stripe_gateway import StripeGateway
from services.commands import CommandClient
from services.payment_outbox import PaymentOutbox, PaymentTask, Started

log = telemetry.logger("services.payments")

ACTOR: Final = "payments"
KEY_AGE_MAX: Final = timedelta(hours=23)
"""Providers forget a key after 24 h and would charge again; the hour is for clocks that differ."""
AWAIT_LOG: Final = timedelta(seconds=5)  # until the outbox writer has read what was just decided; then ask again
PAUSE_FIRST: Final = timedelta(milliseconds=500)
PAUSE_MAX: Final = timedelta(minutes=10)
UNSERVED_PAUSE: Final = timedelta(seconds=60)  # a missing or refused key is an operator's work
REFUSALS_MAX: Final = 8  # a command refused that often will not be accepted by waiting: a person has to look
NOT_RECEIVED: Final = "not_received"  # decline code of an attempt that never reached its provider

_OUTCOMES = telemetry.counter("payment_outcomes_total", "Answers of payment providers.", "provider", "outcome")


class PaymentGateway(Protocol):
    """Collects money from a customer's saved payment method."""

    def collect(self, wanted: Collection) -> Collected | Declined:
        """Try once to collect. Repeating a key repeats its first answer, for a day.

        Raises:
            Transient: the outcome is unknown; ask again with the same key.
            Poison: the provider refuses the request itself; it will never work.
            Misconfigured: the provider refuses our credentials.
        """

    def look_up(self, wanted: Collection) -> Collected | Declined | None:
        """What became of the attempt; None if the provider never heard of it. Moves no money.

        Raises:
            Transient: no answer, or the attempt is still at work.
            Misconfigured: the provider refuses our credentials.
        """


class Outbox(Protocol):
    """The rows to work on. Any call may raise `Transient` or `Conflict`: the row comes back by itself."""

    def take(self) -> PaymentTask | None:
        """An attempt that is due and that nobody works on, for the time of a lease."""

    def again(self, task: PaymentTask, pause: timedelta, detail: str = "") -> None:
        """Give it back, to be taken again after `pause`."""

    def park(self, task: PaymentTask, detail: str) -> None:
        """Set it aside until a person looks at it."""


class Commands(Protocol):
    """Asks the command handler."""

    def request(self, tenant: str, command: Any, *, key: str, actor: str) -> CommandResult:
        """What became of the command. Raises `Transient`: unknown, repeat with the same key."""


class PaymentWorker:
    """Works on one attempt at a time. Several may run beside each other, here and elsewhere."""

    def __init__(
        self, outbox: Outbox, commands: Commands, gateways: Mapping[Provider, PaymentGateway], clock: Clock
    ) -> None:
        self._outbox = outbox
        self._commands = commands
        self._gateways = gateways
        self._clock = clock

    def step(self) -> bool:
        """Move one attempt on; False if none is due. Raises as `take` and `work`."""
        task = self.take()
        if task is not None:
            self.work(task)
        return task is not None

    def take(self) -> PaymentTask | None:
        """An attempt to `work` on, within the time of its lease; None if none is due.

        Raises:
            Transient, Conflict: the outbox is away.
        """
        task = self._outbox.take()
        if task is not None:
            failpoint("payments.after_claim")
        return task

    def work(self, task: PaymentTask) -> None:
        """Move an attempt on. May run in several threads at once.

        Raises:
            Transient, Conflict: the outbox is away; the attempt comes back when its lease is over.
        """
        gateway = self._gateways.get(task.provider)
        try:
            if gateway is None:
                self._unserved(task, f"no gateway for {task.provider} is configured")
            elif task.started is None:
                self._start(task)
            else:
                self._collect(task, gateway, task.started)
        except Transient as e:  # of a command: whether it was decided is unknown, its key makes repeating it safe
            self._outbox.again(task, _pause(task.tries), str(e))

    def _start(self, task: PaymentTask) -> None:
        """Claim the right to ask the provider. The attempt goes on when the outbox writer has read that it began."""
        command = StartPaymentAttempt(invoice_id=task.invoice_id, attempt=task.attempt)
        result = self._request(task, command, f"payments:start:{task.invoice_id}:{task.attempt}")
        failpoint("payments.after_start")
        # Accepted: the outbox writer opens the row again as soon as it reads in the log that the attempt began.
        if result.outcome is not Outcome.ACCEPTED:
            self._refused(task, result)

    def _collect(self, task: PaymentTask, gateway: PaymentGateway, started: Started) -> None:
        try:
            outcome = self._ask(task, gateway, started)
        except Transient as e:
            self._unknown(task, str(e))
            return
        except Poison as e:
            log.error("payment request refused", **_ids(task), reason=str(e))
            self._outbox.park(task, str(e))
            return
        except Misconfigured as e:
            self._unserved(task, str(e))
            return
        failpoint("payments.after_charge")
        _OUTCOMES.labels(task.provider, "collected" if isinstance(outcome, Collected) else "declined").inc()
        self._record(task, outcome)

    def _ask(self, task: PaymentTask, gateway: PaymentGateway, started: Started) -> Collected | Declined:
        """The outcome of the one charge that this attempt may ever make."""
        wanted = Collection(
            tenant_id=task.tenant_id,
            invoice_id=task.invoice_id,
            customer_id=task.customer_id,
            attempt=task.attempt,
            key=started.key,
            amount=started.amount,
            token=started.token,
        )
        key_is_old = self._clock.now() - started.started_at >= KEY_AGE_MAX
        if task.tries > 1 or key_is_old:
            found = gateway.look_up(wanted)
            if found is not None:
                return found
        if key_is_old:
            # Whatever was on its way a day ago has arrived or never will, and posting could charge a second time.
            return declined(NOT_RECEIVED)
        return gateway.collect(wanted)

    def _record(self, task: PaymentTask, outcome: Collected | Declined) -> None:
        ids = {"invoice_id": task.invoice_id, "attempt": task.attempt}
        command: RecordPaymentSuccess | RecordPaymentDecline
        if isinstance(outcome, Collected):
            command, name = RecordPaymentSuccess(**ids, amount=outcome.amount, reference=outcome.reference), "succeeded"  # type: ignore[arg-type]
            log.info("payment collected", **_ids(task), reference=outcome.reference)
        else:
            command, name = RecordPaymentDecline(**ids, kind=outcome.kind, code=outcome.code), "declined"  # type: ignore[arg-type]
            log.info("payment declined", **_ids(task), decline_code=outcome.code, kind=outcome.kind)
        result = self._request(task, command, f"payments:outcome:{task.invoice_id}:{task.attempt}:{name}")
        failpoint("payments.after_record")
        if result.outcome is not Outcome.ACCEPTED:
            # The provider did something that the log does not accept: money and books differ until a person looks.
            log.error("payment outcome refused", **_ids(task), code=result.code, detail=result.detail)
            self._outbox.park(task, f"{result.code}: {result.detail}")
            return
        failpoint("payments.before_done")
        self._outbox.again(task, AWAIT_LOG)

    def _unknown(self, task: PaymentTask, detail: str) -> None:
        log.warning("payment outcome unknown", **_ids(task), tries=task.tries, reason=detail)
        _OUTCOMES.labels(task.provider, "unknown").inc()
        command = RecordPaymentUnknown(invoice_id=task.invoice_id, attempt=task.attempt, detail=detail)
        self._request(task, command, f"payments:outcome:{task.invoice_id}:{task.attempt}:unknown")
        self._outbox.again(task, _pause(task.tries), detail)

    def _refused(self, task: PaymentTask, result: CommandResult) -> None:
        """A start was refused: mostly the log knows better already (paid outside, another method) and says so soon."""
        detail = f"{result.code}: {result.detail}"
        if task.tries < REFUSALS_MAX:
            self._outbox.again(task, _pause(task.tries), detail)
            return
        log.error("payment attempt refused", **_ids(task), code=result.code, detail=result.detail)
        self._outbox.park(task, detail)

    def _unserved(self, task: PaymentTask, detail: str) -> None:
        log.error("payment provider cannot be used", **_ids(task), provider=task.provider, reason=detail)
        self._outbox.again(task, UNSERVED_PAUSE, detail)

    def _request(self, task: PaymentTask, command: Any, key: str) -> CommandResult:
        return self._commands.request(task.tenant_id, command, key=key, actor=ACTOR)


def _pause(tries: int) -> timedelta:
    """Doubles with each try: 0.5 s, 1 s, 2 s, ... 10 min."""
    doublings: int = min(tries - 1, 20)
    return min(PAUSE_FIRST * (1 << doublings), PAUSE_MAX)


def _ids(task: PaymentTask) -> dict[str, Any]:
    return {"tenant": task.tenant_id, "invoice_id": task.invoice_id, "attempt": task.attempt}


WORKERS: Final = 8  # attempts at once in one process; a provider takes seconds to answer, most of them spent waiting
STOP_S: Final = 8.0  # a process has 10 s in all
IDLE_S: Final = 0.1
TROUBLE_S: Final = 1.0


def gateways(settings: Settings) -> dict[Provider, PaymentGateway]:
    """The providers that can be reached with these settings."""
    made: dict[Provider, PaymentGateway] = {}
    if settings.sandbox:
        made[Provider.SANDBOX] = SandboxGateway(settings.sandbox)
    if key := settings.stripe_key.get_secret_value():
        made[Provider.STRIPE] = StripeGateway(key)
    return made


class _Slots:
    """Runs attempts beside each other, at most `size` at once; the first failure is kept for whoever looks."""

    def __init__(self, worker: PaymentWorker, size: int, stop: threading.Event) -> None:
        self._worker = worker
        self._free = threading.Semaphore(size)
        self._size = size
        self._stop = stop
        self.failure: BaseException | None = None

    def fill(self) -> bool:
        """Start one attempt if a slot is or becomes free; False if none is due."""
        if not self._free.acquire(timeout=IDLE_S):
            return True
        task = None
        try:
            task = self._worker.take()
        finally:
            if task is None:
                self._free.release()
        if task is not None:
            # A daemon: a provider that does not answer must not hold up the end of the process.
            threading.Thread(target=self._work, args=(task,), name="payment", daemon=True).start()
        return task is not None

    def close(self) -> None:
        """Wait for what is under way, as long as the process may; what is cut off is repeated under its own key."""
        deadline = time.monotonic() + STOP_S
        for _ in range(self._size):
            self._free.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def _work(self, task: PaymentTask) -> None:
        try:
            self._worker.work(task)
        except (Transient, Conflict) as e:
            log.warning("payment row given back late", **_ids(task), reason=str(e))
        except BaseException as e:
            self.failure = e
            self._stop.set()
        finally:
            self._free.release()


def main(settings: Settings) -> int:
    """Collect until SIGTERM; each attempt finishes the call that it is in."""
    stop = on_signals()
    with postgres.worker_pool(settings, size=WORKERS) as pool, CommandClient(settings) as commands:
        worker = PaymentWorker(PaymentOutbox(pool, settings.lease), commands, gateways(settings), SystemClock())
        slots = _Slots(worker, WORKERS, stop)
        while not stop.is_set():
            try:
                if not slots.fill():
                    stop.wait(IDLE_S)
            except (Transient, Conflict) as e:
                log.warning("payments pause", reason=str(e))
                stop.wait(TROUBLE_S)
        slots.close()
    if slots.failure is not None:
        raise slots.failure
    return 0
