"""Keys are remembered for a moment, and for a while when Postgres does not answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from infra import postgres
from infra.errors import Transient
from services import api_keys
from services.api.callers import FRESH_S, TRUSTED_S, Callers
from tests.api.edge import Client, Edge


class Moved:
    """A clock that a test moves."""

    at_s = 0.0

    def monotonic_s(self) -> float:
        return self.at_s


def test_a_known_key_is_taken_while_postgres_is_away_and_no_other(edge: Edge, client: Client, other: Client) -> None:
    clock = Moved()
    callers = Callers(edge.pool, clock)  # type: ignore[arg-type]
    assert callers.known(client.key) is None
    found = callers.find(client.key)
    assert found is not None
    assert found.tenant == client.tenant
    assert callers.known(client.key) == found
    with postgres._pool(
        "postgresql://nobody@127.0.0.1:1/nothing", timedelta(seconds=1), 1, timedelta(seconds=0.2), pooler=False
    ) as nowhere:
        callers._pool = nowhere
        clock.at_s = FRESH_S
        assert callers.known(client.key) is None
        assert callers.find(client.key) == found
        assert callers.known(client.key) == found  # for a moment: nobody waits for the same outage again and again
        with pytest.raises(Transient):
            callers.find(other.key)
        clock.at_s = TRUSTED_S + FRESH_S
        with pytest.raises(Transient):
            callers.find(client.key)


def test_a_key_in_use_is_looked_up_beforehand_and_ends_within_two_seconds(edge: Edge, client: Client) -> None:
    clock = Moved()
    callers = Callers(edge.pool, clock)  # type: ignore[arg-type]
    found = callers.find(client.key)
    assert found is not None
    assert not callers.is_aging(client.key)
    clock.at_s = FRESH_S / 2
    assert callers.known(client.key) == found
    assert [callers.is_aging(client.key) for _ in range(3)] == [True, False, False]  # one of them looks
    with postgres.transaction(edge.workers) as tx:
        assert api_keys.revoke(tx, found.key_id)
    assert callers.known(client.key) == found
    assert callers.find(client.key) is None
    assert callers.known(client.key) is None
    assert not callers.is_aging(client.key)
