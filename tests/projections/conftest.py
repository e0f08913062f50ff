"""A database of each test's own, copied from one that was prepared once, and pools on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from infra import kafka, postgres
from infra.kafka import KafkaConfig
from infra.migrate import migrate
from infra.settings import Settings
from projections import generation
from services import prepare
from tests.stack import Stack
from tests.waiting import eventually


@pytest.fixture(scope="session")
def prepared(stack: Stack) -> Iterator[Settings]:
    """A database with all migrations and the first generations, to copy from."""
    settings = _beside(stack.settings, f"template{uuid.uuid4().hex[:12]}")
    postgres.create_database(stack.settings.postgres, _name(settings))
    migrate(settings)
    with postgres.connect(settings.postgres) as connection, connection.cursor() as tx:
        generation.ensure(tx)
        # Whoever drops a database ends the sessions in it, and may do so to roles whose member it is.
        tx.execute("GRANT tallybook_worker, tallybook_api TO CURRENT_USER")
    yield settings
    postgres.drop_database(stack.settings.postgres, _name(settings))


@pytest.fixture
def fresh(stack: Stack, prepared: Settings) -> Iterator[Settings]:
    """Settings with a prepared database of this test's own. Its topics exist where `topics` is used."""
    yield from copied(stack, prepared)


def copied(stack: Stack, prepared: Settings) -> Iterator[Settings]:
    """A copy of the prepared database, for as long as it is needed."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with postgres.connect(stack.settings.postgres, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name} TEMPLATE {_name(prepared)}")
    yield _beside(stack.settings, name).model_copy(update={"topic_prefix": f"{name}.", "data": stack.data / name})
    # The server notices a little later that the last pool is closed, and the owner may not end others' sessions.
    eventually(lambda: postgres.drop_database(stack.settings.postgres, name) is None)


@pytest.fixture
def topics(fresh: Settings) -> None:
    """The topics of this test's own."""
    kafka.ensure_topics(KafkaConfig.of(fresh), prepare.topics(fresh))


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


def _beside(settings: Settings, database: str) -> Settings:
    url = postgres.with_database(settings.postgres, database)
    return settings.model_copy(update={"postgres": url, "postgres_worker": "", "postgres_api": ""})


def _name(settings: Settings) -> str:
    return settings.postgres.rsplit("/", 1)[1]
