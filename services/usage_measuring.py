"""Measuring: what one event contributes to its tenant's meters, as a control record defined them.

Pure, and the quick way to what `billing.metering` says: the rules are there, and whatever is refused takes their way.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from billing.errors import Rejected
from billing.metering import (
    GONE,
    ID_LENGTH_MAX,
    TEXT_LENGTH_MAX,
    Aggregation,
    Meter,
    UsageControl,
    UsageEvent,
    check_event,
    evaluated,
    meets,
    number,
    readings,
    time_band,
)
from billing.tenant import UsageBounds
from projections.usage import Series
from services.meter_expressions import formula

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES_KNOWN_MAX = 20_000
QUARTERS_KNOWN_MAX = 10_000  # a hundred days
SERIES_KNOWN_MAX = 30_000  # of one meter; then its cache starts anew
NEVER_US = -(2**63)
MICROSECOND = timedelta(microseconds=1)
_DAY_US, _QUARTER_US, _MINUTE_US = 86_400_000_000, 900_000_000, 60_000_000
_GONE = format(GONE, "f")

RawEvent = dict[str, Any]


class Contribution(NamedTuple):
    """What an event contributes to one meter: a number as decimal text, or a thing, with `GONE` one that is gone."""

    series: Series
    number: str | None
    text: str | None


class Measuring:
    """A tenant's meters and bounds as one control record set them."""

    def __init__(
        self, control: UsageControl, offset: int, value: bytes, registered_us: int = 0, accepted_from_us: int = NEVER_US
    ) -> None:
        """`registered_us`: append of the tenant's first control record in the partition."""
        self.control = control
        self.offset = offset
        self.value = value
        self.registered_us = registered_us
        self.accepted_from_us = accepted_from_us
        """Events before are refused, however wide the bounds: identities of that time may be pruned."""
        self._oldest_us = control.bounds.oldest_days * _DAY_US
        self._ahead_us = control.bounds.ahead_minutes * _MINUTE_US
        self._names: set[str] = set()
        self._by_type: dict[str, tuple[_Compiled, ...]] = {}
        for meter in control.meters:
            self._by_type[meter.event_type] = (*self._by_type.get(meter.event_type, ()), _Compiled(meter))

    def followed_by(self, control: UsageControl, offset: int, value: bytes, appended_us: int) -> Measuring:
        """The tenant measured by another control record from `appended_us` on.

        Bounds that become wider do not bring back what was pruned under the narrower ones: what they refused by then
        stays refused. A tenant with a test clock is never pruned.
        """
        pruned_before_us = appended_us - horizon_us(self.control.bounds)
        accepted_from_us = self.accepted_from_us
        if self.control.clock is None and pruned_before_us > self.registered_us:
            accepted_from_us = max(accepted_from_us, pruned_before_us + self._ahead_us)
        return Measuring(control, offset, value, self.registered_us, accepted_from_us)

    def contributions(self, raw: RawEvent, appended_us: int) -> list[Contribution]:
        """What an event contributes. The quick way for events in order; all others take the way of `billing.metering`.

        Raises:
            Rejected: the event is refused.
        """
        present_us = self._present_us(appended_us)
        properties: dict[str, str] = raw["properties"]
        compiled = self._by_type.get(raw["type"])
        source, customer = raw["source"], raw["customer"]
        texts = "".join(properties.values())
        if (
            compiled is None
            or not present_us - self._oldest_us <= raw["time"] <= present_us + self._ahead_us
            or raw["time"] < self.accepted_from_us
            or not is_name(raw["id"])
            or not (source in self._names or self._is_name(source))
            or not (customer in self._names or self._is_name(customer))
            or (len(texts) > TEXT_LENGTH_MAX and max(map(len, properties.values())) > TEXT_LENGTH_MAX)
            or "\0" in texts
        ):
            return self._slowly(raw, present_us)
        tenant, at = self.control.tenant, raw["time"]
        if len(compiled) == 1:
            made = compiled[0].read(tenant, customer, properties, at, source)
            return [] if made is None else [made]
        return [made for each in compiled if (made := each.read(tenant, customer, properties, at, source)) is not None]

    def accepted_us(self, appended_us: int) -> tuple[int, int]:
        """The first and the last event time that is accepted: what was counted since the first is known one by one,
        and can be corrected."""
        present_us = self._present_us(appended_us)
        return max(present_us - self._oldest_us, self.accepted_from_us), present_us + self._ahead_us

    def _present_us(self, appended_us: int) -> int:
        return appended_us if self.control.clock is None else (self.control.clock - EPOCH) // MICROSECOND

    def _is_name(self, text: str) -> bool:
        """`is_name`, remembered for sources and customers that have one."""
        if len(self._names) > NAMES_KNOWN_MAX:
            self._names.clear()
        if is_name(text):
            self._names.add(text)
            return True
        return False

    def _slowly(self, raw: RawEvent, present_us: int) -> list[Contribution]:
        event = event_of(raw)
        check_event(event, self.control.bounds, EPOCH + timedelta(microseconds=present_us))
        if raw["time"] < self.accepted_from_us:
            oldest = EPOCH + timedelta(microseconds=self.accepted_from_us)
            detail = f"{event.time} is before {oldest}, the oldest time accepted since the bounds were widened"
            raise Rejected("too_late", detail, field="time")
        names = {meter.key: meter.dimensions for meter in self.control.meters}
        return [
            Contribution(
                Series(self.control.tenant, event.customer, each.meter, names[each.meter], each.dimensions),
                None if each.number is None else format(each.number, "f"),
                each.text,
            )
            for each in readings(event, self.control.meters, formula)
            if each.number is not None or each.text is not None
        ]


def horizon_us(bounds: UsageBounds) -> int:
    """Age since its append from which on an identity is of no use: a copy's time would be refused. With a day to spare
    for brokers whose clocks differ."""
    return bounds.oldest_days * _DAY_US + bounds.ahead_minutes * _MINUTE_US + _DAY_US


class _Compiled:
    """A meter, ready to read raw events quickly; gives what `billing.metering.read` gives."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._key = meter.key
        self._names = meter.dimensions
        self._value = meter.value or ""
        self._field = f"properties.{meter.value}" if meter.value else "properties"
        self._is_count = meter.aggregation is Aggregation.COUNT
        self._is_unique = meter.aggregation is Aggregation.UNIQUE
        self._signed = meter.signed
        self._filters = [(each.property, frozenset(each.values)) for each in meter.filters]
        self._removal = (meter.removal.property, frozenset(meter.removal.values)) if meter.removal else None
        self._band = _Bands(meter) if meter.time_of_day else None
        self._series: dict[tuple[str, ...], Series] = {}

    def read(
        self, tenant: str, customer: str, properties: dict[str, str], at_us: int, source: str
    ) -> Contribution | None:
        for name, allowed in self._filters:
            if properties.get(name) not in allowed:
                return None
        if self._meter.condition and not meets(self._meter, properties, source, formula):
            return None
        key = (customer, *[properties.get(each, "") for each in self._names]) if self._names else (customer,)
        if self._band is not None:
            key = self._band.placed(key, at_us)
        series = self._series.get(key)
        if series is None:
            if len(self._series) > SERIES_KNOWN_MAX:
                self._series.clear()
            series = self._series[key] = Series(tenant, customer, self._key, self._names, key[1:])
        if self._is_count:
            return Contribution(series, "1", None)
        if self._meter.expression:
            value: str | None = evaluated(self._meter, properties, source, formula)
        else:
            value = properties.get(self._value)
        if self._is_unique:
            gone = self._removal is not None and properties.get(self._removal[0]) in self._removal[1]
            return Contribution(series, _GONE if gone else None, value) if value else None
        if value is None:
            raise Rejected("missing_value", f"meter {self._key!r} needs it as a number", field=self._field)
        if not (len(value) < 10 and value.isdigit() and value.isascii() and value[0] != "0"):
            number(value, self._field, signed=self._signed)  # for its refusals
        return Contribution(series, value, None)


class _Bands:
    """The part of the day of an event, known by quarters of an hour: every zone is some of them from UTC."""

    def __init__(self, meter: Meter) -> None:
        assert meter.time_of_day is not None
        self._place = 1 + meter.dimensions.index(meter.time_of_day.dimension)
        self._name = time_band(meter)
        self._known: dict[int, str] = {}

    def placed(self, key: tuple[str, ...], at_us: int) -> tuple[str, ...]:
        """`key`, a customer and the values of the dimensions, with the part of the day in its place."""
        quarter = at_us // _QUARTER_US
        name = self._known.get(quarter)
        if name is None:
            if len(self._known) > QUARTERS_KNOWN_MAX:
                self._known.clear()
            name = self._known[quarter] = self._name(EPOCH + timedelta(microseconds=quarter * _QUARTER_US))
        return (*key[: self._place], name, *key[self._place + 1 :])


def event_of(raw: RawEvent) -> UsageEvent:
    """A raw event as the rules know it.

    Raises:
        Rejected: its time is none that a calendar knows.
    """
    try:
        time = EPOCH + timedelta(microseconds=raw["time"])
    except OverflowError as e:
        code = "too_late" if raw["time"] < 0 else "in_future"
        raise Rejected(code, "the time lies outside of the years 1 to 9999", field="time") from e
    return UsageEvent(**{**raw, "time": time})


def raw_of(event: UsageEvent) -> RawEvent:
    """The other way."""
    return {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "customer": event.customer,
        "time": (event.time - EPOCH) // MICROSECOND,
        "properties": dict(event.properties),
    }


def is_name(text: str) -> bool:
    """Whether `text` may name a tenant, a customer, a source or an event."""
    return 0 < len(text) <= ID_LENGTH_MAX and text.isprintable()
