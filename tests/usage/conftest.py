"""A store on a database of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import Measured, Meter
from billing.period import Period
from infra import failpoints, postgres
from infra.faust_app import Batch
from infra.kafka import Record
from infra.settings import Settings
from projections import generation, usage, usage_read
from services.usage_aggregator import UsageStore
from services.usage_judged import Refusal
from tests.stack import Stack
from tests.usage.making import NOON, TENANT, Home

ACME = TenantId(TENANT)
C1 = CustomerId("c1")
DAY = Period(NOON - timedelta(hours=12), NOON + timedelta(hours=12))


class Bench:
    """One store on a database of its own."""

    def __init__(self, settings: Settings) -> None:
        self.owner = postgres.owner_url(settings)
        self.pool = postgres.worker_pool(settings, size=3)
        self.refused: list[Refusal] = []
        self.store = self.another()

    def another(self, home: int = 0, **more: Any) -> UsageStore:
        """One more worker's store; `home`: the partition where all tenants are."""
        return UsageStore(self.pool, Home(1, home), self.refused.extend, **more)

    def apply(self, records: Sequence[Record], follows: int | None = None, store: UsageStore | None = None) -> None:
        (store or self.store).apply(Batch(records, records[0].offset if follows is None else follows))

    def rows(self, statement: str) -> list[Any]:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            return tx.execute(statement).fetchall()

    def quantities(
        self, needs: Sequence[Need], customer: str = "c1", transactions: Sequence[str] | None = None
    ) -> dict[Need, Measured]:
        with postgres.transaction(self.pool) as tx:
            generation.enter_all(tx)
            return usage_read.quantities(tx, ACME, CustomerId(customer), needs, transactions=transactions)

    def totals(self, need: Need, customers: Sequence[str]) -> dict[str, Decimal]:
        """Totals that are not nothing, read together."""
        with postgres.transaction(self.pool) as tx:
            generation.enter_all(tx)
            found = usage_read.totals(tx, ACME, [CustomerId(each) for each in customers], need)
            return {str(customer): total for customer, total in found.items() if total}

    def measured(self, meter: Meter, period: Period = DAY, below: int = 10**9) -> Measured:
        need = Need(meter, period, (PartitionPosition(partition=0, offset=below),))
        return self.quantities([need])[need]

    def fates(self) -> usage_read.FateCounts:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            return usage_read.fates(tx)[TENANT]


@pytest.fixture(scope="module")
def prepared(stack: Stack) -> Settings:
    """A database of this file's own."""
    return stack.fresh()


@pytest.fixture
def bench(prepared: Settings) -> Iterator[Bench]:
    with postgres.connect(postgres.owner_url(prepared)) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
        tx.execute("UPDATE app.generation SET current = %s WHERE projection_set = %s", (number, usage.SET))
    made = Bench(prepared)
    yield made
    made.pool.close()
    failpoints.configure("")


@dataclass
class Explained:
    """A transaction that counts the rows which its statements look at in tables of a name, or whose name begins so."""

    tx: Any
    table: str
    rows: int = 0
    plans: list[str] = field(default_factory=list)

    def execute(self, statement: str, given: Any = None) -> Any:
        (plan,) = self.tx.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", given).fetchone()
        self.rows += self._looked_at(plan[0]["Plan"])
        self.plans.append(json.dumps(plan, indent=1))
        return self.tx.execute(statement, given)

    def _looked_at(self, plan: Mapping[str, Any]) -> int:
        below = sum(self._looked_at(each) for each in plan.get("Plans", ()))
        if not plan.get("Relation Name", "").startswith(self.table):
            return below
        each_time = sum(plan.get(rows, 0) for rows in _LOOKED_AT)
        return below + int(each_time * plan["Actual Loops"])


_LOOKED_AT = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
