"""What the billing projections say about a history, and that no delivery can make them say something else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from billing.catalog import PublishPriceBook
from billing.customer import SetJurisdiction
from billing.errors import CorruptHistory
from billing.ids import CustomerId
from billing.payment import DeclineKind
from billing.tenant import ChangeTenantSettings, Policies
from infra import postgres
from infra.settings import Settings
from projections import (
    billing_set,
    entitlements,
    generation,
    invoices,
    ledger,
    price_books,
    runs,
    subscriptions,
    tenants,
)
from projections.generation import Tx
from schemas.hashing import document_hash
from tests.projections.conftest import copied
from tests.projections.history import CALLS, PLAN, START, History, a_quarter
from tests.stack import Stack


@pytest.fixture
def other(stack: Stack, prepared: Settings) -> Iterator[postgres.Pool]:
    """Workers of another database."""
    for settings in copied(stack, prepared):
        with postgres.worker_pool(settings) as pool:
            yield pool


def project(pool: postgres.Pool, history: History, *, upto: int | None = None, batch: int = 50) -> None:
    events = history.events[:upto]
    for start in range(0, len(events), batch):
        with postgres.transaction(pool) as tx:
            generation.enter(tx, "billing", writes=True)
            billing_set.apply_batch(tx, events[start : start + batch])


def everything(tx: Tx) -> dict[str, list[Any]]:
    """All rows of all tables, sorted."""
    generation.enter(tx, "billing")
    tables = tx.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'billing_g1' ORDER BY 1").fetchall()
    return {
        table: sorted(tx.execute(f"SELECT t::text FROM {table} AS t").fetchall())  # names come from the catalogue
        for (table,) in tables
    }


def test_invoices_can_be_read_whole_and_by_columns(pool: postgres.Pool) -> None:
    history = a_quarter()
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        rows = tx.execute(
            "SELECT invoice_id, serial, total_minor, canonical_hash, status FROM invoices ORDER BY serial"
        ).fetchall()
        assert [serial for _, serial, *_ in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
        for invoice_id, _, total, canonical_hash, _ in rows:
            document = invoices.document(tx, "acme", invoice_id)
            assert document is not None
            assert document.total.minor == total
            assert document_hash(document) == canonical_hash
            assert runs.run(tx, "acme", invoice_id) == document.run
            assert invoices.by_number(tx, "acme", document.number) == document
            (printed,) = tx.execute(
                "SELECT sum(amount_minor) FROM invoice_lines WHERE invoice_id = %s", (invoice_id,)
            ).fetchall()
            assert printed[0] == document.subtotal.minor


def test_a_price_book_comes_back_as_it_was_published(pool: postgres.Pool) -> None:
    history = History().register()
    history.send(PublishPriceBook(meters=(CALLS,), plans=(PLAN,)))
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert price_books.book(tx, "acme", 1) == history.state.catalog.books[0]
        assert price_books.newest(tx, "acme") == history.state.catalog.books[1]
        with pytest.raises(LookupError, match="no price book 3"):
            price_books.book(tx, "acme", 3)


def test_a_decline_and_its_retry_leave_two_attempts_and_one_collected_payment(pool: postgres.Pool) -> None:
    history = History().register().subscribe("ann")
    (invoice,) = history.issue_awaited()
    history.decline(invoice).pay(invoice, attempt=2)
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT state, attempt, next_attempt_at FROM payments").fetchall() == [("collected", 2, None)]
        attempts = tx.execute("SELECT attempt, state, decline_code FROM payment_attempts ORDER BY attempt").fetchall()
        assert attempts == [(1, "declined", "insufficient_funds"), (2, "succeeded", None)]
        assert tx.execute("SELECT status, paid_minor FROM invoices").fetchall() == [("paid", invoice.total.minor)]


def test_granted_credit_is_spent_and_what_expired_is_gone(pool: postgres.Pool) -> None:
    history = History().register(taxes=()).subscribe("ann")
    history.issue_awaited()
    february = START + timedelta(days=31)
    history.grant("ann", "first", 700, priority=1).grant("ann", "kept", 300)
    history.grant("ann", "gone", 2000, expires_at=february, reason="spring")
    history.issue(history.close("ann"))
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        grants = tx.execute("SELECT grant_id, amount_minor, left_minor FROM customer_grants ORDER BY 1").fetchall()
        assert grants == [("first", 700, 0), ("gone", 2000, 0), ("kept", 300, 300)]
        assert tx.execute("SELECT currency, minor FROM customer_credits").fetchall() == [("USD", 300)]
        assert tx.execute("SELECT credit_applied_minor FROM invoices WHERE serial = 2").fetchall() == [(2000,)]
        books = {account: credit - debit for _, account, debit, credit in ledger.balances(tx, "acme")}
        assert (books["customer_credit"], books["promotion"]) == (300, -2300)
        assert tx.execute("SELECT count(*) FROM ledger_entries WHERE invoice_id IS NULL").fetchall() == [(8,)]


def test_where_a_customer_is_taxed_and_how_a_tenant_bills_follow_their_changes(pool: postgres.Pool) -> None:
    history = History().register().subscribe("ann")
    history.send(SetJurisdiction(customer_id=CustomerId("ann"), jurisdiction="US-NY"))
    policies = Policies(payment_terms_days=14, number_prefix="N-", retry_days=(2,), invoice_grace_minutes=5)
    history.send(ChangeTenantSettings(policies=policies))
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT jurisdiction FROM customers").fetchall() == [("US-NY",)]
        changed = "SELECT payment_terms_days, number_prefix, retry_days, invoice_grace_minutes FROM tenants"
        assert tx.execute(changed).fetchall() == [(14, "N-", [2], 5)]


def test_a_hard_decline_leaves_an_exhausted_payment_and_an_open_invoice(pool: postgres.Pool) -> None:
    history = History().register().subscribe("ann")
    (invoice,) = history.issue_awaited()
    history.decline(invoice, kind=DeclineKind.HARD)
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT state FROM payments").fetchall() == [("exhausted",)]
        assert tx.execute("SELECT status FROM invoices").fetchall() == [("open",)]


def test_the_trial_balance_sums_to_zero(pool: postgres.Pool) -> None:
    project(pool, a_quarter())
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        balances = ledger.balances(tx, "acme")
    assert {account for _, account, _, _ in balances} >= {"receivable", "cash", "revenue", "tax_payable"}
    assert sum(debit - credit for _, _, debit, credit in balances) == 0


def test_the_database_refuses_an_entry_that_does_not_balance(pool: postgres.Pool) -> None:
    project(pool, a_quarter())
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        with pytest.raises(psycopg.errors.CheckViolation, match="unbalanced"):
            tx.execute("UPDATE ledger_entries SET minor = minor + 1 WHERE account = 'cash'")


def test_a_repeated_delivery_changes_nothing(pool: postgres.Pool) -> None:
    history = a_quarter()
    project(pool, history)
    with postgres.transaction(pool) as tx:
        before = everything(tx)
    project(pool, history, batch=7)
    with postgres.transaction(pool) as tx:
        assert everything(tx) == before


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_the_size_of_batches_does_not_matter(pool: postgres.Pool, other: postgres.Pool, batch: int) -> None:
    history = a_quarter()
    project(pool, history)
    project(other, history, batch=batch)
    with postgres.transaction(pool) as one, postgres.transaction(other) as two:
        assert everything(one) == everything(two)


def test_a_gap_in_the_sequence_stops_and_leaves_nothing_behind(pool: postgres.Pool) -> None:
    history = a_quarter()
    project(pool, history, upto=10)
    history.events = history.events[12:]
    with pytest.raises(CorruptHistory, match="event 13 after 10; 2 are missing"):
        project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tenants.sequence(tx, "acme") == 10


def test_due_names_starts_and_period_ends_by_each_tenants_own_clock(pool: postgres.Pool) -> None:
    wall = START + timedelta(days=5000)
    graced = History("graced").register(policies=Policies(invoice_grace_minutes=60)).subscribe("ann")
    plain = History("plain").register().subscribe("bob")
    boundary = plain.state.subscriptions["sub_bob"].boundary  # type: ignore[index, union-attr]
    for history in (graced, plain):
        history.advance(boundary)
        project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert [(each.tenant, each.subscription_id) for each in subscriptions.due(tx, 10, wall)] == [
            ("plain", "sub_bob")
        ]
    graced.advance(boundary + timedelta(hours=1))
    project(pool, graced)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        found = subscriptions.due(tx, 10, wall)
    assert [(each.tenant, each.boundary, each.scheduled) for each in found] == [
        ("graced", boundary, False),
        ("plain", boundary, False),
    ]


def test_entitlements_follow_the_periods_and_end_with_the_subscription(pool: postgres.Pool) -> None:
    history = History().register().subscribe("ann")
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        (first,) = entitlements.of_all(tx, [("acme", "ann", "calls")])["acme", "ann", "calls"]
    assert (first.entitlement, first.revoked_at) == (PLAN.entitlements[1], None)
    assert first.entitlement.limit == Decimal(1000)
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        (second,) = entitlements.of_all(tx, [("acme", "ann", "calls")])["acme", "ann", "calls"]
    assert second.period.start == first.period.end
    assert second.version > first.version
    history.cancel("ann").issue_awaited()
    history.close("ann")
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        (ended,) = entitlements.of_all(tx, [("acme", "ann", "sso")])["acme", "ann", "sso"]
        assert entitlements.changed_since(tx, "acme", second.version) == [("ann", "calls"), ("ann", "sso")]
    assert ended.revoked_at == second.period.end
