"""Meters: which usage is measured, and how events become a quantity. Plain data; `check_meter` refuses what cannot be.

    event -> type, filters -> value, dimensions -> aggregated per period, or per local window and summed

A meter that carries over measures a level: what is held at a period's end goes on into the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from billing.errors import Rejected
from billing.price_check import check_percent
from billing.tenant import zone

HOURS = 24
EXPRESSION_LENGTH_MAX = 500  # characters; longer conditions belong into the producer


class Aggregation(StrEnum):
    """How a meter turns events into a quantity; all exact (SEMANTICS 15)."""

    COUNT = "count"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    LATEST = "latest"
    UNIQUE = "unique"
    AVERAGE = "average"
    WEIGHTED_SUM = "weighted_sum"
    PERCENTILE = "percentile"


class WindowUnit(StrEnum):
    """A local span of time that is measured by itself."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Lets an event through if its property has one of the values."""

    property: str
    """Name of the event's property."""
    values: tuple[str, ...]
    """Allowed values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A part of the day."""

    begins: int
    """Local hour from which on it holds, 0 to 23."""
    name: str
    """Value of the dimension while it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOfDay:
    """A dimension that tells in which part of the day an event lies, for prices by time of day."""

    dimension: str
    """Its name, one of the meter's dimensions; a property of that name is not looked at."""
    bands: tuple[Band, ...]
    """Ascending; before the first one the last one still holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Measures one kind of usage."""

    key: str
    """Unique in the tenant; charges and entitlements refer to it."""
    event_type: str
    """Type of the events that feed it."""
    aggregation: Aggregation = Aggregation.COUNT
    """How events become a quantity."""
    value: str | None = None
    """Property that holds the number, or the thing counted (unique); null for count."""
    dimensions: tuple[str, ...] = ()
    """Properties by which the quantity can be split, in order."""
    filters: tuple[Filter, ...] = ()
    """Conditions, all of which an event must meet to be measured."""
    condition: str = ""
    """CEL expression over `properties` that an event must also meet; empty for none."""
    expression: str = ""
    """CEL expression that gives the number, or the thing, instead of `value`; empty for none."""
    percent: Decimal | None = None
    """Which percentile, above 0 up to 100; null unless the aggregation is percentile."""
    carries_over: bool = False
    """Whether a period begins with what the one before ended with: a level, the things that are there."""
    removal: Filter | None = None
    """Tells the events by which a thing is gone from those by which it is there; null if things only come."""
    window: WindowUnit | None = None
    """The quantity is the sum over local windows, each aggregated by itself; null for the period as one."""
    zone: str = "UTC"
    """IANA zone of windows and of the time of day."""
    time_of_day: TimeOfDay | None = None
    """A dimension made from the event's time; null for none."""

    @property
    def signed(self) -> bool:
        """Whether values are changes of a level, which may go down."""
        return self.aggregation is Aggregation.WEIGHTED_SUM or (
            self.aggregation is Aggregation.SUM and self.carries_over
        )

    @property
    def is_level(self) -> bool:
        """Whether it measures units that are held over time, so that they can be priced by how long."""
        return self.carries_over and self.aggregation is not Aggregation.WEIGHTED_SUM


CARRYING = (Aggregation.SUM, Aggregation.LATEST, Aggregation.UNIQUE, Aggregation.WEIGHTED_SUM)
WINDOWED = (
    Aggregation.MAX,
    Aggregation.MIN,
    Aggregation.LATEST,
    Aggregation.UNIQUE,
    Aggregation.AVERAGE,
    Aggregation.PERCENTILE,
)


def check_meter(meter: Meter, path: str) -> None:
    """Refuse a meter definition that could not measure.

    Raises:
        Rejected: naming the field under `path`.
    """
    if not meter.key:
        raise Rejected("missing", "a meter needs a key", field=f"{path}.key")
    if not meter.event_type:
        raise Rejected("missing", "a meter needs the type of the events that feed it", field=f"{path}.event_type")
    if meter.aggregation is Aggregation.COUNT and meter.value is not None:
        raise Rejected("unexpected", "a count has no value property", field=f"{path}.value")
    if meter.aggregation is Aggregation.COUNT and meter.expression:
        raise Rejected("unexpected", "a count has no value; allowed is a condition", field=f"{path}.expression")
    if meter.aggregation is not Aggregation.COUNT and not meter.value and not meter.expression:
        said = f"{meter.aggregation} needs the property to take, or an expression"
        raise Rejected("missing", said, field=f"{path}.value")
    if meter.value and meter.expression:
        raise Rejected("unexpected", f"the property {meter.value!r} is taken already", field=f"{path}.expression")
    for name, source in (("condition", meter.condition), ("expression", meter.expression)):
        if len(source) > EXPRESSION_LENGTH_MAX:
            said = f"allowed are up to {EXPRESSION_LENGTH_MAX} characters"
            raise Rejected("invalid_expression", said, field=f"{path}.{name}")
    if len(set(meter.dimensions)) != len(meter.dimensions):
        raise Rejected("duplicate", "a dimension is named twice", field=f"{path}.dimensions")
    _check_percent(meter, f"{path}.percent")
    _check_level(meter, path)
    _check_window(meter, f"{path}.window")
    zone(meter.zone, f"{path}.zone")
    if meter.time_of_day is not None:
        _check_time_of_day(meter, meter.time_of_day, f"{path}.time_of_day")


def _check_percent(meter: Meter, path: str) -> None:
    if meter.aggregation is not Aggregation.PERCENTILE:
        if meter.percent is not None:
            raise Rejected("unexpected", "allowed only with the aggregation percentile", field=path)
        return
    if meter.percent is None:
        raise Rejected("missing", "which percentile? allowed is above 0 up to 100, such as 95", field=path)
    check_percent(meter.percent, path)
    if not meter.percent:
        raise Rejected("out_of_range", "0: allowed is above 0 up to 100", field=path)


def _check_level(meter: Meter, path: str) -> None:
    if meter.carries_over and meter.aggregation not in CARRYING:
        said = f"a {meter.aggregation} begins anew; allowed with {', '.join(CARRYING)}"
        raise Rejected("unexpected", said, field=f"{path}.carries_over")
    if meter.removal is None:
        return
    if meter.aggregation is not Aggregation.UNIQUE:
        said = "allowed only with unique; with a sum, what goes is a value below zero"
        raise Rejected("unexpected", said, field=f"{path}.removal")
    if not meter.removal.property:
        raise Rejected("missing", "it needs the property that tells", field=f"{path}.removal.property")
    if not meter.removal.values:
        raise Rejected("missing", "it needs the values that mean gone", field=f"{path}.removal.values")


def _check_window(meter: Meter, path: str) -> None:
    if meter.window is None:
        return
    if meter.aggregation not in WINDOWED:
        said = f"a {meter.aggregation} is not taken by windows; allowed with {', '.join(WINDOWED)}"
        raise Rejected("unexpected", said, field=path)
    if meter.carries_over or meter.removal is not None:
        raise Rejected("unexpected", "what carries over or leaves has no windows of its own", field=path)


def _check_time_of_day(meter: Meter, made: TimeOfDay, path: str) -> None:
    if made.dimension not in meter.dimensions:
        said = f"{made.dimension!r} must be one of the meter's dimensions: {', '.join(meter.dimensions) or 'none yet'}"
        raise Rejected("unknown_dimension", said, field=f"{path}.dimension")
    if not made.bands:
        raise Rejected("missing", "it needs at least one part of the day", field=f"{path}.bands")
    before = -1
    for index, band in enumerate(made.bands):
        where = f"{path}.bands[{index}]"
        if not band.name:
            raise Rejected("missing", "it needs a name", field=f"{where}.name")
        if not before < band.begins < HOURS:
            said = f"{band.begins}: allowed are whole hours from {before + 1} to {HOURS - 1}, ascending"
            raise Rejected("out_of_range", said, field=f"{where}.begins")
        before = band.begins
