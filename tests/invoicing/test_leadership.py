"""One scheduler leads; another takes over when it is gone, and the old one notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from infra import postgres
from infra.settings import Settings
from services.scheduler import PostgresLeadership
from tests.waiting import eventually

Make = Callable[[], PostgresLeadership]


@pytest.fixture
def candidate(fresh: Settings) -> Iterator[Make]:
    made: list[PostgresLeadership] = []

    def make() -> PostgresLeadership:
        made.append(PostgresLeadership(postgres.worker_url(fresh)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_one_of_two_leads_until_it_lets_go(candidate: Make) -> None:
    first, second = candidate(), candidate()
    assert first.held()
    assert not second.held()
    assert first.held()
    first.close()
    assert eventually(second.held)  # the server notices a little later that the first one's line is closed
    assert not first.held()


def test_another_takes_over_when_the_leaders_connection_dies_and_the_old_one_stands_back(
    candidate: Make, fresh: Settings
) -> None:
    first, second = candidate(), candidate()
    assert first.held()
    with postgres.connect(postgres.worker_url(fresh), autocommit=True) as worker:  # a role may end its own
        worker.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert eventually(second.held)

    def stood_back() -> bool:
        return not first.held()

    assert eventually(stood_back)
    assert second.held()


def test_a_leader_that_was_deposed_without_losing_its_connection_stands_back(candidate: Make, fresh: Settings) -> None:
    first = candidate()
    assert first.held()
    with postgres.connect(fresh.postgres, autocommit=True) as owner:
        owner.execute("UPDATE app.lease SET token = token + 1 WHERE name = 'scheduler'")
    assert not first.held()
