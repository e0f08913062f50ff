"""Writing the projection set `usage`: the tables of usage.sql, a micro-batch of one partition in one transaction.

The caller enters a generation (`projections.generation`), asks `claim` which events count, writes what follows from
them, and moves the checkpoint by compare-and-set in the same transaction. Rows go in by COPY (`usage_rows`), in the
order of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

from psycopg import Cursor

from projections import usage_rollup, usage_rows
from projections.usage_rows import Series as Series

Tx = Cursor[Any]

TOPIC = "usage.events"
SET = "usage"

COMPARED: Mapping[str, str] = {
    # A pruned identity goes at its own time.
    "usage_identity": """
        SELECT i.* FROM usage_identity i
          LEFT JOIN usage_pruned p USING (tenant_id, partition)
         WHERE coalesce(i.amended_at, i.appended_at) >= coalesce(p.before, '-infinity')
    """,
    "usage_pruned": "SELECT tenant_id, partition, before FROM usage_pruned",
    "usage_series": "SELECT tenant_id, customer_id, meter, dimension_names, dimension_values FROM usage_series",
    "usage_value": """
        SELECT v.tenant_id, s.customer_id, s.meter, s.dimension_names, s.dimension_values,
               v.event_time, v.number, v.text_value, v.partition, v.record_offset, v.batch_index, v.voided_offset,
               v.counts_from
          FROM usage_value v
          JOIN usage_series s USING (tenant_id, series)
    """,
    "usage_window": """
        SELECT w.tenant_id, s.customer_id, s.meter, s.dimension_names, s.dimension_values,
               w.hour, w.partition, w.events, w.total, w.lowest, w.highest, w.first_offset, w.last_offset
          FROM usage_window w
          JOIN usage_series s USING (tenant_id, series)
    """,
    **usage_rollup.WRONG,
    "usage_fate": "SELECT * FROM usage_fate",
    "usage_duplicate": """
        SELECT d.* FROM usage_duplicate d
          LEFT JOIN usage_pruned p USING (tenant_id, partition)
         WHERE d.appended_at >= coalesce(p.before, '-infinity')
    """,
    "usage_rejected": "SELECT * FROM usage_rejected",
    "usage_control": "SELECT * FROM usage_control",
    "usage_changed": "SELECT tenant_id, customer_id, meter FROM usage_changed",
    "usage_backfill": """
        SELECT tenant_id, partition, record_offset, version, control, meter, begins_at, ends_at, state, events,
               unmeasured
          FROM usage_backfill
    """,
}
"""Table -> its rows by natural key: what two generations at equal positions must share, row by row.

The integer of a series and the version of a change are names that a generation gives; they carry no meaning.
"""


class Fate(NamedTuple):
    """What became of a tenant's events of one hour and partition: to be added."""

    tenant: str
    hour: datetime
    partition: int
    received: int
    counted: int
    duplicate: int
    conflict: int
    rejected: int
    voided: int = 0
    amended: int = 0
    repeated: int = 0
    """Corrections that changed nothing."""


class Refused(NamedTuple):
    """A row of usage_rejected."""

    tenant: str
    partition: int
    offset: int
    batch_index: int
    events: int
    reason: str
    detail: str
    field: str
    source: str | None
    event_id: str | None
    appended_at: datetime


class Control(NamedTuple):
    """A row of usage_control."""

    tenant: str
    partition: int
    version: int
    control: bytes
    offset: int
    registered_at: datetime
    accepted_from: datetime | None


def identity_scheme(tx: Tx) -> str | None:
    """Which scheme the identities of the generation are of; None: of the first, which had no name."""
    row = tx.execute("SELECT obj_description('usage_identity'::regclass)").fetchone()
    return row[0] if row else None


def claim(tx: Tx, partition: int, rows: Iterable[bytes], events: int, *, hopeful: bool) -> Taken:
    """Insert the events of a partition whose identity is free. What is told of the others is all that is left of them.

    `rows`, as `usage_rows` makes them, are of so many `events` and hold no identity twice. `hopeful`: expect that all
    are free, which is a third quicker if they are.
    Leaves those that count in the table `incoming`, for `add_values`.
    """
    if not events:
        return {}
    usage_rows.copy(tx, rows)
    if hopeful and _all_are_free(tx, partition):
        return {}
    if tx.execute(_CLAIM_FREE, (partition,)).rowcount == events:
        return {}
    taken = {(offset, index): content.bytes for offset, index, content in tx.execute(_TAKEN, (partition,)).fetchall()}
    tx.execute(_DROP_TAKEN, ([offset for offset, _ in taken], [index for _, index in taken]))
    return taken


Taken = dict[tuple[int, int], bytes]
"""(Offset, index) of each event that came too late -> content of the earlier one."""


def _all_are_free(tx: Tx, partition: int) -> bool:
    """Insert all identities, or none if one is taken."""
    try:
        with tx.connection.transaction():  # a savepoint
            tx.execute(_CLAIM, (partition,))
    except Exception as error:
        if getattr(error, "sqlstate", None) != _UNIQUE_VIOLATION:
            raise
        return False
    return True


_UNIQUE_VIOLATION = "23505"

_CLAIM = """
INSERT INTO usage_identity
       (identity, content, record_offset, event_time, appended_at, partition, batch_index, tenant_id, customer_id)
SELECT identity, content, record_offset, event_time, appended_at, %s, batch_index, tenant_id, customer_id
  FROM incoming
 WHERE identity IS NOT NULL
 ORDER BY identity
"""

_CLAIM_FREE = _CLAIM + "    ON CONFLICT DO NOTHING"

# Its own statement: it also sees what another worker committed while ours waited for the key.
_TAKEN = """
SELECT i.record_offset, i.batch_index, k.content
  FROM incoming i
  JOIN usage_identity k USING (identity, tenant_id)
 WHERE (k.partition, k.record_offset, k.batch_index) <> (%s, i.record_offset, i.batch_index)
"""

_DROP_TAKEN = """
DELETE FROM incoming
 USING unnest(%s::bigint[], %s::integer[]) AS t (record_offset, batch_index)
 WHERE incoming.record_offset = t.record_offset AND incoming.batch_index = t.batch_index
"""


def series_ids(tx: Tx, wanted: Iterable[Series]) -> dict[Series, int]:
    """The integer of each series; new ones are added."""
    keys = sorted(set(wanted))
    if not keys:
        return {}
    tx.execute(_INCOMING_SERIES)
    with tx.copy("COPY incoming_series FROM STDIN") as copy:
        for place, key in enumerate(keys):
            copy.write_row((place, key.tenant, key.customer, key.meter, list(key.names), list(key.values)))
    tx.execute(_ADD_SERIES)
    return {keys[place]: series for place, series in tx.execute(_FIND_SERIES).fetchall()}


_INCOMING_SERIES = """
CREATE TEMPORARY TABLE incoming_series (
    place             integer,
    tenant_id         text,
    customer_id       text,
    meter             text,
    dimension_names   text[],
    dimension_values  text[]
) ON COMMIT DROP
"""

_ADD_SERIES = """
INSERT INTO usage_series (tenant_id, customer_id, meter, dimension_names, dimension_values)
SELECT tenant_id, customer_id, meter, dimension_names, dimension_values
  FROM incoming_series
 ORDER BY place
    ON CONFLICT DO NOTHING
"""

_FIND_SERIES = """
SELECT i.place, s.series
  FROM incoming_series i
  JOIN usage_series s USING (tenant_id, customer_id, meter, dimension_names, dimension_values)
"""


def add_values(tx: Tx, partition: int) -> None:
    """Insert what the events left by `claim` contribute, add it to windows, and note for each customer and meter that
    it changed. The months of the events exist (`make_months`)."""
    put_values(tx, partition)
    tx.execute(_ADD_CHANGES)


def put_values(tx: Tx, partition: int) -> None:
    """As `add_values`, for who notes the changes."""
    tx.execute(_ADD_VALUES, (partition,))
    tx.execute(_ADD_WINDOWS, (partition,))
    usage_rollup.add_late(tx, partition)


_ADD_VALUES = """
INSERT INTO usage_value
       (tenant_id, series, event_time, number, text_value, partition, record_offset, batch_index)
SELECT tenant_id, series, event_time, number, text_value, %s, record_offset, batch_index
  FROM incoming
 WHERE series IS NOT NULL
 ORDER BY series
"""

# Series by series and hour by hour: two workers that share rows lock them in one order.
_ADD_WINDOWS = """
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT min(tenant_id), series, date_bin('1 hour', event_time, timestamptz 'epoch') AS bin, %s,
       count(*), sum(number), min(number), max(number), min(record_offset), max(record_offset)
  FROM incoming
 WHERE series IS NOT NULL
 GROUP BY series, bin
 ORDER BY series, bin
    ON CONFLICT (tenant_id, series, hour, partition) DO UPDATE
   SET events = usage_window.events + EXCLUDED.events,
       total = coalesce(usage_window.total + EXCLUDED.total, usage_window.total, EXCLUDED.total),
       lowest = least(usage_window.lowest, EXCLUDED.lowest),
       highest = greatest(usage_window.highest, EXCLUDED.highest),
       first_offset = least(usage_window.first_offset, EXCLUDED.first_offset),
       last_offset = greatest(usage_window.last_offset, EXCLUDED.last_offset)
"""

_ADD_CHANGES = """
INSERT INTO usage_changed (tenant_id, customer_id, meter)
SELECT s.tenant_id, s.customer_id, s.meter
  FROM usage_series s
  JOIN (SELECT DISTINCT tenant_id, series FROM incoming WHERE series IS NOT NULL) i USING (tenant_id, series)
 GROUP BY s.tenant_id, s.customer_id, s.meter
 ORDER BY s.tenant_id, s.customer_id, s.meter
    ON CONFLICT (tenant_id, customer_id, meter) DO UPDATE
   SET version = nextval('app.usage_change'), changed_in = pg_current_xact_id()
"""


def make_months(tx: Tx, months: Iterable[date]) -> None:
    """Make the tables of `months`, each named by its first day, where they are missing. Before any shared row is
    locked: makers of months wait for each other."""
    for month in sorted(months):
        tx.execute("SELECT usage_month(%s)", (month,))


def add_fates(tx: Tx, fates: Iterable[Fate]) -> None:
    """Count what became of the events."""
    tx.executemany(_ADD_FATE, sorted(fates))


_ADD_FATE = """
INSERT INTO usage_fate
       (tenant_id, hour, partition, received, counted, duplicate, conflict, rejected, voided, amended, repeated)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, hour, partition) DO UPDATE
   SET received = usage_fate.received + EXCLUDED.received,
       counted = usage_fate.counted + EXCLUDED.counted,
       duplicate = usage_fate.duplicate + EXCLUDED.duplicate,
       conflict = usage_fate.conflict + EXCLUDED.conflict,
       rejected = usage_fate.rejected + EXCLUDED.rejected,
       voided = usage_fate.voided + EXCLUDED.voided,
       amended = usage_fate.amended + EXCLUDED.amended,
       repeated = usage_fate.repeated + EXCLUDED.repeated
"""


def add_refused(tx: Tx, refused: Iterable[Refused]) -> None:
    """Record refused usage by its position."""
    rows = sorted(refused, key=_position)
    tx.executemany(_ADD_REFUSED, rows)


def _position(refused: Refused) -> tuple[str, int, int, int]:
    return refused.tenant, refused.partition, refused.offset, refused.batch_index


_ADD_REFUSED = """
INSERT INTO usage_rejected
       (tenant_id, partition, record_offset, batch_index, events, reason, detail, field, source, event_id, appended_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def set_controls(tx: Tx, controls: Iterable[Control]) -> None:
    """Measure tenants by new control records from here on."""
    tx.executemany(_SET_CONTROL, sorted(controls))


_SET_CONTROL = """
INSERT INTO usage_control (tenant_id, partition, version, control, record_offset, registered_at, accepted_from)
VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, partition) DO UPDATE
   SET version = EXCLUDED.version, control = EXCLUDED.control, record_offset = EXCLUDED.record_offset,
       accepted_from = EXCLUDED.accepted_from
"""


def controls(tx: Tx, partition: int) -> list[Control]:
    """By which control record `partition` measures each tenant."""
    rows = tx.execute(
        """
        SELECT tenant_id, partition, version, control, record_offset, registered_at, accepted_from
          FROM usage_control
         WHERE partition = %s
        """,
        (partition,),
    )
    return [Control(t, p, v, bytes(c), *rest) for t, p, v, c, *rest in rows.fetchall()]
