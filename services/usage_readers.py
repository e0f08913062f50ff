"""Meters as the scanner reads them: raw properties in, columns of a row out; what `usage_measuring` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from billing.errors import Rejected
from billing.metering import Aggregation, Meter, number
from projections.usage_rows import Series, counted, value, whole
from services.usage_measuring import is_name
from services.usage_series import KnownSeries

ROOM = 300_000  # entries of all caches together, some 250 bytes each
_ZERO = ord("0")


class Pending(NamedTuple):
    """What is added to a series whose integer is not known yet."""

    series: Series
    value: bytes
    """As columns of a row."""


def settled(added: bytes | Pending, ids: Mapping[Series, int]) -> bytes:
    """`added` as columns of a row, now that the integers of all series are known."""
    if isinstance(added, Pending):
        return counted(ids[added.series], added.series.customer) + added.value
    return added


class Room:
    """What the caches of all scanners may still take; below 0 they start anew."""

    def __init__(self) -> None:
        self.left = ROOM


class Reader:
    """A meter, ready to read raw properties; gives what `usage_measuring` gives, as columns of a row."""

    def __init__(self, tenant: str, meter: Meter, known: KnownSeries, room: Room) -> None:
        self.is_plain = not (meter.condition or meter.expression or meter.time_of_day or meter.removal)
        """Whether it reads no more than properties."""
        self._tenant = tenant
        self._meter = meter
        self._known = known
        self._room = room
        self._filters = [(_name(each.property), frozenset(v.encode() for v in each.values)) for each in meter.filters]
        self._dimensions = [_name(each) for each in meter.dimensions]
        self._only = self._dimensions[0] if len(self._dimensions) == 1 else None
        self._value = _name(meter.value or "")
        self._one = value("1", None) if meter.aggregation is Aggregation.COUNT else None
        self._is_number = meter.aggregation is not Aggregation.UNIQUE
        self._series: dict[Any, bytes] = {}
        self._added: dict[bytes | None, bytes] = {}

    def read(self, customer: bytes, properties: dict[bytes, bytes]) -> bytes | Pending | None:
        """What is added to which series; empty where filters leave nothing, None where more must be looked at."""
        for name, allowed in self._filters:
            if properties.get(name) not in allowed:
                return b""
        text = properties.get(self._value)
        if text is None and not self._is_number:
            return b""
        if self._only is not None:
            key: Any = customer + properties.get(self._only, b"")  # the customer has its length before it
        elif self._dimensions:
            key = (customer, *[properties.get(each, b"") for each in self._dimensions])
        else:
            key = customer
        series = self._series.get(key) or self._find(key, customer, properties)
        if series is None:
            return None
        if self._one is not None:
            added: bytes | None = self._one
        elif self._is_number and text is not None and len(text) < 9 and text.isdigit() and text[0] != _ZERO:
            added = whole(int(text))
        else:
            added = self._added.get(text)
            if added is None:
                added = self._learn(text)
        if added is None:
            return None
        return series + added if isinstance(series, bytes) else Pending(series, added)

    def _find(self, key: Any, customer: bytes, properties: dict[bytes, bytes]) -> Any:
        """The columns that tell the series, or itself as long as its integer is not known; None: it may not be."""
        meter, name = self._meter, customer[1:].decode()
        values = tuple(properties.get(each, b"").decode() for each in self._dimensions)
        series = Series(self._tenant, name, meter.key, meter.dimensions, values)
        integer = self._known.of(series)
        if integer is None:
            return series if is_name(name) else None
        self._room.left -= 1
        made = self._series[key] = counted(integer, name)
        return made

    def _learn(self, text: bytes | None) -> bytes | None:
        """What a property's value adds; None if it may not."""
        self._room.left -= 1
        told = (text or b"").decode()
        if not self._is_number:
            made = value(None, told)
        else:
            try:
                number(told, self._meter.key, signed=self._meter.signed)
            except Rejected:
                return None
            made = value(told, None)
        self._added[text] = made
        return made


def gathered(
    first: bytes | Pending | None, others: list[Reader], customer: bytes, properties: dict[bytes, bytes]
) -> tuple[bytes | Pending | None, list[bytes | Pending]]:
    """What is added to the first meter of several, and to others; None if for one of them more must be looked at."""
    added = [first, *[each.read(customer, properties) for each in others]]
    made = [each for each in added if each]
    if None in added:
        return None, []
    return (made[0] if made else b""), made[1:]


def _name(text: str) -> bytes:
    """A property's name as it stands in Avro."""
    data = text.encode()
    return bytes((2 * len(data),)) + data if len(data) < 64 else data
