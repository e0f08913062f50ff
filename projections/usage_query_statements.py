"""The statements by which usage is read as a table, see `usage_query`; each takes the same named values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from billing.metering import Aggregation

_LAST = "(array_agg(number ORDER BY event_time DESC, partition DESC, record_offset DESC, batch_index DESC))[1]"

AGGREGATES: Final[Mapping[Aggregation, tuple[str | None, str]]] = {
    Aggregation.COUNT: ("sum(events)", "count(number)::numeric"),
    Aggregation.SUM: ("sum(total)", "sum(number)"),
    Aggregation.MAX: ("max(highest)", "max(number)"),
    Aggregation.MIN: ("min(lowest)", "min(number)"),
    Aggregation.LATEST: (None, _LAST),
    Aggregation.UNIQUE: (None, "count(DISTINCT text_value)::numeric"),
}
"""How windows and how rows come to the quantity; None: only rows can."""

# From one customer to the next through `usage_series_by_meter`, past the other series of each.
CUSTOMERS = """
WITH RECURSIVE found (customer_id, place) AS (
    (SELECT customer_id, 1
       FROM usage_series
      WHERE tenant_id = %(tenant)s AND meter = %(meter)s AND customer_id > %(after)s
      ORDER BY customer_id
      LIMIT 1)
    UNION ALL
    SELECT following.customer_id, found.place + 1
      FROM found
     CROSS JOIN LATERAL (SELECT s.customer_id
                           FROM usage_series s
                          WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s AND s.customer_id > found.customer_id
                          ORDER BY s.customer_id
                          LIMIT 1) AS following
     WHERE found.place < %(limit)s)
SELECT customer_id FROM found ORDER BY place
"""

# A series that was recorded under other dimensions has empty values for those it lacks.
VALUE = "coalesce(s.dimension_values[array_position(s.dimension_names, %({name})s::text)], '')"

ASKED = """
WITH asked AS (
         SELECT s.series, {customer} AS customer, ARRAY[{dimensions}]::text[] AS dimensions
           FROM usage_series s
          WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s {only}{where}),
"""

ROWS = """
     rows AS (
         SELECT width_bucket(v.event_time, %(starts)s::timestamptz[]) AS bucket, a.customer, a.dimensions,
                v.number, v.text_value, v.event_time, v.partition, v.record_offset, v.batch_index
           FROM asked a
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = a.series
          WHERE v.event_time >= %(start)s AND v.event_time < %(end)s AND v.{kept} IS NOT NULL
            AND v.voided_offset IS NULL)
SELECT bucket, customer, dimensions, trim_scale({quantity}), count(*)
  FROM rows
 GROUP BY bucket, customer, dimensions
 ORDER BY bucket, customer, dimensions
 LIMIT %(limit)s
"""

# Each part: (bucket, customer, dimensions, events, total, lowest, highest). Least and greatest follow from no sums.
_SLICES = """
         SELECT l.bucket, {customer} AS customer, {dimensions} AS dimensions,
                d.events[l.upto] - coalesce(d.events[l.after], 0) AS events,
                d.total[l.upto] - coalesce(d.total[l.after], 0) AS total,
                NULL::numeric AS lowest, NULL::numeric AS highest
           FROM {source}
           JOIN unnest(%(windows)s::integer[], %(days)s::date[], %(afters)s::integer[], %(uptos)s::integer[])
                AS l (bucket, day, after, upto) ON l.day = d.day
"""
DAYS = _SLICES.format(
    customer="a.customer",
    dimensions="a.dimensions",
    source="""asked a
           JOIN usage_day d ON d.tenant_id = %(tenant)s AND d.series = a.series
                           AND d.day >= %(first_day)s AND d.day <= %(last_day)s""",
)
# Of all customers together; takes what `ASKED` takes.
TOTALS = _SLICES.format(
    customer="NULL::text",
    dimensions="d.dimensions",
    source="""(SELECT s.day, s.events, s.total, ARRAY[{dimensions}]::text[] AS dimensions
                   FROM usage_total s
                  WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s {where}
                    AND s.day >= %(first_day)s AND s.day <= %(last_day)s) AS d""",
)
# OFFSET 0: else the planner reads a series as a whole and compares each of its rows with each span.
WINDOWS = """
         SELECT width_bucket(w.hour, %(starts)s::timestamptz[]), a.customer, a.dimensions,
                w.events, w.total, w.lowest, w.highest
           FROM unnest(%(hour_starts)s::timestamptz[], %(hour_ends)s::timestamptz[]) AS h (start, stop)
          CROSS JOIN asked a
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_window
                               WHERE tenant_id = %(tenant)s AND series = a.series
                                 AND hour >= h.start AND hour < h.stop
                              OFFSET 0) AS w
          WHERE w.events > 0
"""
EDGES = """
         SELECT width_bucket(v.event_time, %(starts)s::timestamptz[]), a.customer, a.dimensions,
                1::bigint, v.number, v.number, v.number
           FROM unnest(%(edge_starts)s::timestamptz[], %(edge_ends)s::timestamptz[]) AS e (start, stop)
          CROSS JOIN asked a
          CROSS JOIN LATERAL (SELECT *
                                FROM usage_value
                               WHERE tenant_id = %(tenant)s AND series = a.series
                                 AND event_time >= e.start AND event_time < e.stop
                              OFFSET 0) AS v
          WHERE v.number IS NOT NULL AND v.voided_offset IS NULL
"""
# Of all customers, few spans: each a condition of its own, so that the planner sees how few rows they hold and reads
# them by time (`usage_value_by_day`) where that is less than to look into thousands of series.
EDGES_BY_TIME = """
         SELECT width_bucket(v.event_time, %(starts)s::timestamptz[]), a.customer, a.dimensions,
                1::bigint, v.number, v.number, v.number
           FROM asked a
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = a.series
          WHERE ({spans}) AND v.number IS NOT NULL AND v.voided_offset IS NULL
"""
SPAN = "v.event_time >= %(edge_start_{place})s AND v.event_time < %(edge_end_{place})s"
_PARTS = """
     parts (bucket, customer, dimensions, events, total, lowest, highest) AS ({parts})
"""
PARTS = (
    _PARTS
    + """
SELECT bucket, customer, dimensions, trim_scale({quantity}), sum(events)::bigint
  FROM parts
 WHERE total IS NOT NULL
 GROUP BY bucket, customer, dimensions
HAVING sum(events) > 0
 ORDER BY bucket, customer, dimensions
 LIMIT %(limit)s
"""
)
EVENTS = _PARTS + "SELECT coalesce(sum(events), 0)::bigint FROM parts"
SERIES = "     counted AS (SELECT count(*) FROM asked) SELECT * FROM counted"
