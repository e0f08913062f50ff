"""Bring the schema `app` (the tables that cannot be rebuilt) to the newest version, as the owner.

Each `migrations/NNNN_what.sql` runs once, in the order of its name and in a transaction of its own; a file that ran is
never edited. Projections are not migrated but rebuilt (`projections/generation.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra import postgres
from infra.errors import Misconfigured
from infra.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"

_PREPARE = """
CREATE SCHEMA IF NOT EXISTS app;
CREATE TABLE IF NOT EXISTS app.schema_migration (
    name        text        PRIMARY KEY,
    sha256      char(64)    NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
"""


def migrate(settings: Settings, folder: Path = MIGRATIONS) -> list[str]:
    """Apply what is missing; returns the names of the files that ran now. Several processes may call it at once.

    Raises:
        Transient: Postgres cannot be reached.
        Misconfigured: a file that ran was edited since, or the owner may not create what it needs.
    """
    ran = []
    with postgres.connect(postgres.owner_url(settings), autocommit=True) as connection:
        # Roles belong to the whole server, so two databases on it must not create them at the same time.
        connection.execute("SELECT pg_advisory_lock(hashtextextended('tallybook migrations', 0))")
        connection.execute(_PREPARE)
        applied: dict[str, str] = dict(connection.execute("SELECT name, sha256 FROM app.schema_migration").fetchall())
        for path in sorted(folder.glob("*.sql")):
            script = path.read_text()
            digest = hashlib.sha256(script.encode()).hexdigest()
            if path.name in applied:
                _same(path.name, digest, applied[path.name])
                continue
            with postgres.translated(), connection.transaction():
                connection.execute(script)
                connection.execute(
                    "INSERT INTO app.schema_migration (name, sha256) VALUES (%s, %s)", (path.name, digest)
                )
            ran.append(path.name)
        if ran:
            with connection.transaction(), connection.cursor() as tx:
                postgres.set_role_password(tx, postgres.WORKER, postgres.password_in(postgres.worker_url(settings)))
                postgres.set_role_password(tx, postgres.API, postgres.password_in(postgres.api_url(settings)))
    return ran


def _same(name: str, digest: str, applied: str) -> None:
    if digest != applied:
        raise Misconfigured(f"migration {name} was edited after it ran; restore it and write a new file instead")
