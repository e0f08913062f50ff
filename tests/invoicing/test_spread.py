"""A tenant whose spread changes within a period is billed to the cent, by two aggregators of which one is killed."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

import pytest

from billing.subscription import BillingPeriodClosed
from billing.tenant import AdvanceClock, ClockAdvanced, Policies, RegisterTenant, SpreadUsage, UsageBounds
from infra import postgres
from services import usage_placing
from services.meter_publisher import published
from services.usage_placing import Layout
from tallybook_sdk import UsageEvent, UsageProducer
from tests.invoicing import airline
from tests.invoicing.airline import FEBRUARY, JANUARY, MARCH
from tests.invoicing.system import System
from tests.stack import Stack
from tests.waiting import eventually

WIDE, NARROW = JANUARY + timedelta(days=9), JANUARY + timedelta(days=19)
KILLED_AT = 30  # batches: the second worker has had some of each day by then
AIRLINES = {"UA": "pm_card_visa", "HA": "pm_card_visa"}


class Tower:
    """Reports departures over the SDK, each placed by the spread that is published by then."""

    def __init__(self, system: System, tenant: str) -> None:
        self.system = system
        self.tenant = tenant
        self.layout = Layout(system.settings.usage_partitions)
        self.flights = {name: [0, 0] for name in AIRLINES}
        """What the first month and the second are to bill, by airline."""
        self._reported: set[str] = set()
        self._pool = postgres.worker_pool(system.settings)

    def open(self) -> None:
        """Usage lies in one partition, from the 10th of January on in all of the log, from the 20th on in two."""
        bounds = UsageBounds(oldest_days=400, ahead_minutes=60)
        self.must(
            RegisterTenant(
                name="Airport",
                currency="USD",
                zone="UTC",
                policies=Policies(retry_days=(1, 3)),
                bounds=bounds,
                test_clock=JANUARY,
            )
        )
        self.must(airline.BOOK)
        for name, token in AIRLINES.items():
            self.must(airline.customer(name, token))
            self.must(airline.subscription(name))
        self.must(SpreadUsage(partitions=self.layout.partitions, effective_from=WIDE))
        self.must(SpreadUsage(partitions=2, effective_from=NARROW))
        eventually(lambda: len(self.spread()) == 2)

    def must(self, command: object) -> None:
        self.system.must(self.tenant, command)

    def spread(self) -> usage_placing.Spreads:
        with postgres.transaction(self._pool) as tx:
            return usage_placing.spread_of(tx, self.tenant)

    def advance(self, to: datetime) -> None:
        """Returns when usage of that time is accepted everywhere."""
        self.must(AdvanceClock(to=to))
        moved = [each.meta.sequence for each in self.system.log(self.tenant) if isinstance(each.event, ClockAdvanced)]

        def told() -> bool:
            with postgres.transaction(self._pool) as tx:
                return published(tx, self.tenant) >= moved[-1]

        eventually(told)

    def depart(self, days: Iterable[int], month: datetime = JANUARY, *, billed: int = 0, first_hour: int = 0) -> None:
        """A flight of each airline and another of UA every sixth hour; those that were reported before are copies.

        `billed`: with the first month or the second.
        """
        made = [event for day in days for event in _flights(month + timedelta(days=day - 1), first_hour)]
        for each in made:
            self.flights[each.customer][billed] += each.id not in self._reported
            self._reported.add(each.id)
        self._send(made)

    def _send(self, events: Iterable[UsageEvent]) -> None:
        settings = self.system.settings
        client = settings.kafka_client()
        with UsageProducer(
            client.pop("bootstrap.servers"),
            self.tenant,
            spread=usage_placing.published_to(settings, self.tenant),
            topic_prefix=settings.topic_prefix,
            kafka=client,
        ) as sdk:
            for each in events:
                sdk.send(each)

    def close(self) -> None:
        self._pool.close()


def _flights(day: datetime, first_hour: int) -> Iterator[UsageEvent]:
    for hour in range(first_hour, 24, 6):
        for name, number in (("UA", 1), ("UA", 2), ("HA", 1)):
            yield UsageEvent(
                id=f"{name}-{day:%m-%d}-{hour}-{number}",
                source="tower",
                type="departure",
                customer=name,
                time=day + timedelta(hours=hour, minutes=number),
                properties={},
            )


@pytest.fixture(scope="module")
def system(stack: Stack) -> Iterator[System]:
    running = System(stack)
    running.start("meters")
    yield running
    running.close()


@pytest.fixture
def tower(system: System, tenant: str) -> Iterator[Tower]:
    made = Tower(system, tenant)
    yield made
    made.close()


def test_an_invoice_over_a_change_of_the_spread_is_right_to_the_cent(system: System, tower: Tower) -> None:
    own = {"TALLYBOOK_INSTANCE": "two", "TALLYBOOK_FAILPOINT": f"usage.after_copy=kill@{KILLED_AT}"}
    second = system.stack.start("usage-aggregator", system.settings, **own)
    tower.open()
    tower.advance(WIDE)
    tower.depart(range(1, 10))
    tower.advance(NARROW)
    days = itertools.cycle(range(1, 20))

    def killed() -> bool:
        tower.depart([next(days)])
        return second.poll() is not None

    eventually(killed)
    assert second.returncode == -signal.SIGKILL
    tower.depart(range(5, 20))
    tower.advance(FEBRUARY - timedelta(hours=1))
    tower.depart(range(15, 32))
    tower.advance(FEBRUARY)
    system.await_paid(tower.tenant, 2 * len(AIRLINES))

    touched = set(range(system.settings.usage_partitions))
    closed = system.events(tower.tenant, BillingPeriodClosed)
    assert [{each.partition for each in period.run.cut.positions} for period in closed] == [touched] * len(AIRLINES)

    tower.depart([3, 12, 25], billed=1, first_hour=3)  # late, of each spread one day
    tower.advance(FEBRUARY + timedelta(days=9))
    tower.depart(range(1, 10), FEBRUARY, billed=1)
    tower.advance(MARCH)
    system.await_paid(tower.tenant, 3 * len(AIRLINES))
    system.check(tower.tenant, {name: tuple(counts) for name, counts in tower.flights.items()})
