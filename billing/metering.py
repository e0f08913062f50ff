"""Metering: what a usage event is, which meters it feeds, and with which value.

An event is identified by (tenant, source, id). It feeds every meter of the tenant whose event type is
its own and whose filters it passes; SEMANTICS 13 to 17 and the order of steps in 14.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Protocol
from zoneinfo import ZoneInfo

from billing.backfilling import Backfill
from billing.errors import Rejected
from billing.ids import ID_LENGTH_MAX as ID_LENGTH_MAX
from billing.ids import TenantId
from billing.meter import Aggregation as Aggregation
from billing.meter import Filter as Filter
from billing.meter import Meter as Meter
from billing.meter import check_meter as check_meter
from billing.placing import Spread
from billing.tenant import UsageBounds

TEXT_LENGTH_MAX = 256  # of a property; longer values are documents, not dimensions
DIGITS_MAX = 26  # before the point; with 12 after it a value fits decimal(38, 12), the log's own limit
SCALE_MAX = 12
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """Something a customer used, as the producer reports it."""

    id: str
    """Unique per tenant and source; a repetition with the same content is a duplicate."""
    source: str
    """The producer, such as a service's name."""
    type: str
    """What happened; meters choose by it."""
    customer: str
    """Customer id of who used it."""
    time: datetime
    """When it was used (UTC)."""
    properties: Mapping[str, str]
    """Details; numbers as decimal text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBatch:
    """One record on the usage log: one event or many of one tenant."""

    tenant: TenantId
    """The tenant whose customers used something."""
    events: tuple[UsageEvent, ...]
    """At least one event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageControl:
    """A tenant's meter set and bounds, effective from this record's position in every usage partition on."""

    tenant: TenantId
    """The tenant."""
    version: int
    """Sequence of the tenant event that it publishes; a record whose version is not above the last changes nothing."""
    meters: tuple[Meter, ...]
    """All meters of the tenant."""
    bounds: UsageBounds
    """Which event times are accepted."""
    clock: datetime | None = None
    """Present of the tenant's test clock, against which bounds are judged; null: the broker's append time."""
    spread: tuple[Spread, ...] = ()
    """Over how many partitions usage is spread, in order of time; empty: the tenant's own one only."""
    backfill: Backfill | None = None
    """What is counted again, of the events before this record in its partition; null: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageVoided:
    """An event that came before this record in its partition never happened: from here on it does not count."""

    tenant: TenantId
    """The tenant."""
    source: str
    """Source of the event."""
    id: str
    """Id of the event."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageAmended:
    """An event that came before this record in its partition was another one: from here on it counts as `event`."""

    tenant: TenantId
    """The tenant."""
    event: UsageEvent
    """The event as it should have been; source and id say which one."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedUsage:
    """Usage that could not be accepted, with the reason and the original bytes."""

    tenant: TenantId | None = None
    """The tenant, or null where the record does not tell."""
    reason: str
    """Stable code of the reason."""
    detail: str
    """What is wrong and what is allowed."""
    field: str = ""
    """Path of the offending field, or empty."""
    topic: str
    """Topic of the refused record."""
    partition: int
    """Partition of the refused record."""
    offset: int
    """Offset of the refused record."""
    index: int | None = None
    """Place of the refused event in its batch; null if the whole record was refused."""
    source: str | None = None
    """Source of the event, as far as it could be read."""
    id: str | None = None
    """Id of the event, as far as it could be read."""
    original: bytes
    """Value of the refused record as it was, or the Avro record of the one refused event."""


@dataclass(frozen=True, slots=True)
class Change:
    """Units that came or went, with the share of the full period that the change counts for."""

    units: Decimal
    """Above zero if they came."""
    prorated: Fraction
    """Units times the share; of the sign of `units`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a meter measured for one customer and span: the input of rating."""

    total: Decimal
    """The aggregate over all dimensions."""
    cells: tuple[tuple[tuple[str, ...], Decimal], ...] = ()
    """The aggregate per combination of dimension values, sorted."""
    transactions: tuple[Decimal, ...] = ()
    """Value of each event in order of time, for prices per transaction."""
    events: int = 0
    """Number of events in the period."""
    held: tuple[Change, ...] | None = None
    """How the level changed, beginning with what was carried over; None unless it is priced by how long it is held."""
    held_cells: tuple[tuple[tuple[str, ...], tuple[Change, ...]], ...] = ()
    """The same per combination of dimension values, sorted."""


NOTHING = Measured(Decimal(0))


@dataclass(frozen=True, slots=True)
class Reading:
    """What one event contributes to one meter."""

    meter: str
    dimensions: tuple[str, ...]
    number: Decimal | None
    """The value to sum or compare; None for a thing, or `GONE` for one that is gone."""
    text: str | None
    """The thing counted; None unless unique."""


GONE = Decimal(-1)


class Formula(Protocol):
    """A compiled expression of a meter. Rules never evaluate one: they are given what it says of an event.

    Each raises `Rejected` if it cannot be evaluated on an event, or gives something else.
    """

    def passes(self, properties: Mapping[str, str], source: str) -> bool:
        """Whether the event meets the condition."""

    def value(self, properties: Mapping[str, str], source: str) -> Decimal:
        """The number that the event contributes."""

    def text(self, properties: Mapping[str, str], source: str) -> str:
        """The thing that the event tells of."""


Formulas = Callable[[str], Formula]
"""The compiled form of an expression."""


def without_formulas(source: str) -> Formula:
    """For meters that have no expressions.

    Raises:
        ValueError: one has.
    """
    raise ValueError(f"nobody can evaluate {source!r} here")


def check_event(event: UsageEvent, bounds: UsageBounds, present: datetime) -> None:
    """Refuse an event that no meter set could accept, before looking at meters.

    Raises:
        Rejected: naming the field and what is allowed.
    """
    for name, value in (("id", event.id), ("source", event.source), ("type", event.type), ("customer", event.customer)):
        if not 0 < len(value) <= ID_LENGTH_MAX or not value.isprintable():
            raise Rejected(f"invalid_{name}", f"allowed are 1 to {ID_LENGTH_MAX} printable characters", field=name)
    oldest = present - timedelta(days=bounds.oldest_days)
    if event.time < oldest:
        raise Rejected("too_late", f"{event.time} is before {oldest}, the oldest time accepted", field="time")
    newest = present + timedelta(minutes=bounds.ahead_minutes)
    if event.time > newest:
        raise Rejected("in_future", f"{event.time} is after {newest}, the latest time accepted", field="time")
    for name, value in event.properties.items():
        if len(value) > TEXT_LENGTH_MAX or "\0" in value:
            raise Rejected(
                "invalid_text",
                f"allowed are up to {TEXT_LENGTH_MAX} characters without NUL",
                field=f"properties.{name}",
            )


def readings(event: UsageEvent, meters: Sequence[Meter], formulas: Formulas = without_formulas) -> list[Reading]:
    """What `event` contributes to each of the tenant's `meters`; empty if filters and conditions leave none.

    Raises:
        Rejected: no meter takes the event's type; a value is missing, not a number, or negative where it must not; or
            an expression cannot be evaluated on it.
    """
    candidates = [meter for meter in meters if meter.event_type == event.type]
    if not candidates:
        known = ", ".join(sorted({meter.event_type for meter in meters})) or "none"
        raise Rejected("unknown_meter", f"no meter takes events of type {event.type!r}; known: {known}", field="type")
    return [
        read(meter, event, formulas)
        for meter in candidates
        if passes(meter.filters, event.properties) and meets(meter, event.properties, event.source, formulas)
    ]


def passes(filters: Iterable[Filter], properties: Mapping[str, str]) -> bool:
    """Whether an event with `properties` meets all `filters`."""
    return all(properties.get(each.property) in each.values for each in filters)


def meets(meter: Meter, properties: Mapping[str, str], source: str, formulas: Formulas) -> bool:
    """Whether an event meets the condition of `meter`."""
    if not meter.condition:
        return True
    try:
        return formulas(meter.condition).passes(properties, source)
    except Rejected as e:
        raise _failed(meter, "condition", e) from e


def read(meter: Meter, event: UsageEvent, formulas: Formulas = without_formulas) -> Reading:
    """What `event` contributes to `meter`, whose type, filters and condition it meets."""
    dimensions = tuple(event.properties.get(name, "") for name in meter.dimensions)
    if meter.time_of_day is not None:
        place, band = meter.dimensions.index(meter.time_of_day.dimension), time_band(meter)(event.time)
        dimensions = (*dimensions[:place], band, *dimensions[place + 1 :])
    if meter.aggregation is Aggregation.COUNT:
        return Reading(meter.key, dimensions, Decimal(1), None)
    if meter.expression:
        value: str | None = evaluated(meter, event.properties, event.source, formulas)
    else:
        assert meter.value is not None
        value = event.properties.get(meter.value)
    if meter.aggregation is Aggregation.UNIQUE:
        # A missing or empty value is no thing to count: the event is accepted and adds nothing.
        gone = bool(value) and meter.removal is not None and passes((meter.removal,), event.properties)
        return Reading(meter.key, dimensions, GONE if gone else None, value or None)
    field = f"properties.{meter.value}" if meter.value else "properties"
    if value is None:
        raise Rejected("missing_value", f"meter {meter.key!r} needs it as a number", field=field)
    return Reading(meter.key, dimensions, number(value, field, signed=meter.signed), None)


def evaluated(meter: Meter, properties: Mapping[str, str], source: str, formulas: Formulas) -> str:
    """What the expression of `meter` gives for an event: decimal text, or the thing."""
    formula = formulas(meter.expression)
    try:
        if meter.aggregation is not Aggregation.UNIQUE:
            return format(formula.value(properties, source), "f")
        text = formula.text(properties, source)
        if len(text) > TEXT_LENGTH_MAX or "\0" in text:
            raise Rejected("", f"allowed are up to {TEXT_LENGTH_MAX} characters without NUL", field="properties")
        return text
    except Rejected as e:
        raise _failed(meter, "expression", e) from e


def _failed(meter: Meter, what: str, refused: Rejected) -> Rejected:
    return Rejected("expression_failed", f"meter {meter.key!r}, its {what}: {refused.detail}", field=refused.field)


def time_band(meter: Meter) -> Callable[[datetime], str]:
    """What tells the part of the day of an instant, for a meter with a time of day."""
    assert meter.time_of_day is not None
    zone, bands = ZoneInfo(meter.zone), meter.time_of_day.bands

    def name(instant: datetime) -> str:
        hour = instant.astimezone(zone).hour
        return next((each.name for each in reversed(bands) if each.begins <= hour), bands[-1].name)

    return name


def number(text: str, field: str, *, signed: bool = False) -> Decimal:
    """`text` as an exact decimal, of 0 or more unless `signed`, with at most 26 digits before and 12 after the point.

    Raises:
        Rejected: naming `field`.
    """
    if not _DECIMAL.match(text):
        raise Rejected("invalid_decimal", f"{text[:40]!r} is not a plain decimal such as 12 or 0.5", field=field)
    try:
        value = Decimal(text)
    except InvalidOperation as e:
        raise Rejected("invalid_decimal", f"{text[:40]!r} is not a number", field=field) from e
    if value < 0 and not signed:
        raise Rejected("out_of_range", f"{text[:40]} is negative; allowed is 0 or more", field=field)
    whole, _, decimals = text.removeprefix("-").partition(".")
    if len(whole) > DIGITS_MAX or len(decimals) > SCALE_MAX:
        raise Rejected(
            "out_of_range", f"allowed are {DIGITS_MAX} digits before and {SCALE_MAX} after the point", field=field
        )
    return value
