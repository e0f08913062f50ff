"""A usage event, as a producer reports it."""

from __future__ import annotations

import itertools
import os
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

NAME_LENGTH_MAX = 128  # of id, source, type and customer
TEXT_LENGTH_MAX = 256  # of a property
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TOO_LARGE = 10**TEXT_LENGTH_MAX  # would not fit a property, and Python refuses to write what is much larger
_MS_NS = 1_000_000
_VERSION_7 = 7 << 12
_VARIANT = 2 << 14


class InvalidEvent(ValueError):
    """This event would be refused. Nothing was sent."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        """The offending field: `id`, `properties.distance`, ..."""
        self.detail = detail
        """What is wrong and what is allowed."""


class _Process:
    """What sets the ids of this process apart from those of any other; drawn anew in the child of a fork."""

    def __init__(self) -> None:
        self.node = os.urandom(6).hex()
        self.count = itertools.count(int.from_bytes(os.urandom(2), "little"))


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]  # the same object, drawn anew


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique, and in order of time to a quarter of a microsecond.

    After the time come a counter of 14 bits and 48 random bits of the process.
    """
    ms, rest = divmod(clock.time_ns(), _MS_NS)
    high = f"{ms << 16 | _VERSION_7 | (rest << 12) // _MS_NS:016x}"
    return f"{high[:8]}-{high[8:12]}-{high[12:]}-{_VARIANT | next(_process.count) & 0x3FFF:04x}-{_process.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """Something a customer used.

    (tenant, source, id) identifies it: sent again, with the same content, it counts once. So keep the event, or its
    id, until it is delivered, and send the same one again.
    """

    type: str
    """What happened; meters choose by it."""
    customer: str
    """Customer id of who used it."""
    time: datetime
    """When it was used; with an offset."""
    properties: Mapping[str, str | int | Decimal] = field(default_factory=dict)
    """Details. Numbers are exact: text, int or Decimal, never float."""
    id: str = field(default_factory=new_id)
    """Unique per source. Made here once if not given."""
    source: str = ""
    """The producer, such as a service's name. Empty: that of the `UsageProducer`."""


def as_record(event: UsageEvent, source: str) -> dict[str, object]:
    """The event's Avro record; `source` stands in where the event has none.

    Raises:
        InvalidEvent: naming the field.
    """
    names: dict[str, object] = {
        "id": event.id,
        "source": event.source or source,
        "type": event.type,
        "customer": event.customer,
    }
    for name, value in names.items():
        if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH_MAX or not value.isprintable():
            raise InvalidEvent(name, f"allowed are 1 to {NAME_LENGTH_MAX} printable characters")
    time: object = event.time
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidEvent("time", "a datetime with an offset is needed, such as datetime.now(UTC)")
    properties = {name: as_text(name, value) for name, value in event.properties.items()}
    return {**names, "time": (time - EPOCH) // _MICROSECOND, "properties": properties}


def as_text(name: object, value: object) -> str:
    """The property's value as it travels.

    Raises:
        InvalidEvent: naming the property.
    """
    if not isinstance(name, str):
        raise InvalidEvent(f"properties.{name}", "names are text")
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= TEXT_LENGTH_MAX:
        value = format(value, "f")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_LARGE:
        value = str(value)
    if not isinstance(value, str):
        raise InvalidEvent(f"properties.{name}", "allowed are text, int and Decimal; never a float, which is inexact")
    if len(value) > TEXT_LENGTH_MAX or "\0" in value:
        raise InvalidEvent(f"properties.{name}", f"allowed are up to {TEXT_LENGTH_MAX} characters without NUL")
    for text in (name, value):
        if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
            raise InvalidEvent(f"properties.{name!a}", "not Unicode text")
    return value
