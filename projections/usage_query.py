"""Usage as a table: what a meter measured, by window of local time, customer and dimensions. Equal to what is billed.

Everything that is applied counts, in the statement's snapshot. Sums by day and hourly windows are used where they lie
within one window of the answer; the rows decide where a boundary cuts them (`usage_cover`). What would have to read too
much is refused. Meters whose quantity is no plain aggregate of such rows go the
way that invoices go (`usage_read`), customer by customer.

Customers that are told apart come in pages of so many customers, by name: a page reads only their series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.aggregation import next_window, window_start
from billing.errors import Rejected
from billing.ids import CustomerId, TenantId
from billing.metering import Aggregation, Meter
from billing.period import Period
from projections import usage_read
from projections.usage import Tx
from projections.usage_cover import HOUR, Cover, cover, outwards
from projections.usage_query_statements import (
    AGGREGATES,
    ASKED,
    CUSTOMERS,
    DAYS,
    EDGES,
    EDGES_BY_TIME,
    EVENTS,
    PARTS,
    ROWS,
    SERIES,
    SPAN,
    TOTALS,
    VALUE,
    WINDOWS,
)
from projections.usage_rollup import DAY_SLOTS, NEVER, TOTAL_SLOTS, rolled

UNITS: Final = ("minute", "hour", "day", "week", "month")
WINDOWS_MAX: Final = 10_000
ROWS_MAX: Final = 10_000
EVENTS_MAX: Final = 1_000_000
"""Read one by one for an answer: a second or two."""
HOURS_MAX: Final = 1_000_000
"""Hourly windows of series, likewise: for the greatest and the least, which no sum tells."""
ONE_BY_ONE_MAX: Final = 1_000
"""Readings of one customer and window, for meters that are no plain aggregate."""
SPANS_MAX: Final = 4
"""Of rows of all customers that are read by time."""
PAGE: Final = 200
"""Customers that `answers` reads at once."""


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


@dataclass(frozen=True, slots=True)
class CustomerPage:
    """The rows of some customers."""

    rows: list[Answer]
    """In order of time, customer and dimensions. A customer without usage in the span has none."""
    following: str | None
    """What the next page goes on after: the last customer of this one; None: this is the last page."""


def page(tx: Tx, tenant: str, question: Question, *, after: str, limit: int) -> CustomerPage:
    """The rows of the customers that follow `after` by name, whatever that is, at most `limit` of them (1 or more).

    They are fewer where with so many windows they could have more rows than an answer may, or take more readings.
    Where customers are not told apart there is one page.
    `tx` has entered the generation of usage.

    Raises:
        Rejected: a dimension is not the meter's, the answer would be too large, or it would read too much.
    """
    with _in_time():
        starts = _checked(question)
        customers, following = _customers(tx, tenant, question, starts, after, limit)
        return CustomerPage(_rows(tx, tenant, question, starts, customers), following)


def answers(tx: Tx, tenant: str, question: Question) -> list[Answer]:
    """The rows, in order of time, customer and dimensions. Where nothing was measured there is no row.

    Customers that are told apart are read page by page, however many they are.
    `tx` has entered the generation of usage.

    Raises:
        Rejected: a dimension is not the meter's, the answer would be too large, or it would read too much.
    """
    with _in_time():
        starts = _checked(question)
        found: list[Answer] = []
        after: str | None = ""
        while after is not None:
            customers, after = _customers(tx, tenant, question, starts, after, PAGE)
            found += _divided(tx, tenant, question, starts, customers)
        return sorted(found, key=lambda each: each.period.start)  # stable: customers stay in Postgres' order


_TOOK_TOO_LONG = "57014"
_TOO_LARGE = frozenset({"too_many_rows", "too_much_to_read"})


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if getattr(error, "sqlstate", None) != _TOOK_TOO_LONG:
            raise
        raise Rejected(
            "too_much_to_read", "it would take longer than a statement may: ask for less time or fewer customers"
        ) from error


def _divided(
    tx: Tx, tenant: str, question: Question, starts: list[datetime], customers: Sequence[str] | None
) -> list[Answer]:
    """As `_rows`; each half of `customers` by itself where together they are too much."""
    try:
        return _rows(tx, tenant, question, starts, customers)
    except Rejected as error:
        if error.code not in _TOO_LARGE or customers is None or len(customers) < 2:
            raise
    middle = len(customers) // 2
    halves = (customers[:middle], customers[middle:])
    return [row for half in halves for row in _divided(tx, tenant, question, starts, half)]


def _rows(
    tx: Tx, tenant: str, question: Question, starts: list[datetime], customers: Sequence[str] | None
) -> list[Answer]:
    """Of `customers`, told apart; None: of all together, or of the one that is asked for."""
    if customers is not None and not customers:
        return []
    if not _is_plain(question.meter):
        return _one_by_one(tx, tenant, question, starts, customers)
    statement, parameters = _statement(tx, tenant, question, starts, customers)
    rows = tx.execute(statement, parameters).fetchall()
    if len(rows) > ROWS_MAX:
        raise Rejected(
            "too_many_rows", f"more than {ROWS_MAX:,} rows: ask for less time, wider windows or fewer customers"
        )
    return [
        Answer(_window(starts, bucket - 1, question.period), customer, tuple(dimensions), quantity, events)
        for bucket, customer, dimensions, quantity, events in rows
    ]


def _checked(question: Question) -> list[datetime]:
    """The starts of its windows, see `_starts`.

    Raises:
        Rejected: the meter cannot be split like that, or there are too many windows.
    """
    meter, known = question.meter, question.meter.dimensions
    for name in (*question.by, *question.where):
        if name not in known:
            said = f"meter {meter.key!r} has no dimension {name!r}; it has: {', '.join(known) or 'none'}"
            raise Rejected("unknown_dimension", said, field="by" if name in question.by else "where")
    if not _is_plain(meter) and (question.where or question.by not in ((), known)):
        said = f"meter {meter.key!r} can be split by all of its dimensions, or by none: {', '.join(known)}"
        raise Rejected("unsupported", said, field="by")
    return _starts(question)


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


def _statement(
    tx: Tx, tenant: str, question: Question, starts: list[datetime], customers: Sequence[str] | None
) -> tuple[str, dict[str, Any]]:
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
        "only": _only(question, customers),
        "where": "".join(f" AND {VALUE.format(name=n)} = %({v})s" for n, v in zip(wanted, values, strict=True)),
    }
    parameters: dict[str, Any] = {
        "tenant": tenant,
        "meter": question.meter.key,
        "customer": question.customer,
        "customers": list(customers or ()),
        "start": question.period.start,
        "end": question.period.end,
        "starts": starts,
        "limit": ROWS_MAX + 1,
        **names,
        **wanted,
        **values,
    }
    together = question.customer is None and customers is None
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
    edges = EDGES
    if together and len(made.edges) <= SPANS_MAX:
        edges = EDGES_BY_TIME.format(spans=" OR ".join(SPAN.format(place=place) for place in range(len(made.edges))))
        for place, (start, end) in enumerate(made.edges):
            parameters |= {f"edge_start_{place}": start, f"edge_end_{place}": end}
    parts = [sums] * bool(made.slices) + [WINDOWS] * bool(made.hours) + [edges] * bool(made.edges)
    return asked + PARTS.format(quantity=by_window, parts="UNION ALL".join(parts)), parameters | made.given()


def _only(question: Question, customers: Sequence[str] | None) -> str:
    if customers is not None:
        return "AND s.customer_id = ANY(%(customers)s)"
    return "AND s.customer_id = %(customer)s" if question.customer is not None else ""


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
            " time, fewer customers, or windows and a span that begin on whole hours",
        )


def _check_windows(tx: Tx, asked: str, parameters: dict[str, Any], made: Cover) -> None:
    hours = sum((end - start) // HOUR for start, end in made.hours)
    found = tx.execute(asked + SERIES, parameters).fetchone()
    if found is not None and found[0] * hours > HOURS_MAX:
        raise Rejected(
            "too_much_to_read",
            f"{found[0]:,} series by {hours:,} hours would have to be read one by one; allowed are {HOURS_MAX:,}: ask"
            " for less time or fewer customers",
        )


def _one_by_one(
    tx: Tx, tenant: str, question: Question, starts: list[datetime], customers: Sequence[str] | None
) -> list[Answer]:
    """By the function that invoices use, for each customer and window."""
    meter = question.meter
    if customers is None:
        customers = [question.customer] if question.customer is not None else _following(tx, tenant, meter, "", 2)
        if len(customers) > 1:
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


def _customers(
    tx: Tx, tenant: str, question: Question, starts: Sequence[datetime], after: str, limit: int
) -> tuple[list[str] | None, str | None]:
    """The customers of a page, None where they are not told apart, and what the next one goes on after."""
    if not question.by_customer:
        return None, None
    if question.customer is not None:
        return [question.customer], None
    most = ROWS_MAX if _is_plain(question.meter) else ONE_BY_ONE_MAX
    limit = max(1, min(limit, most // len(starts)))
    found = _following(tx, tenant, question.meter, after, limit + 1)
    return found[:limit], found[limit - 1] if len(found) > limit else None


def _following(tx: Tx, tenant: str, meter: Meter, after: str, limit: int) -> list[str]:
    """The first `limit` customers that the meter ever measured, of those after `after`, as Postgres sorts them."""
    given = {"tenant": tenant, "meter": meter.key, "after": after, "limit": limit}
    return [customer for (customer,) in tx.execute(CUSTOMERS, given).fetchall()]
