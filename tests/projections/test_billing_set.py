from __future__ import annotations

import pytest

from billing.errors import CorruptHistory
from infra import postgres
from projections import billing_set, generation, invoices, price_books, runs, subscriptions, tenants
from tests.projections.history import History, a_quarter

pytestmark = pytest.mark.stack


def project(pool: postgres.Pool, history: History, batch: int = 50) -> None:
    for start in range(0, len(history.events), batch):
        with postgres.transaction(pool) as tx:
            generation.enter(tx, "billing", writes=True)
            billing_set.apply_batch(tx, history.events[start : start + batch])


def test_a_quarter_of_a_tenant_can_be_read(pool: postgres.Pool) -> None:
    history = a_quarter()
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tenants.sequence(tx, "acme") == len(history.events)
        assert price_books.book(tx, "acme", 1) == history.state.catalog.books[0]
        rows = tx.execute("SELECT invoice_id, status, total_minor FROM invoices ORDER BY serial").fetchall()
        for invoice_id, _, total in rows:
            document = invoices.document(tx, "acme", invoice_id)
            assert document is not None
            assert document.total.minor == total
            assert runs.run(tx, "acme", invoice_id) == document.run
        print(rows)
