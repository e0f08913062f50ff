"""The log is the truth: a rebuild gives every row again, and a row that was tampered with is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra import kafka, postgres
from infra.errors import Conflict
from infra.faust_app import Batch
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import billing_set, generation
from services import projector, replay
from services.replay import Compared, Scratch
from tests.projections.history import History, a_quarter
from tests.projections.log import append

pytestmark = pytest.mark.usefixtures("topics")

TENANTS = ("acme", "bolt", "crux")


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress is shown."""


def project_log(settings: Settings, pool: postgres.Pool) -> None:
    """Bring the live generation to the end of the log, as the projector does."""
    config = KafkaConfig.of(settings)
    partitions = range(settings.billing_partitions)
    with postgres.transaction(pool) as tx:
        number = generation.current(tx, "billing")
        starts = dict.fromkeys(partitions, 0) | generation.checkpoints(tx, "billing", number, billing_set.TOPIC)
    for records in kafka.scan(config, billing_set.TOPIC, starts):
        for partition in partitions:
            if mine := [each for each in records if each.partition == partition]:
                projector.apply(pool, Batch(mine, starts[partition]))
                starts[partition] = mine[-1].offset + 1


@pytest.fixture
def projected(fresh: Settings, pool: postgres.Pool) -> Iterator[Settings]:
    append(fresh, *(a_quarter(tenant).events for tenant in TENANTS))
    project_log(fresh, pool)
    return fresh


def compared(settings: Settings, pool: postgres.Pool) -> dict[str, Compared]:
    (billing, _) = replay.subjects(settings)
    scratch = Scratch(settings, pool, billing, quiet)
    try:
        with scratch.snapshot() as (tx, live, _at):
            return {each.table: each for each in replay.compare(tx, scratch, live, quiet)}
    finally:
        scratch.drop()


def test_a_rebuild_from_the_log_gives_every_row_again(projected: Settings, pool: postgres.Pool) -> None:
    tables = compared(projected, pool)
    assert [each for each in tables.values() if each.differing] == []
    assert tables["invoices"].rows == 8 * len(TENANTS)
    assert tables["tenants"].rows == len(TENANTS)
    assert {table for table, each in tables.items() if not each.rows} == set()


def test_one_amount_changed_by_hand_is_found(projected: Settings, pool: postgres.Pool) -> None:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        tx.execute(
            "UPDATE invoice_lines SET amount_minor = amount_minor + 1"
            " WHERE (tenant_id, invoice_id, line) = (SELECT tenant_id, invoice_id, line FROM invoice_lines LIMIT 1)"
        )
    tables = compared(projected, pool)
    assert {table for table, each in tables.items() if each.differing} == {"invoice_lines"}
    found = tables["invoice_lines"]
    assert (found.missing, found.unexplained) == (1, 1)
    assert [text.split(":")[0] for text in found.examples] == ["missing", "unexplained"]


def test_a_row_that_was_removed_and_one_that_was_invented_are_found(projected: Settings, pool: postgres.Pool) -> None:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        tx.execute("DELETE FROM runs WHERE invoice_id = (SELECT min(invoice_id) FROM runs)")
        tx.execute("INSERT INTO customer_credits (tenant_id, customer_id, currency, minor) VALUES ('acme','x','EUR',1)")
    tables = compared(projected, pool)
    assert {t: (c.missing, c.unexplained) for t, c in tables.items() if c.differing} == {
        "runs": (1, 0),
        "customer_credits": (0, 1),
    }


def test_verify_leaves_nothing_behind(projected: Settings, pool: postgres.Pool, owner: postgres.Connection) -> None:
    compared(projected, pool)
    with owner.cursor() as tx:
        assert generation.existing(tx, "billing") == [1]
        assert tx.execute("SELECT DISTINCT generation FROM app.checkpoint").fetchall() == [(1,)]


def test_what_a_killed_replay_left_behind_is_removed_by_the_next(
    projected: Settings, pool: postgres.Pool, owner: postgres.Connection
) -> None:
    (billing, _) = replay.subjects(projected)
    Scratch(projected, pool, billing, quiet)  # never dropped
    assert not any(each.differing for each in compared(projected, pool).values())
    with owner.cursor() as tx:
        assert generation.existing(tx, "billing") == [1]


def test_the_live_projection_goes_on_while_it_is_compared(projected: Settings, pool: postgres.Pool) -> None:
    (billing, _) = replay.subjects(projected)
    scratch = Scratch(projected, pool, billing, quiet)
    try:
        with scratch.snapshot() as (tx, live, _at):
            append(projected, a_quarter("late").events)
            project_log(projected, pool)  # would wait for ever if the comparison kept the writers out
            assert not any(each.differing for each in replay.compare(tx, scratch, live, quiet))
        with postgres.transaction(pool) as tx:
            generation.enter(tx, "billing")
            assert tx.execute("SELECT count(*) FROM tenants").fetchall() == [(len(TENANTS) + 1,)]
    finally:
        scratch.drop()


def test_a_rebuilt_generation_takes_over_and_the_projector_goes_on_in_it(
    projected: Settings, pool: postgres.Pool
) -> None:
    (billing, _) = replay.subjects(projected)
    scratch = Scratch(projected, pool, billing, quiet)
    append(projected, a_quarter("late").events)
    project_log(projected, pool)  # the live one moves on after the rebuild began
    assert scratch.swap() == 1
    append(projected, History("later").register().events)
    project_log(projected, pool)
    with postgres.transaction(pool) as tx:
        assert generation.enter(tx, "billing") == scratch.number
        known = [tenant for (tenant,) in tx.execute("SELECT tenant_id FROM tenants ORDER BY 1")]
        assert known == sorted([*TENANTS, "late", "later"])


def test_two_replays_do_not_run_at_once(projected: Settings) -> None:
    with replay.alone(projected), pytest.raises(Conflict, match="another replay"), replay.alone(projected):
        pass
    with replay.alone(projected):
        pass
