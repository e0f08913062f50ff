"""The statements by which quantities are read, see `usage_quantities`; each takes the same named values."""

from __future__ import annotations

from billing.metering import Aggregation

SERIES = """
SELECT series, dimension_names, dimension_values
  FROM usage_series
 WHERE tenant_id = %s AND customer_id = %s AND meter = %s
 ORDER BY series
"""

SERIES_OF_CUSTOMERS = """
SELECT series, customer_id
  FROM usage_series
 WHERE tenant_id = %s AND customer_id = ANY (%s::text[]) AND meter = %s
"""


_ASKED = """
WITH cut AS (SELECT * FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[]) AS c (partition, below)),
     asked AS (SELECT * FROM unnest(%(series)s::bigint[], %(cells)s::integer[]) AS a (series, cell)),
"""

# Everywhere OFFSET 0: series and time come first, by index. Else the planner may read all that a customer ever used, or
# a whole month of everybody, and compare that; it does so while a month is new and nobody has told it of its size.

# Every row from `first` to the period's end below the cut, unless it was voided below it.
# `newest` sorts as the log does, the latest first.
_ROWS = (
    _ASKED
    + """
     rows AS (
         SELECT a.cell, v.event_time, v.number, v.text_value, v.partition, v.record_offset, v.batch_index
           FROM asked a
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_value
                               WHERE tenant_id = %(tenant)s AND series = a.series
                                 AND event_time >= %(first)s AND event_time < %(end)s
                              OFFSET 0) AS v
           JOIN cut c ON c.partition = v.partition AND coalesce(v.counts_from, v.record_offset) < c.below
                     AND (v.voided_offset IS NULL OR v.voided_offset >= c.below))
"""
)
_NEWEST = "event_time DESC, partition DESC, record_offset DESC, batch_index DESC"

UNIQUE = (
    _ROWS
    + """
SELECT cell, count(DISTINCT text_value)::numeric, count(*) FILTER (WHERE event_time >= %(start)s)
  FROM rows
 WHERE text_value IS NOT NULL
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)

# The things whose last row does not say that they are gone.
PRESENT = (
    _ROWS
    + f""",
     things AS (
         SELECT cell, event_time, number IS NOT DISTINCT FROM %(gone)s::numeric AS is_gone,
                row_number() OVER (PARTITION BY cell, text_value ORDER BY {_NEWEST}) AS place,
                row_number() OVER (PARTITION BY text_value ORDER BY {_NEWEST}) AS place_in_all
           FROM rows
          WHERE text_value IS NOT NULL)
SELECT cell,
       CASE WHEN GROUPING(cell) = 0 THEN count(*) FILTER (WHERE place = 1 AND NOT is_gone)
            ELSE count(*) FILTER (WHERE place_in_all = 1 AND NOT is_gone) END::numeric,
       count(*) FILTER (WHERE event_time >= %(start)s)
  FROM things
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)

# The last in time; of several at one instant the one that stands last in the log.
_LAST = f"(array_agg(number ORDER BY {_NEWEST}))[1]"

# The smallest value that so many percent of all do not exceed.
_RANKED = "(array_agg(number ORDER BY number))[ceil(%(percent)s::numeric * count(*) * 0.01)::integer]"

_NUMBERS = (
    _ROWS
    + """
SELECT cell, trim_scale({quantity}), count(*)
  FROM rows
 WHERE number IS NOT NULL
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)
LATEST = _NUMBERS.replace("{quantity}", _LAST)
PERCENTILE = _NUMBERS.replace("{quantity}", _RANKED)
WEIGHTED = _NUMBERS.replace("{quantity}", "sum(number * extract(epoch FROM %(end)s - event_time) * 1000000)")

ONE_BY_ONE = (
    _ROWS
    + """
SELECT trim_scale(number)
  FROM rows
 WHERE number IS NOT NULL
 ORDER BY event_time, partition, record_offset, batch_index
"""
)

# Each row of the period, and from before it the last row of each thing, or of the level.
POINTS = (
    _ROWS
    + f""",
     points AS (
         SELECT *
           FROM rows
          WHERE event_time >= %(start)s
          UNION ALL
         (SELECT DISTINCT ON (cell, text_value) *
            FROM rows
           WHERE event_time < %(start)s
           ORDER BY cell, text_value, {_NEWEST}))
SELECT cell, event_time, trim_scale(number), text_value
  FROM points
 WHERE CASE WHEN %(things)s THEN text_value IS NOT NULL ELSE number IS NOT NULL END
 ORDER BY event_time, partition, record_offset, batch_index
"""
)

_PARTS = (
    _ASKED
    + """
     windows AS (
         SELECT a.cell, w.*, c.below
           FROM asked a
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_window
                               WHERE tenant_id = %(tenant)s AND series = a.series
                                 AND hour >= %(first_hour)s AND hour < %(last_hour)s AND total IS NOT NULL
                              OFFSET 0) AS w
           JOIN cut c ON c.partition = w.partition AND w.first_offset < c.below),
     parts AS (
         SELECT cell, hour AS event_time, events, total, lowest, highest
           FROM windows
          WHERE last_offset < below AND events > 0
          UNION ALL
         SELECT w.cell, v.event_time, 1, v.number, v.number, v.number
           FROM windows w
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_value
                               WHERE tenant_id = %(tenant)s AND series = w.series
                                 AND event_time >= w.hour AND event_time < w.hour + interval '1 hour'
                              OFFSET 0) AS v
          WHERE w.last_offset >= w.below AND v.partition = w.partition AND v.number IS NOT NULL
            AND coalesce(v.counts_from, v.record_offset) < w.below
            AND (v.voided_offset IS NULL OR v.voided_offset >= w.below)
          UNION ALL
         SELECT a.cell, v.event_time, 1, v.number, v.number, v.number
           FROM unnest(%(edge_starts)s::timestamptz[], %(edge_ends)s::timestamptz[]) AS e (start, stop)
          CROSS JOIN asked a
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_value
                               WHERE tenant_id = %(tenant)s AND series = a.series
                                 AND event_time >= e.start AND event_time < e.stop
                              OFFSET 0) AS v
           JOIN cut c ON c.partition = v.partition AND coalesce(v.counts_from, v.record_offset) < c.below
                     AND (v.voided_offset IS NULL OR v.voided_offset >= c.below)
          WHERE v.number IS NOT NULL)
"""
)
_WINDOWS = (
    _PARTS
    + """
SELECT cell, trim_scale({quantity}), sum(events)::bigint
  FROM parts
 GROUP BY GROUPING SETS ((cell), ())
HAVING count(*) > 0
"""
)
BY_WINDOW = {
    Aggregation.COUNT: _WINDOWS.replace("{quantity}", "sum(events)"),
    Aggregation.SUM: _WINDOWS.replace("{quantity}", "sum(total)"),
    Aggregation.MAX: _WINDOWS.replace("{quantity}", "max(highest)"),
    Aggregation.MIN: _WINDOWS.replace("{quantity}", "min(lowest)"),
}
AVERAGE = _WINDOWS.replace("{quantity}", "sum(total)")

# One row for each cell and local window, and for all cells together: an amount, by what it is divided, the events.
_LOCAL = """
SELECT cell, {quantity}, {count}, {events}
  FROM {source}
 WHERE {given}
 GROUP BY GROUPING SETS (({bucket}, cell), ({bucket}))
"""
BUCKETS = {
    True: "width_bucket(event_time, %(starts)s::timestamptz[])",
    False: "date_trunc('minute', event_time, 'UTC')",
}


def _local(
    quantity: str, source: str = "rows", count: str = "1", events: str = "count(*)", given: str = "number IS NOT NULL"
) -> str:
    filled = {"quantity": quantity, "source": source, "count": count, "events": events, "given": given}
    made = _LOCAL
    for name, text in filled.items():
        made = made.replace(f"{{{name}}}", text)
    return (_ROWS if source == "rows" else _PARTS) + made


_SUM_OF_EVENTS = "sum(events)::bigint"
BY_LOCAL_WINDOW = {
    Aggregation.MAX: _local("max(highest)", "parts", events=_SUM_OF_EVENTS, given="true"),
    Aggregation.MIN: _local("min(lowest)", "parts", events=_SUM_OF_EVENTS, given="true"),
    Aggregation.AVERAGE: _local("sum(total)", "parts", _SUM_OF_EVENTS, _SUM_OF_EVENTS, "true"),
    Aggregation.LATEST: _local(_LAST),
    Aggregation.PERCENTILE: _local(_RANKED),
    Aggregation.UNIQUE: _local("count(DISTINCT text_value)::numeric", given="text_value IS NOT NULL"),
}
