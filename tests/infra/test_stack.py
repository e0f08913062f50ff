"""The servers of the session, as the tests get them."""

from __future__ import annotations

from infra import postgres
from infra.settings import Settings
from tests.stack import Stack


def test_a_prepared_stack_has_topics_tables_and_roles(settings: Settings) -> None:
    with postgres.worker_pool(settings) as pool, postgres.transaction(pool) as tx:
        row = tx.execute("SELECT count(*) FROM app.generation").fetchone()
    assert row is not None
    assert row[0] == 2


def test_a_fresh_database_is_empty_and_apart(stack: Stack) -> None:
    first, second = stack.fresh(), stack.fresh()
    with postgres.connect(postgres.worker_url(first)) as connection:
        connection.execute("INSERT INTO app.lease (name, token) VALUES ('x', 1)")
    with postgres.connect(postgres.worker_url(second)) as connection:
        assert connection.execute("SELECT * FROM app.lease").fetchall() == []
