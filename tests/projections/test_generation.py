"""Generations: made, followed, swapped at equal positions, and dropped."""

from __future__ import annotations

import threading

import pytest

from infra import postgres
from projections import generation
from projections.generation import Stale


def test_the_first_generations_exist_once(owner: postgres.Connection) -> None:
    with owner.transaction(), owner.cursor() as tx:
        assert generation.ensure(tx) == []
        assert [generation.existing(tx, each) for each in generation.SETS] == [[1], [1]]


def test_a_checkpoint_moves_only_from_where_it_stands(pool: postgres.Pool) -> None:
    with postgres.transaction(pool) as tx:
        generation.advance(tx, "billing", 1, "billing.events", 0, 0, 10)
        generation.advance(tx, "billing", 1, "billing.events", 0, 10, 25)
    for expected in (0, 10, 24, 26):
        with pytest.raises(Stale), postgres.transaction(pool) as tx:
            generation.advance(tx, "billing", 1, "billing.events", 0, expected, 30)
    with pytest.raises(Stale), postgres.transaction(pool) as tx:
        generation.advance(tx, "billing", 1, "billing.events", 1, 5, 30)  # never touched: it stands at 0
    with postgres.transaction(pool) as tx:
        assert generation.checkpoints(tx, "billing", 1, "billing.events") == {0: 25}


def test_the_swap_needs_equal_positions(owner: postgres.Connection, pool: postgres.Pool) -> None:
    with owner.transaction(), owner.cursor() as tx:
        number = generation.reserve(tx, "billing")
        generation.create(tx, "billing", number)
    with postgres.transaction(pool) as tx:
        generation.advance(tx, "billing", 1, "billing.events", 0, 0, 10)
    with pytest.raises(Stale), postgres.transaction(pool) as tx:
        generation.swap(tx, "billing", number)
    with postgres.transaction(pool) as tx:
        generation.advance(tx, "billing", number, "billing.events", 0, 0, 10)
        assert generation.swap(tx, "billing", number) == 1
    with postgres.transaction(pool) as tx:
        assert generation.enter(tx, "billing", writes=True) == number


def test_the_swap_waits_for_writers_and_writers_for_the_swap(owner: postgres.Connection, pool: postgres.Pool) -> None:
    with owner.transaction(), owner.cursor() as tx:
        number = generation.reserve(tx, "billing")
        generation.create(tx, "billing", number)
    entered, swapped = threading.Event(), threading.Event()

    def swap() -> None:
        entered.wait(60)
        with postgres.transaction(pool) as tx:
            generation.swap(tx, "billing", number)
        swapped.set()

    other = threading.Thread(target=swap)
    other.start()
    with postgres.transaction(pool) as tx:
        assert generation.enter(tx, "billing", writes=True) == 1
        entered.set()
        assert not swapped.wait(0.3)
        assert generation.held(tx, "billing") == 1
    other.join(60)
    assert swapped.is_set()
    with postgres.transaction(pool) as tx:
        assert generation.enter(tx, "billing", writes=True) == number


def test_old_generations_are_dropped_but_for_the_last(owner: postgres.Connection, pool: postgres.Pool) -> None:
    for _ in range(3):
        with owner.transaction(), owner.cursor() as tx:
            number = generation.reserve(tx, "usage")
            generation.create(tx, "usage", number)
        with postgres.transaction(pool) as tx:
            generation.swap(tx, "usage", number)
    with owner.transaction(), owner.cursor() as tx:
        assert generation.drop_old(tx, "usage") == [1, 2]
        assert generation.existing(tx, "usage") == [3, 4]
        with pytest.raises(Stale, match="in use"):
            generation.drop(tx, "usage", 4)


def test_both_sets_are_read_together(pool: postgres.Pool) -> None:
    with postgres.transaction(pool) as tx:
        generation.enter_all(tx)
        assert tx.execute("SELECT count(*) FROM invoices, usage_value").fetchall() == [(0,)]


def test_no_two_tables_share_a_name(owner: postgres.Connection) -> None:
    twice = owner.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname IN ('app', 'billing_g1', 'usage_g1') GROUP BY 1"
        " HAVING count(*) > 1"
    ).fetchall()
    assert twice == []
