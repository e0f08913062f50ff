"""From a period's end to a paid invoice on real servers, with a process killed between every two durable steps.

Each case is a tenant of its own on the same running system: three airlines, two months, a card that declines at first
and one that loses the answer to a charge. Whatever dies: one invoice per period, exact totals, one charge per invoice,
by the provider's own book.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from infra.failpoints import FAILPOINTS
from tests.invoicing.airline import FEBRUARY, JANUARY, MARCH
from tests.invoicing.system import System
from tests.stack import Stack
from tests.waiting import eventually

OURS = {"scheduler": "scheduler", "invoicing": "invoicing", "outbox": "outbox", "payments": "payments"}
POINTS = [name for name in FAILPOINTS if name.partition(".")[0] in OURS]
BY_DEFAULT = set(random.Random(20260201).sample(POINTS, 4))
CASES = [pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.soak) for name in POINTS]

AIRLINES = {
    "UA": "pm_card_visa",
    "F9": "pm_card_declinesOnceInsufficientFunds",
    "HA": "pm_card_lostAnswer",
}
FLIGHTS = {"UA": (40, 3), "F9": (7, 0), "HA": (1, 25)}


@pytest.fixture(scope="module")
def system(stack: Stack) -> Iterator[System]:
    running = System(stack)
    yield running
    running.close()


def run_two_months(system: System, tenant: str, until: Callable[[], bool] = lambda: True) -> None:
    """Nine invoices become due, one of which is declined; those of the second month only once it is `until`."""
    system.open(tenant, AIRLINES)
    for name, (january, february) in FLIGHTS.items():
        system.depart(tenant, name, JANUARY, january, twice=january // 2)
        system.depart(tenant, name, FEBRUARY, february)
    system.advance(tenant, FEBRUARY)
    eventually(until, within_s=240)
    system.advance(tenant, MARCH)


def collect_and_check(system: System, tenant: str) -> None:
    """The declined one is collected by the tenant's clock; then everything has to be right."""
    system.await_paid(tenant, 8)
    system.advance(tenant, MARCH + timedelta(days=2))
    system.await_paid(tenant, 9)
    system.check(tenant, FLIGHTS)


def test_two_months_without_a_fault(system: System, tenant: str) -> None:
    run_two_months(system, tenant)
    collect_and_check(system, tenant)


@pytest.mark.parametrize("point", CASES)
def test_a_process_killed_between_two_steps_costs_nothing(system: System, tenant: str, point: str) -> None:
    process = OURS[point.partition(".")[0]]
    dying = system.kill_at(process, point, passes=2)
    # Else one that starts slowly finds all that there is to do at once, and never comes by a second time.
    run_two_months(system, tenant, until=lambda: dying.poll() is not None or system.paid(tenant) >= 5)
    system.resurrect(process, dying)
    collect_and_check(system, tenant)


@pytest.mark.soak
def test_a_provider_killed_while_it_charges_costs_nothing(system: System, tenant: str) -> None:
    for point in ("after_write", "before_answer"):
        seller = f"{tenant}-{point}"
        dying = system.kill_at("sandbox", f"sandbox.{point}")
        run_two_months(system, seller)
        system.resurrect("sandbox", dying)
        collect_and_check(system, seller)


def test_two_of_every_process_share_the_work(system: System, tenant: str) -> None:
    """Also while one of them dies: the other goes on with what it left."""
    with system.doubled("scheduler", "invoicing", "outbox", "payments") as seconds:
        run_two_months(system, tenant)
        system.await_paid(tenant, 4)
        for each in seconds:
            each.kill()
        collect_and_check(system, tenant)
