"""Writing the projection set `usage`: the tables of usage.sql, a micro-batch of one partition in one transaction.

The caller enters a generation (`projections.generation`), asks `claim` which events count, writes what follows from
them, and moves the checkpoint by compare-and-set in the same transaction. Rows go in by COPY, in the order of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Cursor

Tx = Cursor[Any]

TOPIC = "usage.events"
SET = "usage"

COMPARED: Mapping[str, str] = {
    "usage_identity": "SELECT * FROM usage_identity",
    "usage_series": "SELECT tenant_id, customer_id, meter, dimension_names, dimension_values FROM usage_series",
    "usage_value": """
        SELECT v.tenant_id, s.customer_id, s.meter, s.dimension_names, s.dimension_values,
               v.event_time, v.number, v.text_value, v.partition, v.record_offset, v.batch_index
          FROM usage_value v
          JOIN usage_series s USING (tenant_id, series)
    """,
    "usage_window": """
        SELECT w.tenant_id, s.customer_id, s.meter, s.dimension_names, s.dimension_values,
               w.hour, w.partition, w.events, w.total, w.lowest, w.highest, w.first_offset, w.last_offset
          FROM usage_window w
          JOIN usage_series s USING (tenant_id, series)
    """,
    "usage_fate": "SELECT * FROM usage_fate",
    "usage_rejected": "SELECT * FROM usage_rejected",
    "usage_control": "SELECT * FROM usage_control",
    "usage_changed": "SELECT tenant_id, customer_id, meter FROM usage_changed",
}
"""Table -> its rows by natural key: what two generations at equal positions must share, row by row.

The integer of a series and the version of a change are names that a generation gives; they carry no meaning.
"""


class Identity(NamedTuple):
    """An event that counts if nobody was first."""

    tenant: str
    identity: str
    """32 hex digits."""
    content: str
    """32 hex digits."""
    partition: int
    offset: int
    batch_index: int
    customer: str
    time_us: int
    """Microseconds since 1970 UTC."""


class Value(NamedTuple):
    """What a counted event contributes to a series."""

    series: int
    number: str | None
    """Decimal text."""
    text: str | None
    event: Identity


class Series(NamedTuple):
    """The natural key of a series."""

    tenant: str
    customer: str
    meter: str
    names: tuple[str, ...]
    values: tuple[str, ...]


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


def claim(tx: Tx, identities: Sequence[Identity]) -> dict[int, str]:
    """Insert the events whose identity is free. Place in `identities` -> content of the earlier event, for all others.

    `identities` holds no identity twice.
    """
    if not identities:
        return {}
    tx.execute(_INCOMING_IDENTITY)
    with tx.copy("COPY incoming_identity FROM STDIN") as copy:
        copy.write(
            "".join(
                [
                    f"{place}\t{_text(each.tenant)}\t{each.identity}\t{each.content}\t{each.partition}\t{each.offset}"
                    f"\t{each.batch_index}\t{_text(each.customer)}\t{each.time_us}\n"
                    for place, each in enumerate(identities)
                ]
            )
        )
    if tx.execute(_CLAIM).rowcount == len(identities):
        return {}
    return {place: content.hex for place, content in tx.execute(_TAKEN).fetchall()}


_INCOMING_IDENTITY = """
CREATE TEMPORARY TABLE incoming_identity (
    place          integer,
    tenant_id      text,
    identity       uuid,
    content        uuid,
    partition      integer,
    record_offset  bigint,
    batch_index    integer,
    customer_id    text,
    time_us        bigint
) ON COMMIT DROP
"""

# A whole number of microseconds is exact in each step; to_timestamp() would go through a float of seconds.
_INSTANT = "timestamptz 'epoch' + time_us * interval '1 microsecond'"

_CLAIM = f"""
INSERT INTO usage_identity
       (tenant_id, identity, content, partition, record_offset, batch_index, customer_id, event_time)
SELECT tenant_id, identity, content, partition, record_offset, batch_index, customer_id, {_INSTANT}
  FROM incoming_identity
 ORDER BY tenant_id, identity
    ON CONFLICT DO NOTHING
"""

# Its own statement: it also sees what another worker committed while ours waited for the key.
_TAKEN = """
SELECT i.place, k.content
  FROM incoming_identity i
  JOIN usage_identity k USING (tenant_id, identity)
 WHERE (k.partition, k.record_offset, k.batch_index) <> (i.partition, i.record_offset, i.batch_index)
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


def add_values(tx: Tx, values: Sequence[Value]) -> None:
    """Insert `values`, add them to their windows, and note for each customer and meter that it changed."""
    if not values:
        return
    tx.execute(_INCOMING_VALUE)
    with tx.copy("COPY incoming_value FROM STDIN") as copy:
        copy.write(
            "".join(
                [
                    f"{_text(event.tenant)}\t{series}\t{event.time_us}\t{NULL if number is None else number}\t"
                    f"{NULL if text is None else _text(text)}\t{event.partition}\t{event.offset}\t{event.batch_index}\n"
                    for series, number, text, event in values
                ]
            )
        )
    tx.execute(_ADD_VALUES)
    tx.execute(_ADD_WINDOWS)
    tx.execute(_ADD_CHANGES)


NULL = "\\N"  # in COPY's text format

_INCOMING_VALUE = """
CREATE TEMPORARY TABLE incoming_value (
    tenant_id      text,
    series         bigint,
    time_us        bigint,
    number         numeric(38,12),
    text_value     text,
    partition      integer,
    record_offset  bigint,
    batch_index    integer
) ON COMMIT DROP
"""

_ADD_VALUES = f"""
INSERT INTO usage_value
       (tenant_id, series, event_time, number, text_value, partition, record_offset, batch_index)
SELECT tenant_id, series, {_INSTANT}, number, text_value, partition, record_offset, batch_index
  FROM incoming_value
 ORDER BY tenant_id, series, time_us
"""

_ADD_WINDOWS = f"""
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT tenant_id, series, date_trunc('hour', {_INSTANT}, 'UTC') AS hour, partition,
       count(*), sum(number), min(number), max(number), min(record_offset), max(record_offset)
  FROM incoming_value
 GROUP BY tenant_id, series, hour, partition
 ORDER BY tenant_id, series, hour, partition
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
  JOIN (SELECT DISTINCT tenant_id, series FROM incoming_value) i USING (tenant_id, series)
 GROUP BY s.tenant_id, s.customer_id, s.meter
 ORDER BY s.tenant_id, s.customer_id, s.meter
    ON CONFLICT (tenant_id, customer_id, meter) DO UPDATE
   SET version = nextval('app.usage_change'), changed_in = pg_current_xact_id()
"""


def add_fates(tx: Tx, fates: Iterable[Fate]) -> None:
    """Count what became of the events."""
    tx.executemany(_ADD_FATE, sorted(fates))


_ADD_FATE = """
INSERT INTO usage_fate (tenant_id, hour, partition, received, counted, duplicate, conflict, rejected)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, hour, partition) DO UPDATE
   SET received = usage_fate.received + EXCLUDED.received,
       counted = usage_fate.counted + EXCLUDED.counted,
       duplicate = usage_fate.duplicate + EXCLUDED.duplicate,
       conflict = usage_fate.conflict + EXCLUDED.conflict,
       rejected = usage_fate.rejected + EXCLUDED.rejected
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
INSERT INTO usage_control (tenant_id, partition, version, control, record_offset)
VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (tenant_id, partition) DO UPDATE
   SET version = EXCLUDED.version, control = EXCLUDED.control, record_offset = EXCLUDED.record_offset
"""


def controls(tx: Tx, partition: int) -> list[Control]:
    """By which control record `partition` measures each tenant."""
    rows = tx.execute(
        "SELECT tenant_id, partition, version, control, record_offset FROM usage_control WHERE partition = %s",
        (partition,),
    )
    return [Control(t, p, v, bytes(c), o) for t, p, v, c, o in rows.fetchall()]


def _text(value: str) -> str:
    """`value` in COPY's text format."""
    return value.translate(_ESCAPES) if not value.isalnum() else value


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
