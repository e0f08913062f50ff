"""Corrections that come together leave what they leave one by one: the same rows, and the same refusals."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import postgres
from infra.faust_app import Batch
from infra.settings import Settings
from projections import generation, usage
from services import usage_correcting
from services.usage_aggregator import UsageStore
from services.usage_judged import Refusal
from services.usage_rolling import roll
from tests.usage.making import (
    BYTES,
    CALLS,
    EU_CALLS,
    NOON,
    PEAK,
    USERS,
    Home,
    Log,
    amendment,
    batch,
    control,
    event,
    hours,
    void,
)

APPENDED = NOON + timedelta(days=1)
EVENTS = 4
METERS = (CALLS, BYTES, PEAK, USERS, replace(EU_CALLS, event_type="web"))
VARIANTS: Sequence[dict[str, Any]] = (
    {"bytes": "1"},
    {"bytes": "2.50", "region": "eu"},
    {"bytes": "7", "region": "eu", "user": "ann"},
    {"bytes": "0", "user": "bob", "at": NOON + hours(0.9)},  # another hour
    {"bytes": "7", "at": NOON - hours(30)},  # in the sums by day already
    {"bytes": "12345.678", "at": NOON - hours(30.2), "customer": "c2"},
    {"bytes": "1", "at": NOON - timedelta(days=9), "customer": "c2"},  # another month
    {"bytes": "1", "type": "web", "region": "us"},  # feeds no meter
    {"bytes": "a lot"},  # refused
)
"""What an event may say."""
ROWS = {
    **{table: statement for table, statement in usage.COMPARED.items() if table != "usage_rolled"},
    "sums by day": """
        SELECT d.tenant_id, s.customer_id, s.meter, s.dimension_values, d.day, d.partition, d.events, d.total
          FROM usage_day d
          JOIN usage_series s USING (tenant_id, series)
    """,
    "sums of all customers": "SELECT * FROM usage_total",
}
"""Where usage_day and usage_total are compared tells only what is wrong in them: here all of them is told, too."""

# What comes, of which event of which tenant, and what it says.
steps = st.tuples(
    st.sampled_from(["send", "void", "amend", "amend", "amend"]),
    st.sampled_from(["one", "two"]),
    st.integers(0, EVENTS),
    st.integers(0, len(VARIANTS) - 1),
)


@dataclass(repr=False)
class Side:
    """A generation, and what its worker refused."""

    pool: postgres.Pool
    number: int
    refused: list[Refusal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = UsageStore(self.pool, Home(1), self._refuse, into=self.number)

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        self.refused += refusals

    def refused_corrections(self, tenants: Sequence[str]) -> list[tuple[int, str]]:
        """In the order in which they were sent."""
        told = [each.usage for each in self.refused if each.usage.reason in ("unknown_event", "event_voided")]
        return [(each.offset, each.reason) for each in told if each.tenant in tenants]

    def rows(self, statement: str, tenants: Sequence[str]) -> list[str]:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET, self.number)
            rows = tx.execute(f"SELECT * FROM ({statement}) AS r WHERE tenant_id = ANY (%s)", (list(tenants),))
            return sorted(map(repr, rows.fetchall()))


@dataclass(repr=False)
class Sides:
    """Two generations of one log."""

    log: Log
    together: Side
    alone: Side
    names: Iterator[int] = field(default_factory=count)

    def apply(self, records: int) -> None:
        """The log's last records."""
        last = self.log.records[-records:]
        self.together.store.apply(Batch(last, last[0].offset))
        for each in last:
            self.alone.store.apply(Batch([each], each.offset))


@pytest.fixture(scope="module")
def sides(stack: Any) -> Iterator[Sides]:
    """Sums by day follow up to the day before noon."""
    prepared: Settings = stack.fresh()
    with postgres.connect(postgres.owner_url(prepared)) as connection:
        tx = connection.cursor()
        numbers = [generation.reserve(tx, usage.SET) for _ in range(2)]
        for each in numbers:
            generation.create(tx, usage.SET, each)
    with postgres.worker_pool(prepared, size=2) as pool:
        made = Sides(Log(), *(Side(pool, each) for each in numbers))
        made.log.append(control(meters=(CALLS,), tenant="nobody"))
        made.apply(1)
        for each in numbers:
            with postgres.connect(postgres.owner_url(prepared)) as connection:
                connection.execute(
                    "UPDATE app.generation SET current = %s WHERE projection_set = %s", (each, usage.SET)
                )
            roll(pool, threading.Event(), NOON - timedelta(hours=12))
        yield made


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(told=st.lists(steps, min_size=1, max_size=25), at_most=st.sampled_from([1, 2, 3, 5_000]))
def test_together_they_leave_what_they_leave_one_by_one(
    sides: Sides, told: list[tuple[str, str, int, int]], at_most: int
) -> None:
    number = next(sides.names)
    tenants = {each: f"{each}-{number}" for each in ("one", "two")}
    for tenant in tenants.values():
        sides.log.append(control(meters=METERS, tenant=tenant), at=NOON, **_of(tenant))
        known = [_event(str(each), each) for each in range(EVENTS)]
        sides.log.append(batch(*known, tenant=tenant), at=APPENDED, **_of(tenant))
    sides.apply(4)
    for what, which, id, variant in told:
        tenant, said = tenants[which], _event(str(id), variant)
        content = {
            "send": batch(said, tenant=tenant),
            "void": void(str(id), tenant=tenant),
            "amend": amendment(said, tenant=tenant),
        }[what]
        sides.log.append(content, at=APPENDED, **_of(tenant))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_correcting, "TOGETHER_MAX", at_most)
        sides.apply(len(told))
    names = list(tenants.values())
    for table, statement in ROWS.items():
        assert sides.together.rows(statement, names) == sides.alone.rows(statement, names), table
    assert not sides.together.rows(usage.COMPARED["usage_day"], names)
    assert not sides.together.rows(usage.COMPARED["usage_total"], names)
    assert sides.together.refused_corrections(names) == sides.alone.refused_corrections(names)


def _event(id: str, variant: int) -> Any:
    return event(id, **{"at": NOON, **VARIANTS[variant]})


def _of(tenant: str) -> dict[str, Any]:
    return {"key": tenant.encode()}
