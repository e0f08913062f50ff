"""Fixtures of every test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis_settings

from infra.settings import Settings
from tests.stack import Stack, open_stack

# A deadline for one example measures the machine and what else it does, not the code; pytest's timeout stays.
hypothesis_settings.register_profile("tallybook", deadline=None)
if hypothesis_settings.get_current_profile_name() == "default":
    hypothesis_settings.load_profile("tallybook")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka, Postgres and Valkey for the whole session, with a prepared database and topics."""
    with open_stack() as running:
        yield running


@pytest.fixture(scope="session")
def settings(stack: Stack) -> Settings:
    """The settings of the session's stack. Keep apart from other tests by `tenant`."""
    return stack.settings


@pytest.fixture
def fresh(stack: Stack) -> Settings:
    """Settings with an empty database and topics of this test's own, prepared."""
    return stack.fresh()


@pytest.fixture
def tenant() -> str:
    """A tenant id that no other test uses."""
    return f"tenant-{uuid.uuid4().hex[:12]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever uses the stack is marked so: `make check` leaves it out.

    Where several processes share the files, those with the stack come first: they wait most, and the light files then
    fill what is left.
    """
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")
    if hasattr(config, "workerinput"):
        waiting = {item.path for item in items if item.get_closest_marker("stack") is not None}
        items.sort(key=lambda item: item.path not in waiting)
