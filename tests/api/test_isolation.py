"""Tenants never see each other: the database enforces it, and the API cannot start as anything stronger."""

from __future__ import annotations

import pytest

from infra import postgres
from infra.errors import Misconfigured
from infra.settings import Settings
from services import api_keys
from services.api.callers import FRESH_S
from services.read_models import entered
from tests.api.edge import Client, Edge
from tests.waiting import eventually


def test_a_tenant_sees_nothing_of_another(client: Client, other: Client) -> None:
    client.post("/v1/customers", {"id": "mine", "name": "Mine"})
    other.post("/v1/customers", {"id": "theirs", "name": "Theirs"})
    other.post("/v1/subscriptions", {"id": "s", "customer": "theirs", "plan": "pro"})
    assert [each["id"] for each in client.get("/v1/customers").json()["data"]] == ["mine"]
    for path in ("/v1/customers/theirs", "/v1/subscriptions/s"):
        assert client.get(path).status_code == 404
        assert other.get(path).status_code == 200
    assert client.post("/v1/subscriptions/s/cancel", {}).status_code == 404
    assert client.get("/v1/subscriptions").json()["data"] == []


def test_the_same_ids_of_two_tenants_are_two_customers(client: Client, other: Client) -> None:
    client.post("/v1/customers", {"id": "c", "name": "Mine"}, Idempotency_Key="same")
    other.post("/v1/customers", {"id": "c", "name": "Theirs"}, Idempotency_Key="same")
    assert client.get("/v1/customers/c").json()["name"] == "Mine"
    assert other.get("/v1/customers/c").json()["name"] == "Theirs"


@pytest.fixture
def tables(edge: Edge) -> list[str]:
    """Every table with a tenant that the API's role may read."""
    with postgres.transaction(edge.pool) as tx:
        rows = (
            entered(tx)
            .execute(
                """
            SELECT n.nspname || '.' || c.relname
              FROM pg_class c
              JOIN pg_namespace n ON n.oid = c.relnamespace
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
             WHERE c.relkind IN ('r', 'p', 'v')
               AND n.nspname !~ '^pg_'
               AND has_schema_privilege(n.oid, 'USAGE')
               AND has_table_privilege(c.oid, 'SELECT')
               AND c.relname <> 'usage_rolled'  -- one row, of nobody by its CHECK: how far the sums by day reach
            """
            )
            .fetchall()
        )
    return [name for (name,) in rows]


def test_the_database_itself_shows_one_tenant_at_a_time(
    edge: Edge, client: Client, other: Client, tables: list[str]
) -> None:
    other.post("/v1/customers", {"id": "theirs", "name": "Theirs"})
    assert {"app.customer_profile", "app.api_key"} <= set(tables)
    for table in tables:
        with postgres.tenant_transaction(edge.pool, client.tenant) as tx:
            seen = tx.execute(f"SELECT DISTINCT tenant_id FROM {table}").fetchall()
            assert {tenant for (tenant,) in seen} <= {client.tenant}, table
        with postgres.transaction(edge.pool) as tx:
            assert tx.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_a_key_shows_its_own_row_and_no_other(edge: Edge, client: Client, other: Client) -> None:
    with postgres.transaction(edge.pool) as tx:
        found = api_keys.find(tx, client.key)
        assert found is not None
        assert found.tenant == client.tenant
        assert tx.execute("SELECT count(*) FROM app.api_key").fetchone() == (1,)


def test_a_revoked_key_a_wrong_secret_and_a_stranger_are_turned_away(edge: Edge, client: Client) -> None:
    head, id, secret = client.key.split("_", 2)
    swapped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for key in (f"{head}_{id}_{swapped}", f"{head}_{'0' * 12}_{secret}", "tb__", ""):
        assert client.get("/v1/customers", Authorization=f"Bearer {key}").status_code == 401
    assert client.get("/v1/customers", Authorization=f"Basic {client.key}").status_code == 401
    assert client.get("/v1/customers").status_code == 200
    with postgres.transaction(edge.workers) as tx:
        assert api_keys.revoke(tx, id)
    eventually(lambda: client.get("/v1/customers").status_code == 401, within_s=FRESH_S * 2)


def test_only_a_hash_of_a_key_is_stored(edge: Edge, client: Client) -> None:
    secret = client.key.split("_", 2)[2]
    with postgres.transaction(edge.workers) as tx:
        row = tx.execute("SELECT k::text FROM app.api_key k WHERE tenant_id = %s", (client.tenant,)).fetchone()
    assert row is not None
    assert secret not in row[0]


def test_the_api_refuses_to_start_as_anything_that_sees_more(fresh: Settings) -> None:
    for url in (postgres.owner_url(fresh), postgres.worker_url(fresh)):
        with pytest.raises(Misconfigured, match="the API needs tallybook_api"):
            postgres.api_pool(fresh.model_copy(update={"postgres_api": url}))
