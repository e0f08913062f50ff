"""Identities that were counted before: the dedupe horizon of a system that has been running for a month."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

_PIECE = 1_000_000

# Over the 34 days before now; of each, the id tells its time (UUIDv7), or nothing (random).
_ROWS = """
COPY (
    SELECT {identity},
           md5('content ' || i)::uuid, i / 500, at, at,
           (i % 4)::integer, (i % 500)::integer, 'earlier', 'c-' || i % 1000
      FROM (SELECT i, now() - interval '34 days' + interval '34 days' * (i::float8 / {total}) AS at
              FROM generate_series({first}::bigint, {last}::bigint) AS i) AS made
) TO STDOUT (FORMAT binary)
"""
_TIME_FIRST = """
(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint >> 8), 10, '0') || substr(md5('identity ' || i), 1, 22))::uuid
"""
_COLUMNS = "identity, content, record_offset, event_time, appended_at, partition, batch_index, tenant_id, customer_id"
_RANDOM = "md5('identity ' || i)::uuid"


def preload(superuser: str, total: int, *, random_ids: bool, said: Callable[[str], None]) -> None:
    """COPY `total` identities into the current generation. Row-level security forbids that to all but a superuser."""
    identity = _RANDOM if random_ids else _TIME_FIRST
    with psycopg.connect(superuser) as source, psycopg.connect(superuser) as target, ThreadPoolExecutor(1):
        target.execute("SET search_path = usage_g1")
        target.execute("SET synchronous_commit = off")
        for first in range(0, total, _PIECE):
            last = min(first + _PIECE, total) - 1
            rows = _ROWS.format(identity=identity, total=total, first=first, last=last)
            with (
                source.cursor().copy(rows) as out,
                target.cursor().copy(f"COPY usage_identity ({_COLUMNS}) FROM STDIN (FORMAT binary)") as into,
            ):
                for piece in out:
                    into.write(piece)
            target.commit()
            said(f"preloaded {last + 1:,} identities")
        target.autocommit = True
        target.execute("VACUUM (ANALYZE) usage_g1.usage_identity")
        target.execute("CHECKPOINT")
