"""A micro-batch's usage as rows of one binary COPY: one row per event and contribution, into the table `incoming`.

Binary, because Postgres then parses nothing, which takes it half the time of the text format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from psycopg import Cursor


class Series(NamedTuple):
    """The natural key of a series."""

    tenant: str
    customer: str
    meter: str
    names: tuple[str, ...]
    values: tuple[str, ...]


class Place(NamedTuple):
    """A record of events."""

    tenant: str
    offset: int
    appended_us: int
    """When the broker took it, in microseconds since 1970 UTC, as all such times here."""


class Arrival(NamedTuple):
    """An event as it stands in the log. It counts if nobody was first."""

    identity: bytes
    """16 bytes."""
    content: bytes
    """16 bytes."""
    place: Place
    batch_index: int
    """Place in its record, from 0."""
    customer: str
    time_us: int
    contributions: Sequence[tuple[Series, str | None, str | None]]
    """What it adds to each series: decimal text or null, and the thing counted or null."""


class Repeat(NamedTuple):
    """An event whose identity was taken."""

    identity: bytes
    """16 bytes."""
    place: Place
    batch_index: int


INCOMING = """
CREATE TEMPORARY TABLE incoming (
    identity       uuid,         -- null in all rows of an event but its first
    content        uuid,
    event_time     timestamptz,
    batch_index    integer,
    record_offset  bigint,
    appended_at    timestamptz,
    tenant_id      text,
    series         bigint,       -- null where the event feeds no meter
    customer_id    text,
    number         numeric,
    text_value     text
) ON COMMIT DROP
"""
_COPY = "COPY incoming FROM STDIN (FORMAT binary)"

_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_COLUMNS = 11
_NULL = b"\xff\xff\xff\xff"
_EPOCH_US = 946_684_800_000_000  # 2000-01-01, from which Postgres counts
_FIRST = struct.Struct(">hi16si16siqii").pack
_FURTHER = struct.Struct(">hiiiqii").pack
_RECORD = struct.Struct(">iqiq").pack
_SERIES = struct.Struct(">iq").pack
_LENGTH = struct.Struct(">i").pack
_DIGIT = struct.Struct(">ihhhhh").pack
_DIGITS = struct.Struct(">ihhhhhh").pack
_DIGIT_ALONE = struct.Struct(">ihhhhhi").pack
_DIGITS_ALONE = struct.Struct(">ihhhhhhi").pack
_ZERO = struct.pack(">ihhhh", 8, 0, 0, 0, 0)
_NEGATIVE = 0x4000
PIECE_BYTES = 256 * 1024  # handed to the driver at a time


def copy(tx: Cursor[Any], rows: Iterable[bytes]) -> None:
    """Put `rows`, as made here, into the table `incoming`, made here for the transaction."""
    tx.execute(INCOMING)
    with tx.copy(_COPY) as out:
        out.write(_BEGIN)
        for piece in rows:
            out.write(piece)
        out.write(_END)


def clear(tx: Cursor[Any]) -> None:
    """Forget what was put there, so that more can be."""
    tx.execute("DROP TABLE IF EXISTS incoming")


def rows(arrivals: Iterable[Arrival], ids: Mapping[Series, int]) -> Iterator[bytes]:
    """The rows of `arrivals`, in pieces. `ids`: of every series in them."""
    parts: list[bytes] = []
    record, of_record = None, b""
    for identity, content, place, index, customer, time_us, contributions in arrivals:
        if place is not record:
            record, of_record = place, _of_record(place)
            if len(parts) > PIECE_BYTES // 32:
                yield b"".join(parts)
                parts.clear()
        at = time_us - _EPOCH_US
        head = _FIRST(_COLUMNS, 16, identity, 16, content, 8, at, 4, index)
        if not contributions:
            parts += (head, of_record, counted(None, customer), value(None, None))
        for series, number, text in contributions:
            parts += (head, of_record, counted(ids[series], customer), value(number, text))
            head = _FURTHER(_COLUMNS, -1, -1, 8, at, 4, index)
    yield b"".join(parts)


def record_rows(
    place: Place,
    indexes: Sequence[int],
    identities: Sequence[bytes],
    contents: Sequence[bytes],
    times_us: Sequence[int],
    firsts: Sequence[bytes],
    further: Sequence[tuple[int, bytes]],
) -> bytes:
    """The rows of one record's events. `firsts`: of each event what `counted` and `value` made of its first
    contribution, or of none; `further`: of others, by where the event stands in the sequences."""
    of_record = _of_record(place)
    parts: list[bytes] = []
    for index, identity, content, time_us, first in zip(indexes, identities, contents, times_us, firsts, strict=True):
        parts += (_FIRST(_COLUMNS, 16, identity, 16, content, 8, time_us - _EPOCH_US, 4, index), of_record, first)
    for at, more in further:
        parts += (_FURTHER(_COLUMNS, -1, -1, 8, times_us[at] - _EPOCH_US, 4, indexes[at]), of_record, more)
    return b"".join(parts)


def counted(series: int | None, customer: str) -> bytes:
    """The columns that tell to what an event is added."""
    return (_NULL if series is None else _SERIES(8, series)) + _text(customer)


def value(number: str | None, text: str | None) -> bytes:
    """The columns that tell what is added: decimal text, a thing, or neither."""
    return (_NULL if number is None else _numeric(number)) + (_NULL if text is None else _text(text))


def whole(number: int) -> bytes:
    """`value` of an integer from 1 to 99,999,999."""
    if number < 10_000:
        return _DIGIT_ALONE(10, 1, 0, 0, 0, number, -1)
    return _DIGITS_ALONE(12, 2, 1, 0, 0, *divmod(number, 10_000), -1)


def _of_record(place: Place) -> bytes:
    return _RECORD(8, place.offset, 8, place.appended_us - _EPOCH_US) + _text(place.tenant)


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH(len(data)) + data


def _numeric(text: str) -> bytes:
    """A plain decimal as Postgres sends numerics: digits to the base of 10,000, with the weight of the first."""
    if len(text) < 9 and text.isdigit():
        number = int(text)
        if number < 10_000:
            return _DIGIT(10, 1, 0, 0, 0, number) if number else _ZERO
        return _DIGITS(12, 2, 1, 0, 0, *divmod(number, 10_000))
    sign = _NEGATIVE if text[0] == "-" else 0
    whole, _, decimals = text.lstrip("-").partition(".")
    scale = len(decimals)
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    decimals = decimals.ljust(-(-scale // 4) * 4, "0")
    digits = [int((whole + decimals)[at : at + 4]) for at in range(0, len(whole) + len(decimals), 4)]
    count = len(digits)
    return struct.pack(f">ihhHh{count}h", 8 + 2 * count, count, len(whole) // 4 - 1, sign, scale, *digits)
