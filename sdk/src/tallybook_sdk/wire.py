"""Usage batches as Avro in single-object encoding, by the released schema that this package ships.

Written here by hand, so that the package needs no Avro library: the schema is small, and names that come again and
again are encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

from tallybook_sdk.event import EPOCH, NAME_LENGTH_MAX, TEXT_LENGTH_MAX, UsageEvent, as_record, as_text

SCHEMA_FILE: Final = "usage_batch.avsc"


class Schema(NamedTuple):
    """What a record is written by."""

    record: str
    fingerprint: bytes
    """CRC-64-AVRO of the schema, as it travels."""

    @property
    def head(self) -> bytes:
        """What stands before the record."""
        return b"\xc3\x01" + self.fingerprint


BATCH: Final = Schema("UsageBatch", bytes.fromhex("231b9ac02f2f5139"))
VOIDED: Final = Schema("UsageVoided", bytes.fromhex("960216ddabde71e8"))
AMENDED: Final = Schema("UsageAmended", bytes.fromhex("c544687cd65371f4"))
_HEAD = BATCH.head
_KNOWN_MAX = 20_000  # texts; then what is known starts anew
_LOW_BITS = 21  # of a time: three bytes of it change from event to event, the others once in a second
_LOW = (1 << _LOW_BITS) - 1


def _varint(value: int) -> bytes:
    """7 bits a byte, low ones first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _long(value: int) -> bytes:
    """An Avro long: zigzag, then a varint."""
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


_LENGTHS = tuple(_long(number) for number in range(4 * TEXT_LENGTH_MAX + 1))  # UTF-8 takes up to 4 bytes a character


class Encoder:
    """Events of one producer as they stand in a batch. Safe to share between threads."""

    def __init__(self, source: str) -> None:
        """`source` stands in where an event has none."""
        self._source = source
        self._names: dict[str, bytes] = {}
        self._texts: dict[str, bytes] = {}
        self._seconds: dict[int, bytes] = {}

    def encode(self, event: UsageEvent) -> bytes:
        """The quick way for an event in order; what is not takes the way of `as_record`.

        Raises:
            InvalidEvent: naming the field.
        """
        names, texts = self._names, self._texts
        try:
            id = event.id
            if not 0 < len(id) <= NAME_LENGTH_MAX or not id.isprintable():
                return self._slowly(event)
            raw = id.encode()
            source = event.source or self._source
            parts = [
                _LENGTHS[len(raw)],
                raw,
                names.get(source) or self._name(source),
                names.get(event.type) or self._name(event.type),
                names.get(event.customer) or self._name(event.customer),
                self._time(event.time),
            ]
            append = parts.append
            properties = event.properties
            if properties:
                append(_LENGTHS[len(properties)])
                for name, value in properties.items():
                    append(texts.get(name) or self._text(name))
                    if type(value) is str:
                        append(texts.get(value) or self._text(value))
                        continue
                    # Numbers differ from event to event: they are not worth remembering.
                    number = b"%d" % value if type(value) is int else as_text(name, value).encode()
                    if len(number) > TEXT_LENGTH_MAX:
                        return self._slowly(event)
                    append(_LENGTHS[len(number)])
                    append(number)
            append(b"\0")
            return b"".join(parts)
        except (AttributeError, TypeError, ValueError, IndexError):
            return self._slowly(event)  # not in order, or unusual: it says which field, or writes it all the same

    def _name(self, name: str) -> bytes:
        if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise ValueError
        return _remember(self._names, name)

    def _text(self, text: str) -> bytes:
        if len(text) > TEXT_LENGTH_MAX or "\0" in text:
            raise ValueError
        return _remember(self._texts, text)

    def _time(self, time: datetime) -> bytes:
        since = time - EPOCH  # TypeError if it is naive
        value = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) << 1
        high, low = value >> _LOW_BITS, value & _LOW
        if high <= 0:
            raise ValueError
        rest = self._seconds.get(high)
        if rest is None:
            if len(self._seconds) >= _KNOWN_MAX:
                self._seconds.clear()
            rest = self._seconds[high] = _varint(high)
        return bytes((low & 0x7F | 0x80, low >> 7 & 0x7F | 0x80, low >> 14 | 0x80)) + rest

    def _slowly(self, event: UsageEvent) -> bytes:
        record = as_record(event, self._source)
        properties = record["properties"]
        time = record["time"]
        assert isinstance(properties, dict)
        assert isinstance(time, int)
        parts = [encode_text(str(record[name])) for name in ("id", "source", "type", "customer")]
        parts.append(_long(time))
        if properties:
            parts.append(_long(len(properties)))
            parts += [encode_text(each) for pair in properties.items() for each in pair]
        return b"".join((*parts, b"\0"))


def _remember(known: dict[str, bytes], text: str) -> bytes:
    if len(known) >= _KNOWN_MAX:
        known.clear()
    raw = text.encode()
    made = known[text] = _LENGTHS[len(raw)] + raw
    return made


def encode_text(text: str) -> bytes:
    """An Avro string."""
    raw = text.encode()
    return _long(len(raw)) + raw


def encode_batch(tenant: str, events: Sequence[bytes]) -> bytes:
    """A framed batch of encoded events; at least one."""
    assert events
    return b"".join((_HEAD, encode_text(tenant), _long(len(events)), *events, b"\0"))


def decode_event(encoded: bytes) -> UsageEvent:
    """The event in what `Encoder.encode` made.

    Raises:
        ValueError: it did not make these bytes.
    """
    reader = _Reader(encoded)
    try:
        id, source, type, customer = (reader.text() for _ in range(4))
        time = EPOCH + timedelta(microseconds=reader.long())
        properties: dict[str, str | int | Decimal] = {}
        while count := reader.long():
            properties |= {reader.text(): reader.text() for _ in range(count)}
    except (IndexError, OverflowError) as e:
        raise ValueError(f"no encoded event: {e}") from e
    if reader.at != len(encoded):
        raise ValueError("no encoded event: it goes on after its end")
    return UsageEvent(id=id, source=source, type=type, customer=customer, time=time, properties=properties)


class _Reader:
    """Walks over bytes from the left."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self.at = 0

    def long(self) -> int:
        value = shift = 0
        while True:
            byte = self._encoded[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)

    def text(self) -> str:
        size = self.long()
        raw = self._encoded[self.at : self.at + size]
        if size < 0 or len(raw) < size:
            raise IndexError("a text is cut off")
        self.at += size
        return raw.decode()
