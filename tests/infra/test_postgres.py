"""Roles, transactions, leases and migrations, on the real server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import postgres
from infra.errors import Conflict, Misconfigured, Transient
from infra.migrate import MIGRATIONS, migrate
from infra.settings import Settings
from tests.stack import Stack

NOTES = """
CREATE TABLE app.note (tenant_id text NOT NULL, words text NOT NULL);
ALTER TABLE app.note ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.note FORCE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON app.note TO tallybook_worker USING (true);
CREATE POLICY own_tenant ON app.note TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));
GRANT SELECT, INSERT ON app.note TO tallybook_worker, tallybook_api;
"""


@pytest.fixture(scope="module")
def own(stack: Stack) -> Settings:
    """A database of this module's own, with two tenants' notes."""
    settings = stack.fresh()
    with postgres.connect(postgres.owner_url(settings)) as owner:
        owner.execute(NOTES)
    with postgres.connect(postgres.worker_url(settings)) as worker:
        worker.execute("INSERT INTO app.note VALUES ('a', 'of a'), ('b', 'of b')")
    return settings


def notes(tx: postgres.Cursor) -> list[str]:
    return sorted(row[0] for row in tx.execute("SELECT words FROM app.note").fetchall())


def test_a_tenant_transaction_sees_one_tenant_and_nothing_of_the_last(own: Settings) -> None:
    with postgres.api_pool(own, size=1) as pool:
        with postgres.tenant_transaction(pool, "a") as tx:
            assert notes(tx) == ["of a"]
        with postgres.transaction(pool) as tx:
            assert notes(tx) == []
        with postgres.tenant_transaction(pool, "b") as tx:
            assert notes(tx) == ["of b"]


def test_the_api_role_cannot_write_for_another_tenant(own: Settings) -> None:
    with (
        postgres.api_pool(own, size=1) as pool,
        pytest.raises(Exception, match="row-level security"),
        postgres.tenant_transaction(pool, "a") as tx,
    ):
        tx.execute("INSERT INTO app.note VALUES ('b', 'forged')")


def test_a_connection_goes_back_without_its_settings(own: Settings) -> None:
    with postgres.api_pool(own, size=1) as pool:
        with postgres.transaction(pool) as tx:
            tx.execute("SET app.tenant = 'a'")
            assert notes(tx) == ["of a"]
        with postgres.transaction(pool) as tx:
            assert notes(tx) == []


def test_the_workers_role_sees_all_tenants(own: Settings) -> None:
    with postgres.worker_pool(own) as pool, postgres.transaction(pool) as tx:
        assert notes(tx) == ["of a", "of b"]


@pytest.mark.parametrize(
    ("role", "reason"), [(postgres.owner_url, "owns app"), (postgres.worker_url, "tallybook_worker")]
)
def test_the_api_refuses_a_role_that_policies_do_not_hold_back(
    own: Settings, role: Callable[[Settings], str], reason: str
) -> None:
    stronger = own.model_copy(update={"postgres_api": role(own)})
    with pytest.raises(Misconfigured, match=f"TALLYBOOK_POSTGRES_API: role tallybook_[a-z]+ .*{reason}"):
        postgres.api_pool(stronger)


def test_a_wrong_password_is_bad_configuration_and_a_closed_port_is_not(own: Settings) -> None:
    host = own.postgres.rpartition("@")[2]
    with pytest.raises(Misconfigured):
        postgres.connect(f"postgresql://tallybook_api:wrong@{host}")
    with pytest.raises(Transient):
        postgres.connect("postgresql://tallybook_api:wrong@127.0.0.1:1/x")


def test_one_lease_has_one_holder_and_each_holder_a_higher_token(own: Settings) -> None:
    with postgres.connect(postgres.worker_url(own), autocommit=True) as first:
        token = postgres.try_lease(first, "scheduler")
        with postgres.connect(postgres.worker_url(own), autocommit=True) as second:
            assert postgres.try_lease(second, "scheduler") is None
    with postgres.connect(postgres.worker_url(own), autocommit=True) as third:
        assert token is not None
        assert postgres.try_lease(third, "scheduler") == token + 1


def test_who_waits_too_long_for_a_row_hears_of_a_conflict(own: Settings) -> None:
    def wait_for_it() -> None:
        with postgres.transaction(pool) as theirs:
            theirs.execute("SET LOCAL lock_timeout = '50ms'")
            theirs.execute("INSERT INTO app.lease VALUES ('race', 2)")

    with postgres.worker_pool(own) as pool, postgres.transaction(pool) as mine:
        mine.execute("INSERT INTO app.lease VALUES ('race', 1)")
        with pytest.raises(Conflict):
            wait_for_it()


def test_migrations_run_once_even_if_two_start_together(stack: Stack) -> None:
    name = "t_twice"
    owner = postgres.create_database(stack.settings.postgres, name)
    settings = stack.settings.model_copy(update={"postgres": owner})
    ran: list[list[str]] = []
    both = [threading.Thread(target=lambda: ran.append(migrate(settings))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    postgres.drop_database(stack.settings.postgres, name)
    assert sorted(map(len, ran)) == [0, len(list(MIGRATIONS.glob("*.sql")))]


def test_an_edited_migration_is_refused(stack: Stack, tmp_path: Path) -> None:
    owner = postgres.create_database(stack.settings.postgres, "t_edited")
    settings = stack.settings.model_copy(update={"postgres": owner})
    file = tmp_path / "0001_first.sql"
    file.write_text((MIGRATIONS / "0001_roles_and_generations.sql").read_text())
    migrate(settings, tmp_path)
    file.write_text(file.read_text() + "-- edited\n")
    with pytest.raises(Misconfigured, match=r"0001_first\.sql was edited"):
        migrate(settings, tmp_path)
    postgres.drop_database(stack.settings.postgres, "t_edited")
