"""Finds what is due by its tenant's clock and asks for it: starts of subscriptions and ends of billing periods.

Consumes  projections of subscriptions and tenants; the tenants' spreads; end offsets of usage.events
Produces  ActivateSubscription, CloseBillingPeriod with the position of the usage log at that moment
Owns      the lease `scheduler`: one leader at a time; another process stands by
Repeats   safely because the keys name subscription and period, and the handler closes each period once; two leaders
          for a moment only ask twice

A command that was accepted is not due any more once it is projected; one that was refused had no effect and is sent
again after a pause; one without a result is sent again under the same key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

from billing.envelope import CommandResult, Outcome
from billing.errors import Rejected
from billing.ids import SubscriptionId
from billing.invoicing import PartitionPosition
from billing.subscription import ActivateSubscription, CloseBillingPeriod
from infra import postgres, telemetry
from infra.clock import Clock, SystemClock
from infra.errors import Conflict, Transient
from infra.failpoints import failpoint
from infra.kafka import KafkaConfig, end_offsets
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import beating
from projections import generation, subscriptions
from projections.subscriptions import Due
from services import usage_placing
from services.commands import CommandClient
from services.usage_placing import Layout, Spreads

log = telemetry.logger("services.scheduler")

NAME: Final = "scheduler"
USAGE: Final = "usage.events"
IN_FLIGHT_MAX: Final = 1_000
UNPROJECTED_S: Final = 5.0  # an accepted command is projected by then; sooner, it only looks due
REFUSED_S: Final = 0.5  # what a refused close waits for (its prepaid invoice) takes about as long
REFUSED_MAX_S: Final = 30.0
UNANSWERED_S: Final = 15.0
BUSY_S: Final = 0.05  # while answers are awaited: one close makes the next one due
STANDBY_S: Final = 1.0

_SENT = telemetry.counter("scheduler_commands_total", "Commands of the scheduler, by kind and end.", "kind", "end")


class Leadership(Protocol):
    """Who of several schedulers works."""

    def held(self) -> bool:
        """Whether this process leads, at this moment. Raises `Transient`."""


class Commands(Protocol):
    """Asks the command handler."""

    def ask(self, tenant: str, command: Any, *, key: str, actor: str) -> Future[CommandResult]:
        """The result, once it is there."""


Wish = tuple[str, str]
"""A tenant and an idempotency key of its own."""


@dataclass(slots=True)
class _Sent:
    """A command that was sent: its result as soon as it is there, and until when it is not sent again."""

    result: Future[CommandResult] | None
    until_s: float
    refusals: int = 0


class Scheduler:
    """Sends what is due, each thing once at a time, and does not wait for the results."""

    def __init__(
        self,
        leadership: Leadership,
        due: Callable[[int], Sequence[Due]],
        ends: Callable[[Iterable[int]], Mapping[int, int]],
        commands: Commands,
        clock: Clock,
        *,
        layout: Layout,
        spreads: Callable[[Iterable[str]], Mapping[str, Spreads]],
    ) -> None:
        """`due` gives at most so many; `ends` the end of each partition of the usage log, read when it is called.

        `spreads`: of those of the tenants that have one.
        """
        self._leadership = leadership
        self._due = due
        self._ends = ends
        self._commands = commands
        self._clock = clock
        self._layout = layout
        self._spreads = spreads
        self._sent: dict[Wish, _Sent] = {}

    @property
    def busy(self) -> bool:
        """Whether a result is awaited."""
        return any(each.result is not None for each in self._sent.values())

    def step(self) -> bool:
        """Send what is due and not under way; False if another process leads.

        Raises:
            Transient: Postgres or Kafka is away; nothing is lost by calling again.
        """
        if not self._leadership.held():
            self._sent.clear()
            return False
        self._take_results()
        in_flight = sum(each.result is not None for each in self._sent.values())
        # Those under way or refused still look due, the oldest first: they must not hide the others.
        listed = self._due(len(self._sent) + IN_FLIGHT_MAX - in_flight)
        due = {(each.tenant, key_of(each)): each for each in listed}
        self._forget(due)
        fresh = {wish: each for wish, each in due.items() if self._may_send(wish)}
        room = max(0, IN_FLIGHT_MAX - in_flight)
        self._send(dict(list(fresh.items())[:room]))
        return True

    def _take_results(self) -> None:
        now = self._clock.monotonic_s()
        for wish, sent in self._sent.items():
            if sent.result is None:
                continue
            if not sent.result.done():
                if now >= sent.until_s:
                    sent.result.cancel()
                    sent.result = None
                    _SENT.labels(_kind(wish), "unanswered").inc()
                continue
            self._take_result(wish, sent, sent.result, now)

    def _take_result(self, wish: Wish, sent: _Sent, result: Future[CommandResult], now: float) -> None:
        sent.result = None
        error = result.exception()
        if error is not None:
            if not isinstance(error, Transient):
                raise error
            sent.until_s = now + REFUSED_S
            _SENT.labels(_kind(wish), "unanswered").inc()
        elif result.result().outcome is Outcome.ACCEPTED:
            sent.until_s = now + UNPROJECTED_S
            sent.refusals = 0
            _SENT.labels(_kind(wish), "accepted").inc()
        else:
            answer = result.result()
            sent.refusals += 1
            sent.until_s = now + min(REFUSED_S * 2 ** min(sent.refusals - 1, 10), REFUSED_MAX_S)
            _SENT.labels(_kind(wish), "rejected").inc()
            log.info("refused for now", tenant=wish[0], key=wish[1], code=answer.code, detail=answer.detail)

    def _forget(self, due: Mapping[Wish, Due]) -> None:
        """What is not due any more was done."""
        for wish in [wish for wish, sent in self._sent.items() if sent.result is None and wish not in due]:
            del self._sent[wish]

    def _may_send(self, wish: Wish) -> bool:
        sent = self._sent.get(wish)
        return sent is None or (sent.result is None and self._clock.monotonic_s() >= sent.until_s)

    def _send(self, fresh: Mapping[Wish, Due]) -> None:
        if not fresh:
            return
        # The cut of each period: read after the period was over and the grace had passed.
        # Every partition that may hold usage of the tenant, of whatever time: late usage of periods before comes along.
        closing = {each.tenant for each in fresh.values() if not each.scheduled}
        spreads = self._spreads(sorted(closing)) if closing else {}
        touched = {each: self._layout.touched(each, spreads.get(each, ())) for each in closing}
        ends = self._ends(sorted({each for some in touched.values() for each in some})) if closing else {}
        failpoint("scheduler.before_send")
        for wish, each in fresh.items():
            refusals = self._sent[wish].refusals if wish in self._sent else 0
            try:
                positions = () if each.scheduled else _positions(touched[each.tenant], ends)
                result = self._commands.ask(each.tenant, _command(each, positions), key=wish[1], actor=NAME)
            except Rejected as e:
                log.error("cannot be asked for", tenant=wish[0], key=wish[1], reason=str(e))
                self._sent[wish] = _Sent(None, self._clock.monotonic_s() + REFUSED_MAX_S)
                continue
            self._sent[wish] = _Sent(result, self._clock.monotonic_s() + UNANSWERED_S, refusals)
        failpoint("scheduler.after_send")


def _positions(partitions: Iterable[int], ends: Mapping[int, int]) -> tuple[PartitionPosition, ...]:
    return tuple(PartitionPosition(partition=each, offset=ends[each]) for each in partitions)


def _command(due: Due, positions: tuple[PartitionPosition, ...]) -> ActivateSubscription | CloseBillingPeriod:
    subscription = SubscriptionId(due.subscription_id)
    if due.scheduled:
        return ActivateSubscription(subscription_id=subscription)
    return CloseBillingPeriod(subscription_id=subscription, period_end=due.boundary, positions=positions)


def key_of(due: Due) -> str:
    """The idempotency key of what is due: the same for every repetition, another for every period."""
    if due.scheduled:
        return f"scheduler:activate:{due.subscription_id}"
    return f"scheduler:close:{due.subscription_id}:{due.boundary.isoformat()}"


def _kind(wish: Wish) -> str:
    return wish[1].split(":", 2)[1]


class PostgresLeadership:
    """The lease `scheduler`, held by a connection of its own; lost with it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: postgres.Connection | None = None
        self._token = 0

    def held(self) -> bool:
        """Whether this process leads and nobody took over since."""
        try:
            if self._connection is None:
                self._connection = postgres.connect(self._url, autocommit=True)
            if not self._token:
                self._token = postgres.try_lease(self._connection, NAME) or 0
                if self._token:
                    log.info("leads", token=self._token)
                return self._token > 0
            with postgres.translated():
                row = self._connection.execute("SELECT token FROM app.lease WHERE name = %s", (NAME,)).fetchone()
        except Transient:
            self.close()
            raise
        if row is None or row[0] != self._token:
            log.warning("deposed", token=self._token)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let another one lead."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._token = None, 0


def main(settings: Settings) -> int:
    """Schedule until SIGTERM."""
    stop = on_signals()
    clock = SystemClock()
    config = KafkaConfig.of(settings)
    leadership = PostgresLeadership(postgres.worker_url(settings))
    with postgres.worker_pool(settings) as pool, CommandClient(settings) as commands:

        def due(limit: int) -> Sequence[Due]:
            with postgres.transaction(pool) as tx:
                generation.enter(tx, "billing")
                return subscriptions.due(tx, limit, clock.now())

        def ends(partitions: Iterable[int]) -> Mapping[int, int]:
            return end_offsets(config, USAGE, list(partitions))

        def spreads(tenants: Iterable[str]) -> Mapping[str, Spreads]:
            with postgres.transaction(pool) as tx:
                return usage_placing.spreads(tx, tenants)

        layout = Layout(settings.usage_partitions)
        scheduler = Scheduler(leadership, due, ends, commands, clock, layout=layout, spreads=spreads)
        pulse = beating(settings)
        while not stop.is_set():
            pulse.beat()
            try:
                leads = scheduler.step()
            except (Transient, Conflict) as e:
                log.warning("scheduler pauses", reason=str(e))
                leads = False
            busy = BUSY_S if scheduler.busy else settings.scheduler_interval.total_seconds()
            stop.wait(busy if leads else STANDBY_S)
    leadership.close()
    return 0
