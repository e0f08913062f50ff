"""How far the system is with a tenant, read from its projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from infra import postgres
from infra.settings import Settings
from projections import generation

_OPEN_WORK = """
SELECT (SELECT count(*)
          FROM subscriptions s
         WHERE s.tenant_id = t.tenant_id
           AND s.next_boundary <= t.test_clock)
     + (SELECT count(*)
          FROM runs r
         WHERE r.tenant_id = t.tenant_id
           AND r.state = 'awaited')
     + (SELECT count(*)
          FROM payments p
         WHERE p.tenant_id = t.tenant_id
           AND (p.state IN ('pending', 'unknown') OR p.next_attempt_at <= t.test_clock))
  FROM tenants t
 WHERE t.tenant_id = %(tenant)s
   AND t.test_clock = %(clock)s
"""

_ACCOUNTS = """
SELECT i.customer_id, count(*), sum(i.total_minor)::bigint, coalesce(sum(i.paid_minor), 0)::bigint
  FROM invoices i
 WHERE i.tenant_id = %(tenant)s
 GROUP BY i.customer_id
 ORDER BY i.customer_id
"""


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's invoices in sum; minor units."""

    customer: str
    invoices: int
    total_minor: int
    paid_minor: int


class Books:
    """Reads one tenant's projections as a worker does."""

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._pool = postgres.worker_pool(settings, size=1)
        self._tenant = tenant

    def settled(self, clock: datetime) -> bool:
        """Whether the test clock stands at `clock` and nothing that is due by it is left to do."""
        with self._billing() as tx:
            row = tx.execute(_OPEN_WORK, {"tenant": self._tenant, "clock": clock}).fetchone()
        return row is not None and row[0] == 0

    def accounts(self) -> list[Account]:
        """Every customer with invoices, by id."""
        with self._billing() as tx:
            rows = tx.execute(_ACCOUNTS, {"tenant": self._tenant}).fetchall()
        return [Account(*row) for row in rows]

    def close(self) -> None:
        """Give the connection back."""
        self._pool.close()

    @contextmanager
    def _billing(self) -> Iterator[postgres.Cursor]:
        with postgres.transaction(self._pool) as tx:
            generation.enter(tx, "billing")
            yield tx
