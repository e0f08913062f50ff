"""One application serves the session; each test has tenants of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.edge import Client, Edge
from tests.stack import Stack


@pytest.fixture(scope="session")
def api_edge(stack: Stack) -> Iterator[Edge]:
    """The application on a database of its own."""
    made = Edge(stack.fresh())
    yield made
    made.close()


@pytest.fixture
def edge(api_edge: Edge) -> Edge:
    """The application, with nothing remembered of the tests before."""
    api_edge.broker.published.clear()
    api_edge.broker.error = None
    api_edge.lagging = False
    return api_edge


@pytest.fixture
def client(edge: Edge, tenant: str) -> Client:
    """An application of a registered tenant with a price book."""
    return edge.seller(tenant)


@pytest.fixture
def other(edge: Edge, tenant: str) -> Client:
    """An application of another tenant."""
    return edge.seller(f"{tenant}-other")
