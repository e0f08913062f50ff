"""Sums by day that follow in the background (usage_rollup.sql): made from the log's positions, none counts twice.

Up to `following` writers add what they write, and take out what they void; what stood in the partition before they
learned of it, `begin` notes by its offset, and `step` adds. Readers use the sums up to `until`, where both is done.

    until ......... following .........      of the time of events
    sums and        sums of what              windows and rows only
    nothing else    came after `begin`
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg import Cursor

Tx = Cursor[Any]

DAY: Final = timedelta(days=1)
DAY_SLOTS: Final = 48
"""Of a row of usage_day."""
TOTAL_SLOTS: Final = 96
"""Of a row of usage_total."""
NEVER: Final = datetime(1, 1, 1, tzinfo=UTC)


class Rolled(NamedTuple):
    """How far the sums go."""

    until: datetime
    following: datetime


def rolled(tx: Tx) -> Rolled:
    """How far the sums go; `NEVER`: there are none."""
    row = tx.execute(
        "SELECT greatest(until, %(never)s), greatest(following, %(never)s) FROM usage_rolled", {"never": NEVER}
    ).fetchone()
    assert row is not None
    return Rolled(*row)


def hold(tx: Tx) -> None:
    """Let nobody move `following` until the transaction ends: for the first batch of a partition, whose position nobody
    can hold yet."""
    tx.execute("SELECT FROM usage_rolled FOR KEY SHARE")


def lock(tx: Tx) -> Rolled:
    """Be the one who moves `following`; wait for the first batches of partitions."""
    tx.execute("SELECT FROM usage_rolled FOR UPDATE")
    return rolled(tx)


def begin(tx: Tx, positions: Mapping[int, int], following: datetime) -> None:
    """Let the sums follow up to `following`, a whole hour. They are `lock`ed, and nothing is on its way.

    `positions`: partition -> next offset, of all partitions; nobody moves them until the transaction ends.
    """
    tx.execute(
        "UPDATE usage_rolled SET following = %s, partitions = %s, offsets = %s WHERE until = following",
        (following, sorted(positions), [positions[each] for each in sorted(positions)]),
    )


def summarize(tx: Tx) -> None:
    """Let what is read by time pass by the pages that came since the last time, where they hold other times."""
    tx.execute("SELECT app.usage_summarize(current_schema())")


def step(tx: Tx) -> Rolled:
    """Add what was there before: the rest of a day, or up to `following`. Changes nothing if that is reached."""
    tx.execute("SET LOCAL work_mem = '64MB'")
    tx.execute("SELECT FROM usage_rolled FOR NO KEY UPDATE")
    now = rolled(tx)
    if now.until >= now.following:
        return now
    start = max(now.until, _first(tx) or now.following)
    end = min(start.replace(hour=0) + DAY, now.following)
    if start < end:
        noted = tx.execute("SELECT partitions, offsets FROM usage_rolled").fetchone()
        assert noted is not None
        asked = {"start": start, "end": end, "partitions": noted[0], "offsets": noted[1]}
        tx.execute(_SLOTS.format(source=_BEFORE), asked)
        _add(tx)
    until = max(end, now.until)
    tx.execute("UPDATE usage_rolled SET until = %s", (until,))
    return Rolled(until, now.following)


def _first(tx: Tx) -> datetime | None:
    """The beginning of the first month that there are tables for."""
    row = tx.execute(
        """
        SELECT min(to_date(right(c.relname, 7), 'YYYY_MM'))::timestamp AT TIME ZONE 'UTC'
          FROM pg_inherits i
          JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'usage_value'::regclass
        """
    ).fetchone()
    return None if row is None else row[0]


def add_late(tx: Tx, partition: int) -> None:
    """Add those of the rows `incoming` to the sums that lie where these follow already."""
    row = tx.execute(_HAS_LATE).fetchone()
    if row is not None and row[0]:
        tx.execute(_SLOTS.format(source=_LATE), {"partition": partition})
        _add(tx)


def end(tx: Tx, partition: int) -> None:
    """Take those of the rows `ended` out of the sums that lie where these follow already."""
    row = tx.execute(_HAS_ENDED).fetchone()
    if row is not None and row[0]:
        tx.execute(_SLOTS.format(source=_ENDED), {"partition": partition})
        _add(tx)


def follow_touched(tx: Tx, tenant: str, partition: int, offset: int) -> None:
    """Let the sums follow what counts, or counts no more, since `offset` of the partition, in each (series, hour) in
    the table `touched`; the sums have to `stop` before."""
    asked = {"tenant": tenant, "partition": partition, "offset": offset}
    tx.execute(_SLOTS.format(source=_CHANGED), asked)
    _add(tx)


def stop(tx: Tx) -> None:
    """Let the sums go no further until the transaction ends: for who changes what counted at an earlier offset. Taken
    before the position of a partition is held."""
    tx.execute("SELECT FROM usage_rolled FOR SHARE")


def _add(tx: Tx) -> None:
    tx.execute(_ADD_DAYS)
    tx.execute(_ADD_TOTALS)
    tx.execute("DROP TABLE slots")


_SLOTS = """
CREATE TEMPORARY TABLE slots ON COMMIT DROP AS
SELECT tenant_id, series, partition, (start AT TIME ZONE 'UTC')::date AS day,
       (date_part('epoch', start - date_trunc('day', start, 'UTC')) / 900)::integer AS slot, events, total
  FROM (SELECT min(tenant_id) AS tenant_id, series, partition,
               date_bin('15 minutes', event_time, timestamptz 'epoch') AS start,
               sum(sign)::bigint AS events, sum(number * sign) AS total
          FROM ({source}) AS each
         GROUP BY series, partition, start) AS quarters
"""

_BEFORE = """
SELECT v.tenant_id, v.series, v.event_time, v.number, v.partition, 1 AS sign
  FROM usage_value v
  JOIN unnest(%(partitions)s::integer[], %(offsets)s::bigint[]) AS c (partition, below) USING (partition)
 WHERE v.event_time >= %(start)s AND v.event_time < %(end)s
   AND coalesce(v.counts_from, v.record_offset) < c.below
   AND (v.voided_offset IS NULL OR v.voided_offset >= c.below)
"""

_HAS_LATE = """
SELECT EXISTS (SELECT FROM incoming WHERE series IS NOT NULL AND event_time < (SELECT following FROM usage_rolled))
"""

_LATE = """
SELECT tenant_id, series, event_time, number, %(partition)s AS partition, 1 AS sign
  FROM incoming
 WHERE series IS NOT NULL AND event_time < (SELECT following FROM usage_rolled)
"""

_HAS_ENDED = "SELECT EXISTS (SELECT FROM ended WHERE event_time < (SELECT following FROM usage_rolled))"

_ENDED = """
SELECT tenant_id, series, event_time, number, %(partition)s AS partition, -1 AS sign
  FROM ended
 WHERE event_time < (SELECT following FROM usage_rolled)
"""

# Below the offset that was noted for the sums that are on their way, they are made of what is left.
_CHANGED = """
SELECT v.tenant_id, v.series, v.event_time, v.number, v.partition,
       CASE WHEN v.voided_offset = %(offset)s THEN -1 ELSE 1 END AS sign
  FROM (SELECT DISTINCT series, hour FROM touched) AS t
 CROSS JOIN usage_rolled r
  JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = t.series
                    AND v.event_time >= t.hour AND v.event_time < t.hour + interval '1 hour'
 WHERE v.partition = %(partition)s AND (v.voided_offset = %(offset)s OR v.counts_from = %(offset)s)
   AND v.event_time < CASE WHEN %(offset)s < coalesce(r.offsets[array_position(r.partitions, %(partition)s)], 0)
                           THEN r.until ELSE r.following END
"""


def _running(what: str, slots: int) -> str:
    """An array of running sums over so many slots of a day."""
    width = TOTAL_SLOTS // slots
    sums = (f"coalesce(sum({what}) FILTER (WHERE slot < {each * width}), 0)" for each in range(1, slots + 1))
    return f"ARRAY[{', '.join(sums)}]"


_SUMS = """
       {events}::bigint[] AS events, CASE WHEN count(total) > 0 THEN {total}::numeric[] END AS total
"""

_MERGED = """
   SET events = (SELECT array_agg(a + b ORDER BY place)
                   FROM unnest({table}.events, EXCLUDED.events) WITH ORDINALITY AS each (a, b, place)),
       total = CASE WHEN {table}.total IS NULL THEN EXCLUDED.total
                    WHEN EXCLUDED.total IS NULL THEN {table}.total
                    ELSE (SELECT array_agg(a + b ORDER BY place)
                            FROM unnest({table}.total, EXCLUDED.total) WITH ORDINALITY AS each (a, b, place)) END
"""

# In the order of the key: two who share rows lock them in one order.
_ADD_DAYS = f"""
INSERT INTO usage_day (tenant_id, series, day, partition, events, total)
SELECT tenant_id, series, day, partition,
       {_SUMS.format(events=_running("events", DAY_SLOTS), total=_running("total", DAY_SLOTS))}
  FROM slots
 GROUP BY tenant_id, series, day, partition
 ORDER BY series, day, partition
    ON CONFLICT (series, day, partition, tenant_id) DO UPDATE
{_MERGED.format(table="usage_day")}
"""

_ADD_TOTALS = f"""
INSERT INTO usage_total (tenant_id, meter, dimension_names, dimension_values, day, partition, events, total)
SELECT tenant_id, meter, dimension_names, dimension_values, day, partition,
       {_SUMS.format(events=_running("events", TOTAL_SLOTS), total=_running("total", TOTAL_SLOTS))}
  FROM (SELECT c.tenant_id, s.meter, s.dimension_names, s.dimension_values, c.day, c.partition, c.slot,
               sum(c.events) AS events, sum(c.total) AS total
          FROM slots c
          JOIN usage_series s USING (tenant_id, series)
         GROUP BY c.tenant_id, s.meter, s.dimension_names, s.dimension_values, c.day, c.partition, c.slot) AS cells
 GROUP BY tenant_id, meter, dimension_names, dimension_values, day, partition
 ORDER BY tenant_id, meter, day, dimension_names, dimension_values, partition
    ON CONFLICT (tenant_id, meter, day, dimension_names, dimension_values, partition) DO UPDATE
{_MERGED.format(table="usage_total")}
"""

_WRONG = """
SELECT tenant_id, {key}, day, partition, events, total
  FROM (SELECT tenant_id, {key}, day, partition, sum(events) AS events, sum(total) AS total
          FROM (SELECT tenant_id, {key}, day, partition, events[place] AS events, total[place] AS total
                  FROM (SELECT d.*, least({slots}, {slots} / 86400.0
                                          * date_part('epoch', greatest(r.until, '0001-01-01Z') AT TIME ZONE 'UTC'
                                                               - d.day))::integer AS place
                          FROM {table} d
                         CROSS JOIN usage_rolled r) AS placed
                 WHERE place > 0
                 UNION ALL
                SELECT v.tenant_id, {key}, (v.event_time AT TIME ZONE 'UTC')::date, v.partition, -1, -v.number
                  FROM usage_value v
                  JOIN usage_series s USING (tenant_id, series)
                 CROSS JOIN usage_rolled r
                 WHERE v.voided_offset IS NULL AND v.event_time < r.until) AS both_ways
         GROUP BY tenant_id, {key}, day, partition) AS sums
 WHERE events <> 0 OR total <> 0
"""

WRONG: Final[Mapping[str, str]] = {
    "usage_day": _WRONG.format(table="usage_day", slots=DAY_SLOTS, key="series"),
    "usage_total": _WRONG.format(
        table="usage_total", slots=TOTAL_SLOTS, key="meter, dimension_names, dimension_values"
    ),
    "usage_rolled": "SELECT tenant_id FROM usage_rolled",
}
"""Table -> the sums that are not those of the values beneath them: none in any generation, however far each is."""
