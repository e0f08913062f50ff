"""Usage as a table: what a meter measured, by window of local time, customer and dimensions. Equal to what is billed.

Everything that is applied counts, in the statement's snapshot. Sums by day and hourly windows are used where they lie
within one window of the answer; the rows decide where a boundary cuts them (`usage_cover`). What would have to read too
much is refused. Meters whose quantity is no plain aggregate of such rows go the
way that invoices go (`usage_read`), customer by customer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.aggregation import next_window, window_start
from billing.errors import Rejected
from billing.ids import CustomerId, TenantId
from billing.metering import Aggregation, Meter, UsageControl
from billing.period import Period
from projections import usage_read
from projections.usage import Tx
from projections.usage_cover import HOUR, Cover, cover, outwards
from projections.usage_query_statements import (
    AGGREGATES,
    ASKED,
    DAYS,
    EDGES,
    EVENTS,
    PARTS,
    ROWS,
    SERIES,
    TOTALS,
    VALUE,
    WINDOWS,
)
from projections.usage_rollup import DAY_SLOTS, NEVER, TOTAL_SLOTS, rolled
from schemas.codec import decode_usage

UNITS: Final = ("minute", "hour", "day", "week", "month")
WINDOWS_MAX: Final = 10_000
ROWS_MAX: Final = 10_000
EVENTS_MAX: Final = 1_000_000
"""Read one by one for an answer: a second or two."""
HOURS_MAX: Final = 1_000_000
"""Hourly windows of series, likewise: for the greatest and the least, which no sum tells."""
ONE_BY_ONE_MAX: Final = 1_000
"""Readings of one customer and window, for meters that are no plain aggregate."""


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
        Rejected: a dimension is not the meter's, the answer would be too large, or it would read too much.
    """
    try:
        return _answers(tx, tenant, question)
    except Exception as error:
        if getattr(error, "sqlstate", None) != _TOOK_TOO_LONG:
            raise
        raise Rejected(
            "too_much_to_read", "it would take longer than a statement may: ask for less time or one customer"
        ) from error


_TOOK_TOO_LONG = "57014"


def _answers(tx: Tx, tenant: str, question: Question) -> list[Answer]:
    _check(question)
    starts = _starts(question)
    if not _is_plain(question.meter):
        return _one_by_one(tx, tenant, question, starts)
    statement, parameters = _statement(tx, tenant, question, starts)
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
    while (at := next_window(at, unit, question.zone)) < period.end:
        made.append(at)
        if len(made) > WINDOWS_MAX:
            said = f"more than {WINDOWS_MAX:,} windows; ask for less time or wider windows"
            raise Rejected("too_many_windows", said, field="window")
    return made


def _window(starts: Sequence[datetime], place: int, period: Period) -> Period:
    return Period(starts[place], starts[place + 1] if place + 1 < len(starts) else period.end)


def _is_plain(meter: Meter) -> bool:
    """Whether the quantity follows from the rows by one aggregate: true unless the meter asks for more than that."""
    plain = ("key", "event_type", "aggregation", "value", "dimensions", "filters")
    return meter.aggregation in AGGREGATES and all(
        getattr(meter, each.name) == each.default for each in fields(meter) if each.name not in plain
    )


def _statement(tx: Tx, tenant: str, question: Question, starts: list[datetime]) -> tuple[str, dict[str, Any]]:
    """How the answer is found, and what the statement takes.

    Raises:
        Rejected: too much would have to be read.
    """
    by_window, by_row = AGGREGATES[question.meter.aggregation]
    names = {f"by_{place}": name for place, name in enumerate(question.by)}
    wanted = {f"where_{place}": name for place, name in enumerate(question.where)}
    values = {f"value_{place}": value for place, value in enumerate(question.where.values())}
    filled = {
        "customer": "s.customer_id" if question.by_customer else "NULL::text",
        "dimensions": ", ".join(VALUE.format(name=name) for name in names),
        "only": "AND s.customer_id = %(customer)s" if question.customer is not None else "",
        "where": "".join(f" AND {VALUE.format(name=n)} = %({v})s" for n, v in zip(wanted, values, strict=True)),
    }
    parameters: dict[str, Any] = {
        "tenant": tenant,
        "meter": question.meter.key,
        "customer": question.customer,
        "start": question.period.start,
        "end": question.period.end,
        "starts": starts,
        "limit": ROWS_MAX + 1,
        **names,
        **wanted,
        **values,
    }
    together = question.customer is None and not question.by_customer
    sums = TOTALS.format(**filled) if together else DAYS
    slots = TOTAL_SLOTS if together else DAY_SLOTS
    until = rolled(tx).until
    asked = ASKED.format(**filled)
    if by_window is None:
        _check_rows(tx, asked, sums, parameters, outwards([(question.period.start, question.period.end)], until, slots))
        kept = "text_value" if question.meter.aggregation is Aggregation.UNIQUE else "number"
        return asked + ROWS.format(quantity=by_row, kept=kept), parameters
    is_summed = question.meter.aggregation in (Aggregation.COUNT, Aggregation.SUM)
    made = cover(starts, question.period.end, until if is_summed else NEVER, slots)
    _check_rows(tx, asked, sums, parameters, outwards(made.edges, until, slots))
    if not is_summed:
        _check_windows(tx, asked, parameters, made)
    parts = [sums] * bool(made.slices) + [WINDOWS] * bool(made.hours) + [EDGES] * bool(made.edges)
    return asked + PARTS.format(quantity=by_window, parts="UNION ALL".join(parts)), parameters | made.given()


def _check_rows(tx: Tx, asked: str, sums: str, parameters: dict[str, Any], rows: Cover) -> None:
    if not rows.slices and not rows.hours:
        return
    # Where there are sums, what came since is little beside them.
    parts = sums if rows.slices else WINDOWS
    found = tx.execute(asked + EVENTS.format(parts=parts), parameters | rows.given()).fetchone()
    if found is not None and found[0] > EVENTS_MAX:
        raise Rejected(
            "too_much_to_read",
            f"about {found[0]:,} events would have to be read one by one; allowed are {EVENTS_MAX:,}: ask for less"
            " time, one customer, or windows and a span that begin on whole hours",
        )


def _check_windows(tx: Tx, asked: str, parameters: dict[str, Any], made: Cover) -> None:
    hours = sum((end - start) // HOUR for start, end in made.hours)
    found = tx.execute(asked + SERIES, parameters).fetchone()
    if found is not None and found[0] * hours > HOURS_MAX:
        raise Rejected(
            "too_much_to_read",
            f"{found[0]:,} series by {hours:,} hours would have to be read one by one; allowed are {HOURS_MAX:,}: ask"
            " for less time or one customer",
        )


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
