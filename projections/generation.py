"""Generations: each projection set lives in a Postgres schema of its own, `billing_g1`, `usage_g4`, ...

`app.generation` points at the current one. Writers and readers follow the pointer inside their transaction, so that a
rebuilt generation takes over between two transactions and nobody has to be restarted. Making and dropping schemas
needs the owner's role; following the pointer, checkpoints and the swap need the workers' role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from psycopg import Cursor

Tx = Cursor[Any]

SETS: Final = ("billing", "usage")
BILLING: Final = (
    "tenants",
    "price_books",
    "customers",
    "subscriptions",
    "runs",
    "invoices",
    "payments",
    "ledger",
    "entitlements",
)
"""Files of the set `billing`, in the order in which they are created and applied."""

_FOLDER = Path(__file__).parent
_SCHEMA = re.compile(r"(?P<set>[a-z]+)_g(?P<number>[1-9][0-9]*)\Z")


class Stale(Exception):
    """Somebody else moved the position or the pointer first: roll back, read it again and go on from there."""


class NoGeneration(Exception):
    """The projection set does not exist yet: an owner has to call `ensure`."""


def schema(projection_set: str, generation: int) -> str:
    """Name of the schema that holds `generation` of the set."""
    if projection_set not in SETS:
        raise ValueError(f"{projection_set!r} is no projection set; there are: {', '.join(SETS)}")
    return f"{projection_set}_g{int(generation)}"


def current(tx: Tx, projection_set: str) -> int:
    """The generation that everybody reads and writes now.

    Raises:
        NoGeneration: there is none yet.
    """
    row = tx.execute("SELECT current FROM app.generation WHERE projection_set = %s", (projection_set,)).fetchone()
    if row is None:
        raise NoGeneration(f"projection set {projection_set} does not exist yet")
    return int(row[0])


def enter(tx: Tx, projection_set: str, generation: int | None = None, *, writes: bool = False) -> int:
    """Resolve table names in `generation` (None: the current one) until the transaction ends; returns its number.

    A writer passes `writes=True`: it then holds the pointer until it commits, and a swap waits for it.

    Raises:
        NoGeneration: the set does not exist yet.
    """
    if generation is None:
        generation = held(tx, projection_set) if writes else current(tx, projection_set)
    _search(tx, schema(projection_set, generation))
    return generation


def enter_all(tx: Tx, generations: Mapping[str, int | None] | None = None) -> None:
    """Resolve table names in several sets at once, for readers; by default in the current generation of each."""
    wanted = generations if generations is not None else dict.fromkeys(SETS)
    names = [schema(each, current(tx, each) if number is None else number) for each, number in wanted.items()]
    _search(tx, *names)


def _search(tx: Tx, *schemas: str) -> None:
    # Of the transaction only: a pooled connection takes nothing of it to its next borrower.
    tx.execute("SELECT set_config('search_path', %s, true)", (", ".join((*schemas, "app")),))


def held(tx: Tx, projection_set: str) -> int:
    """The current generation, which stays current until the transaction ends."""
    row = tx.execute(_HOLD, (projection_set,)).fetchone()
    if row is None:
        raise NoGeneration(f"projection set {projection_set} does not exist yet")
    return int(row[0])


# Many writers hold the pointer together; the one who swaps (FOR UPDATE) waits for all of them.
_HOLD = "SELECT current FROM app.generation WHERE projection_set = %s FOR KEY SHARE"


def lock(tx: Tx, projection_set: str) -> int:
    """Wait for all writers of the set and keep them out until the transaction ends; returns the current generation."""
    row = tx.execute(
        "SELECT current FROM app.generation WHERE projection_set = %s FOR UPDATE", (projection_set,)
    ).fetchone()
    if row is None:
        raise NoGeneration(f"projection set {projection_set} does not exist yet")
    return int(row[0])


def ensure(tx: Tx) -> list[str]:
    """Create generation 1 of each set that has none; returns the names of the new schemas. Several may call it."""
    made = []
    tx.execute("SELECT pg_advisory_xact_lock(hashtextextended('tallybook generations', 0))")
    for projection_set in SETS:
        known = tx.execute("SELECT 1 FROM app.generation WHERE projection_set = %s", (projection_set,)).fetchone()
        if known is None:
            made.append(create(tx, projection_set, 1))
            tx.execute(
                "INSERT INTO app.generation (projection_set, current, newest) VALUES (%s, 1, 1)", (projection_set,)
            )
    return made


def reserve(tx: Tx, projection_set: str) -> int:
    """The number of the next generation; no number is given twice, so a dropped one never comes back."""
    row = tx.execute(
        "UPDATE app.generation SET newest = newest + 1 WHERE projection_set = %s RETURNING newest", (projection_set,)
    ).fetchone()
    if row is None:
        raise NoGeneration(f"projection set {projection_set} does not exist yet")
    return int(row[0])


def create(tx: Tx, projection_set: str, generation: int) -> str:
    """Make the empty tables of `generation`, shut to everybody but the workers and, tenant by tenant, the API.

    Raises:
        ValueError: a table has no `tenant_id`, or a view would show all tenants to everybody.
    """
    name = schema(projection_set, generation)
    tx.execute(f"CREATE SCHEMA {name}")
    _search(tx, name)
    for path in scripts(projection_set):
        tx.execute(path.read_text())
    tx.execute(f"GRANT USAGE ON SCHEMA {name} TO tallybook_worker, tallybook_api")
    for table, kind, has_tenant, is_safe in tx.execute(_RELATIONS, (name,)).fetchall():
        if not has_tenant:
            raise ValueError(f"{name}.{table} has no tenant_id: row-level security could not tell tenants apart")
        if not is_safe:
            raise ValueError(f"view {name}.{table} needs WITH (security_invoker = true), or it shows all tenants")
        if kind in ("r", "p"):
            tx.execute(_PROTECT.format(table=f'{name}."{table}"'))
        else:
            tx.execute(f'GRANT SELECT ON {name}."{table}" TO tallybook_worker, tallybook_api')
    tx.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {name} TO tallybook_worker")
    return name


def scripts(projection_set: str) -> list[Path]:
    """The .sql files of the set, in the order in which they run."""
    if projection_set == "billing":
        return [_FOLDER / f"{each}.sql" for each in BILLING]
    return sorted(_FOLDER.glob(f"{projection_set}*.sql"))


_RELATIONS = """
SELECT c.relname,
       c.relkind::text,
       EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped),
       c.relkind IN ('r', 'p') OR coalesce('security_invoker=true' = ANY (c.reloptions), false)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s
   AND c.relkind IN ('r', 'p', 'v', 'm')
 ORDER BY c.relname
"""

# The owner is forced too: only a role that is named here sees a row.
_PROTECT = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY all_tenants ON {table} TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON {table} FOR SELECT TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO tallybook_worker;
GRANT SELECT ON {table} TO tallybook_api;
"""


def checkpoints(tx: Tx, projection_set: str, generation: int, topic: str) -> dict[int, int]:
    """Partition -> first offset of `topic` that `generation` has not applied; a partition never touched is missing."""
    return dict(
        tx.execute(
            """
            SELECT partition, next_offset
              FROM app.checkpoint
             WHERE projection = %s AND generation = %s AND topic = %s
             ORDER BY partition
            """,
            (projection_set, generation, topic),
        ).fetchall()
    )


def held_checkpoints(tx: Tx, projection_set: str, generation: int, topic: str) -> dict[int, int]:
    """As `checkpoints`. Waits for the batches on their way; whoever moves one waits until the transaction ends."""
    return dict(tx.execute(_HOLD_CHECKPOINTS, (projection_set, generation, topic)).fetchall())


_HOLD_CHECKPOINTS = """
SELECT partition, next_offset
  FROM app.checkpoint
 WHERE projection = %s AND generation = %s AND topic = %s
 ORDER BY partition
   FOR NO KEY UPDATE
"""


def advance(
    tx: Tx, projection_set: str, generation: int, topic: str, partition: int, expected: int, next_offset: int
) -> None:
    """Move the checkpoint of a partition from `expected` (0: never touched) to `next_offset`.

    Raises:
        Stale: it does not stand at `expected`: another worker owns the partition now. Nothing of this transaction
            may be kept.
    """
    statement = _FIRST_ADVANCE if expected == 0 else _ADVANCE
    moved = tx.execute(
        statement,
        {
            "projection": projection_set,
            "generation": generation,
            "topic": topic,
            "partition": partition,
            "expected": expected,
            "next": next_offset,
        },
    )
    if moved.rowcount != 1:
        raise Stale(f"{projection_set} g{generation}: {topic}/{partition} does not stand at {expected} any more")


_ADVANCE = """
UPDATE app.checkpoint
   SET next_offset = %(next)s, moved_at = now()
 WHERE projection = %(projection)s
   AND generation = %(generation)s
   AND topic = %(topic)s
   AND partition = %(partition)s
   AND next_offset = %(expected)s
"""

_FIRST_ADVANCE = """
INSERT INTO app.checkpoint (projection, generation, topic, partition, next_offset)
VALUES (%(projection)s, %(generation)s, %(topic)s, %(partition)s, %(next)s)
    ON CONFLICT (projection, generation, topic, partition) DO UPDATE
   SET next_offset = EXCLUDED.next_offset, moved_at = now()
 WHERE checkpoint.next_offset = %(expected)s
"""


def positions(tx: Tx, projection_set: str, generation: int) -> dict[tuple[str, int], int]:
    """(topic, partition) -> checkpoint, over all topics the set reads."""
    rows = tx.execute(
        "SELECT topic, partition, next_offset FROM app.checkpoint WHERE projection = %s AND generation = %s",
        (projection_set, generation),
    ).fetchall()
    return {(topic, partition): next_offset for topic, partition, next_offset in rows if next_offset > 0}


def swap(tx: Tx, projection_set: str, generation: int) -> int:
    """Make `generation` the current one; returns the one before, which is kept.

    Raises:
        Stale: the two do not stand at equal positions; catch up and try again.
    """
    before = lock(tx, projection_set)
    if before == generation:
        return before
    if positions(tx, projection_set, before) != positions(tx, projection_set, generation):
        raise Stale(f"{schema(projection_set, generation)} is not where {schema(projection_set, before)} is")
    tx.execute(
        "UPDATE app.generation SET current = %s, switched_at = now() WHERE projection_set = %s",
        (generation, projection_set),
    )
    return before


def existing(tx: Tx, projection_set: str) -> list[int]:
    """Numbers of the generations that have a schema, oldest first."""
    names = tx.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE %s", (f"{projection_set}\\_g%",)).fetchall()
    found = [_SCHEMA.match(name) for (name,) in names]
    return sorted(int(match["number"]) for match in found if match and match["set"] == projection_set)


def analyze(tx: Tx, projection_set: str, generation: int) -> None:
    """Let the planner know what the tables of `generation` hold; needs the owner's role."""
    name = schema(projection_set, generation)
    tables = tx.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (name,)).fetchall()
    for (table,) in tables:
        tx.execute(f'ANALYZE {name}."{table}"')


def drop(tx: Tx, projection_set: str, generation: int) -> None:
    """Remove a generation that is not the current one, with its checkpoints.

    Raises:
        Stale: it is the current one.
    """
    if held(tx, projection_set) == generation:
        raise Stale(f"{schema(projection_set, generation)} is in use")
    tx.execute(f"DROP SCHEMA IF EXISTS {schema(projection_set, generation)} CASCADE")
    tx.execute("DELETE FROM app.checkpoint WHERE projection = %s AND generation = %s", (projection_set, generation))


def drop_old(tx: Tx, projection_set: str, *, keep: int = 1) -> list[int]:
    """Remove the generations older than the current one, but for the newest `keep` of them; returns their numbers."""
    older = [each for each in existing(tx, projection_set) if each < held(tx, projection_set)]
    gone = older[: max(len(older) - keep, 0)]
    for each in gone:
        drop(tx, projection_set, each)
    return gone
