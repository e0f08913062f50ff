"""Usage as a table: what a meter measured, by window of local time, customer and dimensions. Equal to what is billed.

Everything that is applied counts, in the transaction's snapshot. Hourly windows (`usage_window`) are used where an hour
lies within one window of the answer; the rows decide where a boundary cuts an hour: at the edges of the asked span,
and at midnight in zones whose offset is no whole hour. Meters whose quantity is no plain aggregate of such rows go the
way that invoices go (`usage_read`), customer by customer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from billing.aggregation import window_start
from billing.errors import Rejected
from billing.ids import CustomerId, TenantId
from billing.metering import Aggregation, Meter, UsageControl
from billing.period import Period
from projections import usage_read
from projections.usage import Tx
from schemas.codec import decode_usage

UNITS: Final = ("minute", "hour", "day", "week", "month")
WINDOWS_MAX: Final = 10_000
ROWS_MAX: Final = 10_000
ONE_BY_ONE_MAX: Final = 1_000
"""Readings of one customer and window, for meters that are no plain aggregate."""

_HOUR = timedelta(hours=1)
_STEPS: Final = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1, hours=2),
    "week": timedelta(days=7, hours=2),
    "month": timedelta(days=31, hours=2),
}
"""Long enough to reach into the next window, short enough not to pass it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a meter."""

    meter: Meter
    period: Period
    """The span of event times."""
    window: str | None = None
    """One of `UNITS`; None: the period as a whole."""
    zone: str = "UTC"
    """IANA zone of the windows."""
    customer: str | None = None
    """Only this one's usage."""
    by_customer: bool = False
    """A row for each customer."""
    by: tuple[str, ...] = ()
    """Dimensions: a row for each combination of their values."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Only usage with these values of dimensions."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A quantity that is not nothing."""

    period: Period
    """The window, as far as it lies in the span that was asked."""
    customer: str | None
    """None where customers are not told apart."""
    dimensions: tuple[str, ...]
    """Values, in the order of `Question.by`."""
    quantity: Decimal
    events: int


def meters(tx: Tx, tenant: str) -> dict[str, Meter]:
    """Every meter by which usage of `tenant` is measured now, by key; those of retired price books too."""
    row = tx.execute(
        "SELECT control FROM usage_control WHERE tenant_id = %s ORDER BY version DESC LIMIT 1", (tenant,)
    ).fetchone()
    if row is None:
        return {}
    control = decode_usage(bytes(row[0]))
    assert isinstance(control, UsageControl)
    return {each.key: each for each in control.meters}


def conditions(given: Iterable[str]) -> dict[str, str]:
    """`Question.where` as people write it: `dimension:value`.

    Raises:
        Rejected: one is not of that form, or a dimension comes twice.
    """
    made: dict[str, str] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not colon or name in made:
            raise Rejected("invalid_value", "write dimension:value, each dimension once", field="where")
        made[name] = value
    return made


def answers(tx: Tx, tenant: str, question: Question) -> list[Answer]:
    """The rows, in order of time, customer and dimensions. Where nothing was measured there is no row.

    `tx` has entered the generation of usage.

    Raises:
        Rejected: a dimension is not the meter's, or the answer would be too large.
    """
    _check(question)
    starts = _starts(question)
    if not _is_plain(question.meter):
        return _one_by_one(tx, tenant, question, starts)
    statement, parameters = _statement(tenant, question, starts)
    rows = tx.execute(statement, parameters).fetchall()
    if len(rows) > ROWS_MAX:
        raise Rejected(
            "too_many_rows", f"more than {ROWS_MAX:,} rows: ask for less time, wider windows or one customer"
        )
    return [
        Answer(_window(starts, bucket - 1, question.period), customer, tuple(dimensions), quantity, events)
        for bucket, customer, dimensions, quantity, events in rows
    ]


def _check(question: Question) -> None:
    known = question.meter.dimensions
    for name in (*question.by, *question.where):
        if name not in known:
            said = f"meter {question.meter.key!r} has no dimension {name!r}; it has: {', '.join(known) or 'none'}"
            raise Rejected("unknown_dimension", said, field="by" if name in question.by else "where")


def _starts(question: Question) -> list[datetime]:
    """Where the windows begin, the first one at the start of the period.

    Raises:
        Rejected: there are too many.
    """
    period, unit = question.period, question.window
    if unit is None:
        return [period.start]
    made, at = [period.start], window_start(period.start, unit, question.zone)
    while True:
        following = window_start(at + _STEPS[unit], unit, question.zone)
        at = following if following > at else at + _STEPS[unit]
        if at >= period.end:
            return made
        if at > period.start:
            made.append(at)
        if len(made) > WINDOWS_MAX:
            said = f"more than {WINDOWS_MAX:,} windows; ask for less time or wider windows"
            raise Rejected("too_many_windows", said, field="window")


def _window(starts: Sequence[datetime], place: int, period: Period) -> Period:
    return Period(starts[place], starts[place + 1] if place + 1 < len(starts) else period.end)


def _is_plain(meter: Meter) -> bool:
    """Whether the quantity follows from the rows by one aggregate: true unless the meter asks for more than that."""
    plain = ("key", "event_type", "aggregation", "value", "dimensions", "filters")
    return meter.aggregation in _AGGREGATES and all(
        getattr(meter, each.name) == each.default for each in fields(meter) if each.name not in plain
    )


def _statement(tenant: str, question: Question, starts: list[datetime]) -> tuple[str, dict[str, Any]]:
    by_window, by_row = _AGGREGATES[question.meter.aggregation]
    whole, split = _hours(question.period, starts)
    from_rows = by_window is None or question.window == "minute" or len(split) * 2 > whole
    names = {f"by_{place}": name for place, name in enumerate(question.by)}
    wanted = {f"where_{place}": name for place, name in enumerate(question.where)}
    values = {f"value_{place}": value for place, value in enumerate(question.where.values())}
    asked = _ASKED.format(
        customer="s.customer_id" if question.by_customer else "NULL::text",
        dimensions=", ".join(_VALUE.format(name=name) for name in names),
        only="AND s.customer_id = %(customer)s" if question.customer is not None else "",
        where="".join(f" AND {_VALUE.format(name=n)} = %({v})s" for n, v in zip(wanted, values, strict=True)),
    )
    parameters = {
        "tenant": tenant,
        "meter": question.meter.key,
        "customer": question.customer,
        "start": question.period.start,
        "end": question.period.end,
        "starts": starts,
        "first": _up(question.period.start),
        "last": _down(question.period.end),
        "split": split,
        "edge_starts": [max(each, question.period.start) for each in split],
        "edge_ends": [min(each + _HOUR, question.period.end) for each in split],
        "limit": ROWS_MAX + 1,
    }
    kept = "text_value" if question.meter.aggregation is Aggregation.UNIQUE else "number"
    parts = _ROWS.format(quantity=by_row, kept=kept) if from_rows else _WINDOWS.format(quantity=by_window)
    return asked + parts, parameters | names | wanted | values


def _hours(period: Period, starts: Iterable[datetime]) -> tuple[int, list[datetime]]:
    """How many hours the period touches, and which of them a boundary cuts."""
    cut = {_down(each) for each in (*starts, period.end) if _down(each) != each}
    return (_up(period.end) - _down(period.start)) // _HOUR, sorted(cut)


def _down(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _up(instant: datetime) -> datetime:
    return _down(instant) if _down(instant) == instant else _down(instant) + _HOUR


def _one_by_one(tx: Tx, tenant: str, question: Question, starts: list[datetime]) -> list[Answer]:
    """By the function that invoices use, for each customer and window."""
    meter = question.meter
    if question.where or question.by not in ((), meter.dimensions):
        said = f"meter {meter.key!r} can be split by all of its dimensions, or by none: {', '.join(meter.dimensions)}"
        raise Rejected("unsupported", said, field="by")
    customers = [question.customer] if question.customer is not None else _customers(tx, tenant, meter)
    if len(customers) > 1 and not question.by_customer:
        said = f"meter {meter.key!r} is measured for each customer: ask for one, or for all of them apart"
        raise Rejected("unsupported", said, field="customer")
    if len(customers) * len(starts) > ONE_BY_ONE_MAX:
        said = f"meter {meter.key!r} takes up to {ONE_BY_ONE_MAX:,} customers times windows; ask for less"
        raise Rejected("too_many_windows", said, field="window")
    made = []
    for place in range(len(starts)):
        window = _window(starts, place, question.period)
        for customer in customers:
            found = usage_read.current(tx, TenantId(tenant), CustomerId(customer), meter, window)
            told = customer if question.by_customer else None
            cells = found.cells if question.by else (((), found.total),)
            if found.events or found.total:  # a level goes on without events
                made += [Answer(window, told, cell, quantity, found.events) for cell, quantity in cells]
    return made


def _customers(tx: Tx, tenant: str, meter: Meter) -> list[str]:
    rows = tx.execute(
        "SELECT DISTINCT customer_id FROM usage_series WHERE tenant_id = %s AND meter = %s ORDER BY 1",
        (tenant, meter.key),
    ).fetchall()
    return [customer for (customer,) in rows]


_LAST = "(array_agg(number ORDER BY event_time DESC, partition DESC, record_offset DESC, batch_index DESC))[1]"

_AGGREGATES: Final[Mapping[Aggregation, tuple[str | None, str]]] = {
    Aggregation.COUNT: ("sum(events)", "count(number)::numeric"),
    Aggregation.SUM: ("sum(total)", "sum(number)"),
    Aggregation.MAX: ("max(highest)", "max(number)"),
    Aggregation.MIN: ("min(lowest)", "min(number)"),
    Aggregation.LATEST: (None, _LAST),
    Aggregation.UNIQUE: (None, "count(DISTINCT text_value)::numeric"),
}
"""How windows and how rows come to the quantity; None: only rows can."""

# A series that was recorded under other dimensions has empty values for those it lacks.
_VALUE = "coalesce(s.dimension_values[array_position(s.dimension_names, %({name})s::text)], '')"

_ASKED = """
WITH asked AS (
         SELECT s.series, {customer} AS customer, ARRAY[{dimensions}]::text[] AS dimensions
           FROM usage_series s
          WHERE s.tenant_id = %(tenant)s AND s.meter = %(meter)s {only}{where}),
"""

_ROWS = """
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

_WINDOWS = """
     parts AS (
         SELECT width_bucket(w.hour, %(starts)s::timestamptz[]) AS bucket, a.customer, a.dimensions,
                w.events, w.total, w.lowest, w.highest
           FROM asked a
           JOIN usage_window w ON w.tenant_id = %(tenant)s AND w.series = a.series
          WHERE w.hour >= %(first)s AND w.hour < %(last)s
            AND w.hour <> ALL (%(split)s::timestamptz[]) AND w.total IS NOT NULL AND w.events > 0
          UNION ALL
         SELECT width_bucket(v.event_time, %(starts)s::timestamptz[]), a.customer, a.dimensions,
                1, v.number, v.number, v.number
           FROM unnest(%(edge_starts)s::timestamptz[], %(edge_ends)s::timestamptz[]) AS e (start, stop)
          CROSS JOIN asked a
           JOIN usage_value v ON v.tenant_id = %(tenant)s AND v.series = a.series
                             AND v.event_time >= e.start AND v.event_time < e.stop
          WHERE v.number IS NOT NULL AND v.voided_offset IS NULL)
SELECT bucket, customer, dimensions, trim_scale({quantity}), sum(events)::bigint
  FROM parts
 GROUP BY bucket, customer, dimensions
 ORDER BY bucket, customer, dimensions
 LIMIT %(limit)s
"""
