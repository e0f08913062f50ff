"""The loop that finds what is due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from billing.envelope import CommandResult
from billing.invoicing import PartitionPosition
from billing.placing import Spread
from billing.subscription import (
    Absent,
    ActivateSubscription,
    Active,
    BillingPeriodClosed,
    CloseBillingPeriod,
    Scheduled,
    SubscriptionActivated,
)
from infra.errors import Transient
from infra.kafka import partition_for
from projections.subscriptions import Due
from services import scheduler as scheduling
from services.scheduler import Scheduler
from services.usage_placing import Layout, Spreads
from tests.invoicing.airline import FEBRUARY, MARCH, TENANT, ManualClock, add_airline, advance, open_airport
from tests.invoicing.handler import MemoryHandler

PARTITIONS = 6


class World:
    """Handler, projection and usage log around one clock; the projection may lag behind."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.handler = MemoryHandler(self.clock.now)
        self.leads = True
        self.frozen: list[Due] | None = None
        self.ends = 100
        self.limits: list[int] = []
        self.spread: Spreads = ()
        self.scheduler = self.another()
        open_airport(self.handler)

    def held(self) -> bool:
        return self.leads

    def due(self, limit: int) -> Sequence[Due]:
        self.limits.append(limit)
        return self.frozen if self.frozen is not None else self.due_now()[:limit]

    def due_now(self) -> list[Due]:
        now = self.handler.state(TENANT).tenant.now(self.clock.at)  # type: ignore[union-attr]
        found = []
        for name, state in self.handler.state(TENANT).subscriptions.items():
            if isinstance(state, Scheduled):
                boundary, customer = state.terms.starts_at, state.terms.customer_id
            elif isinstance(state, Active):
                boundary, customer = state.boundary, state.terms.customer_id
            else:
                assert not isinstance(state, Absent)
                continue
            if boundary <= now:
                found.append(Due(TENANT, name, customer, isinstance(state, Scheduled), boundary, now))
        return sorted(found, key=lambda each: (each.boundary, each.subscription_id))

    def another(self) -> Scheduler:
        return Scheduler(
            self,
            self.due,
            self.ends_of,
            self.handler,
            self.clock,
            layout=Layout(PARTITIONS),
            spreads=lambda _tenants: {TENANT: self.spread} if self.spread else {},
        )

    def ends_of(self, partitions: Iterable[int]) -> Mapping[int, int]:
        return dict.fromkeys(partitions, self.ends)

    def asked(self, kind: type) -> list[Any]:
        return [command for _, command in self.handler.asked if isinstance(command, kind)]


@pytest.fixture
def world() -> World:
    return World()


def test_a_subscription_starts_when_its_time_has_come(world: World) -> None:
    add_airline(world.handler, "UA")
    world.scheduler.step()
    assert len(world.handler.events(SubscriptionActivated)) == 1


def test_each_period_that_is_over_is_closed_in_turn_at_the_end_of_the_usage_log(world: World) -> None:
    add_airline(world.handler, "UA")
    advance(world.handler, MARCH)
    for _ in range(4):
        world.scheduler.step()
    closed = world.handler.events(BillingPeriodClosed)
    assert [each.span.period.end for each in closed] == [FEBRUARY, MARCH]
    expected = PartitionPosition(partition=partition_for(TENANT, PARTITIONS), offset=100)
    assert closed[0].run.cut.positions == (expected,)


def test_a_period_is_closed_at_the_end_of_every_partition_that_usage_was_ever_spread_over(world: World) -> None:
    world.spread = (Spread(effective_from=FEBRUARY, partitions=3), Spread(effective_from=MARCH, partitions=2))
    add_airline(world.handler, "UA")
    advance(world.handler, FEBRUARY)
    for _ in range(3):
        world.scheduler.step()
    (closed,) = world.handler.events(BillingPeriodClosed)
    home = partition_for(TENANT, PARTITIONS)
    touched = sorted((home + each) % PARTITIONS for each in range(3))
    assert [each.partition for each in closed.run.cut.positions] == touched


def test_what_was_asked_for_is_not_asked_again_while_the_projection_lags(world: World) -> None:
    add_airline(world.handler, "UA")
    world.frozen = world.due_now()
    for _ in range(5):
        world.scheduler.step()
    assert len(world.asked(ActivateSubscription)) == 1


def test_asking_again_changes_nothing(world: World) -> None:
    add_airline(world.handler, "UA")
    world.frozen = world.due_now()
    for _ in range(3):
        world.scheduler.step()
        world.clock.sleep(60)
        world.ends += 50
    assert len(world.asked(ActivateSubscription)) > 1
    assert len(world.handler.events(SubscriptionActivated)) == 1
    advance(world.handler, FEBRUARY)
    world.frozen = world.due_now()
    for _ in range(3):
        world.scheduler.step()
        world.clock.sleep(60)
        world.ends += 50
    assert len({command.positions for command in world.asked(CloseBillingPeriod)}) > 1
    assert len(world.handler.events(BillingPeriodClosed)) == 1


@pytest.mark.parametrize("lost", ["lose_before", "lose_after"])
def test_a_lost_answer_is_asked_for_again_under_the_same_key(world: World, lost: str) -> None:
    add_airline(world.handler, "UA")
    setattr(world.handler, lost, 1)
    for _ in range(3):
        world.scheduler.step()
        world.clock.sleep(20)
    assert len(world.handler.events(SubscriptionActivated)) == 1
    assert len({key for key, command in world.handler.asked if isinstance(command, ActivateSubscription)}) == 1


def test_a_refused_close_is_tried_again_later_and_less_and_less_often(world: World) -> None:
    add_airline(world.handler, "UA")
    world.scheduler.step()
    world.frozen = [Due(TENANT, "sub-UA", "UA", False, FEBRUARY, FEBRUARY)]  # the clock has not come so far
    for _ in range(40):
        world.scheduler.step()
        world.clock.sleep(1)
    refused = len(world.asked(CloseBillingPeriod))
    assert 4 <= refused <= 8
    advance(world.handler, FEBRUARY)
    world.clock.sleep(60)
    world.scheduler.step()
    assert len(world.handler.events(BillingPeriodClosed)) == 1


def test_many_subscriptions_are_asked_for_at_once_and_no_more_than_allowed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "IN_FLIGHT_MAX", 10)
    for n in range(25):
        add_airline(world.handler, f"A{n:02}")
    unanswered: list[str] = []

    def silent(tenant: str, command: Any, *, key: str, actor: str) -> Future[CommandResult]:
        unanswered.append(key)
        return Future()

    world.handler.ask = silent  # type: ignore[assignment]
    for _ in range(3):
        world.scheduler.step()
    assert len(unanswered) == len(set(unanswered)) == 10


def test_those_that_are_refused_do_not_hide_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "IN_FLIGHT_MAX", 2)
    for n in range(6):
        add_airline(world.handler, f"A{n}")
    early = FEBRUARY - timedelta(days=365)
    stuck = [Due(TENANT, f"sub-unknown-{n}", "X", True, early, early) for n in range(4)]
    real = world.due_now
    world.due_now = lambda: stuck + real()  # type: ignore[method-assign]
    for _ in range(8):
        world.scheduler.step()
    assert len(world.handler.events(SubscriptionActivated)) == 6


def test_only_the_leader_asks(world: World) -> None:
    add_airline(world.handler, "UA")
    world.leads = False
    assert world.scheduler.step() is False
    assert world.asked(ActivateSubscription) == []


def test_two_leaders_for_a_moment_close_each_period_once(world: World) -> None:
    add_airline(world.handler, "UA")
    advance(world.handler, FEBRUARY)
    second = world.another()
    for _ in range(4):
        world.scheduler.step()
        world.frozen = None
        second.step()
    assert len(world.handler.events(SubscriptionActivated)) == 1
    assert len(world.handler.events(BillingPeriodClosed)) == 1


def test_a_cluster_that_is_away_loses_nothing(world: World) -> None:
    add_airline(world.handler, "UA")
    world.scheduler.step()
    advance(world.handler, FEBRUARY)

    def away(partitions: Iterable[int]) -> Mapping[int, int]:
        raise Transient("no broker")

    world.scheduler._ends = away
    with pytest.raises(Transient):
        world.scheduler.step()
    world.scheduler._ends = world.ends_of
    world.scheduler.step()
    assert len(world.handler.events(BillingPeriodClosed)) == 1
