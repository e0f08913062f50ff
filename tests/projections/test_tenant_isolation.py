"""Tenants never see each other: the database enforces it."""

from __future__ import annotations

import re

import psycopg
import pytest

from infra import postgres
from infra.settings import Settings
from projections import generation
from tests.projections.history import a_quarter
from tests.projections.test_billing_set import project

_OPEN_TABLES = """
SELECT n.nspname || '.' || c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname ~ '^(billing|usage)_g[0-9]+$'
   AND (c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
        OR c.relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false)
        OR c.relkind = 'm')
"""


def test_no_table_is_open_to_all_tenants(owner: postgres.Connection) -> None:
    assert owner.execute(_OPEN_TABLES).fetchall() == []
    tables = owner.execute("SELECT count(*) FROM pg_policies WHERE policyname = 'own_tenant'").fetchone()
    assert tables is not None
    assert tables[0] > 20  # the query above did look at something


def test_a_table_without_protection_is_found(owner: postgres.Connection) -> None:
    owner.execute("CREATE TABLE billing_g1.forgotten (tenant_id text PRIMARY KEY)")
    assert owner.execute(_OPEN_TABLES).fetchall() == [("billing_g1.forgotten",)]


LATER_IN_THE_KEY = re.compile(r"usage_g1\.usage_(identity(_[0-7])?|day|window(_[0-9]{4}_[0-9]{2})?)_pkey")
"""Keys whose first column is unique by itself but for chance, and which every event touches: docs/decisions/0030."""


def test_every_key_begins_with_the_tenant(owner: postgres.Connection) -> None:
    owner.execute("SELECT usage_g1.usage_month('2026-03-01')")
    keys = owner.execute(
        """
        SELECT i.indexrelid::regclass::text,
               array_position(array_agg(a.attname ORDER BY array_position(i.indkey::smallint[], a.attnum)), 'tenant_id')
          FROM pg_index i
          JOIN pg_class c ON c.oid = i.indrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
         WHERE n.nspname ~ '^(billing|usage)_g[0-9]+$'
           AND i.indisunique
         GROUP BY i.indexrelid
        """
    ).fetchall()
    assert [name for name, place in keys if place is None] == []
    assert [name for name, place in keys if place != 1 and not LATER_IN_THE_KEY.fullmatch(name)] == []


def test_the_api_sees_its_tenant_and_nothing_else(fresh: Settings, pool: postgres.Pool, api: postgres.Pool) -> None:
    for tenant in ("acme", "bolt"):
        project(pool, a_quarter(tenant))
    with postgres.transaction(api) as tx:
        generation.enter(tx, "billing")
        tables = [name for (name,) in tx.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'billing_g1'")]
        tables.append("trial_balance")
    for table in tables:
        with postgres.tenant_transaction(api, "acme") as tx:
            generation.enter(tx, "billing")
            seen = tx.execute(f"SELECT DISTINCT tenant_id FROM {table}").fetchall()
            assert seen == [("acme",)], table
        with postgres.transaction(api) as tx:
            generation.enter(tx, "billing")
            assert tx.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)], table


def as_acme(api: postgres.Pool, statement: str) -> None:
    with postgres.tenant_transaction(api, "acme") as tx:
        generation.enter(tx, "billing")
        tx.execute(statement)


def test_the_api_writes_nothing(fresh: Settings, api: postgres.Pool) -> None:
    for statement in (
        "INSERT INTO customer_credits (tenant_id, customer_id, currency, minor) VALUES ('acme', 'ann', 'USD', 1)",
        "UPDATE invoices SET status = 'paid'",
        "DELETE FROM ledger_entries",
        "TRUNCATE tenants",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_acme(api, statement)


def test_a_table_without_a_tenant_cannot_be_created(
    owner: postgres.Connection, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    script = Path(str(tmp_path)) / "open.sql"
    script.write_text("CREATE TABLE open_to_all (id integer PRIMARY KEY)")
    monkeypatch.setattr(generation, "scripts", lambda _set: [script])
    with pytest.raises(ValueError, match="has no tenant_id"), owner.transaction(), owner.cursor() as tx:
        generation.create(tx, "billing", 7)
