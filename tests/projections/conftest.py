"""Pools on a database of each test's own, with the roles and the first generations of a fresh system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra import postgres
from infra.settings import Settings


@pytest.fixture
def pool(fresh: Settings) -> Iterator[postgres.Pool]:
    """Connections of the workers' role."""
    made = postgres.worker_pool(fresh)
    yield made
    made.close()


@pytest.fixture
def api(fresh: Settings) -> Iterator[postgres.Pool]:
    """Connections of the API's role."""
    made = postgres.api_pool(fresh)
    yield made
    made.close()


@pytest.fixture
def owner(fresh: Settings) -> Iterator[postgres.Connection]:
    """A connection of the owner of schemas and tables."""
    with postgres.connect(postgres.owner_url(fresh), autocommit=True) as connection:
        yield connection
