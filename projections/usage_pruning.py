"""Pruning identities, and the rows of their copies: marks that say how far, and small steps that make it so.

A step looks at a stretch of pages and deletes what lies before the marks, so no index is kept for it: each day every
page is looked at once. Nobody waits for a step but a claim of the very identity that it deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg import Cursor

Tx = Cursor[Any]

IDENTITIES = tuple(f"usage_identity_{remainder}" for remainder in range(8))
TABLES = (*IDENTITIES, "usage_duplicate")


def reached(tx: Tx) -> dict[int, datetime]:
    """Partition -> hour in which its last applied record was appended: the log's own clock, however far behind."""
    return dict(tx.execute("SELECT partition, max(hour) FROM usage_fate GROUP BY partition").fetchall())


def mark(tx: Tx, marks: Mapping[tuple[str, int], datetime]) -> bool:
    """Say for (tenant, partition) that identities appended before a whole hour may go; a mark never moves back.

    Whether there is something to sweep: counted events, or copies, before a mark that no sweep has passed.
    """
    ordered = sorted(marks)
    tx.execute(
        """
        INSERT INTO usage_pruned (tenant_id, partition, before)
        SELECT m.tenant_id, m.partition, m.before
          FROM unnest(%s::text[], %s::integer[], %s::timestamptz[]) AS m (tenant_id, partition, before)
         WHERE EXISTS (SELECT FROM usage_fate f
                        WHERE f.tenant_id = m.tenant_id AND f.partition = m.partition
                          AND f.hour < m.before AND f.counted + f.duplicate > 0)
         ORDER BY m.tenant_id, m.partition
            ON CONFLICT (tenant_id, partition) DO UPDATE
           SET before = greatest(usage_pruned.before, EXCLUDED.before)
        """,
        ([tenant for tenant, _ in ordered], [partition for _, partition in ordered], [marks[each] for each in ordered]),
    )
    row = tx.execute(
        """
        SELECT EXISTS (SELECT FROM usage_pruned p
                         JOIN usage_fate f USING (tenant_id, partition)
                        WHERE f.hour >= p.swept AND f.hour < p.before AND f.counted + f.duplicate > 0)
        """
    ).fetchone()
    assert row is not None
    return bool(row[0])


def marks(tx: Tx) -> dict[tuple[str, int], datetime]:
    """(Tenant, partition) -> hour of the append before which identities are gone or going."""
    rows = tx.execute("SELECT tenant_id, partition, before FROM usage_pruned ORDER BY tenant_id, partition").fetchall()
    return {(tenant, partition): before for tenant, partition, before in rows}


def pages(tx: Tx, table: str) -> int:
    """How many pages one of `TABLES` has."""
    row = tx.execute(
        "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::integer", (table,)
    ).fetchone()
    assert row is not None
    return int(row[0])


def step(tx: Tx, table: str, first_page: int, end_page: int) -> int:
    """Delete what lies before the marks on these pages of one of `TABLES`; returns how many rows it were."""
    assert table in TABLES
    age = "i.appended_at" if table == "usage_duplicate" else "coalesce(i.amended_at, i.appended_at)"
    return tx.execute(
        f"""
        DELETE FROM {table} AS i
         USING usage_pruned p
         WHERE i.ctid >= %s::tid AND i.ctid < %s::tid
           AND p.tenant_id = i.tenant_id AND p.partition = i.partition
           AND {age} < p.before
        """,
        (f"({first_page},0)", f"({end_page},0)"),
    ).rowcount


def swept(tx: Tx, done: Mapping[tuple[str, int], datetime]) -> None:
    """Note that nothing is left before the marks `done`, as they stood when the sweep began."""
    ordered = sorted(done.items())
    tx.executemany(
        "UPDATE usage_pruned SET swept = greatest(swept, %s) WHERE tenant_id = %s AND partition = %s",
        [(before, tenant, partition) for (tenant, partition), before in ordered],
    )


def carry(tx: Tx, source: str, target: str) -> None:
    """Take the marks of the generation in schema `source` over into that in `target`: they do not follow from the log.

    What a rebuild brought back there is swept again.
    """
    tx.execute(
        f"""
        INSERT INTO {target}.usage_pruned (tenant_id, partition, before)
        SELECT tenant_id, partition, before FROM {source}.usage_pruned
            ON CONFLICT (tenant_id, partition) DO UPDATE SET before = EXCLUDED.before
        """
    )
