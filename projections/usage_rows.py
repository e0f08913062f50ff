"""A micro-batch's usage as rows of one binary COPY: one row per event and contribution, into the table `incoming`.

Binary, because Postgres then parses nothing, which takes it half the time of the text format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
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


INCOMING = """
CREATE TEMPORARY TABLE incoming (
    identity       uuid,         -- null in all rows of an event but its first
    content        uuid,
    event_time     timestamptz,
    batch_index    integer,
    series         bigint,       -- null where the event feeds no meter
    record_offset  bigint,
    appended_at    timestamptz,
    tenant_id      text,
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
_FIRST = struct.Struct(">hi16si16siqiiiq").pack
_FIRST_ALONE = struct.Struct(">hi16si16siqiii").pack  # without a series
_FURTHER = struct.Struct(">hiiiqiiiq").pack
_RECORD = struct.Struct(">iqiq").pack
_LENGTH = struct.Struct(">i").pack
_DIGIT = struct.Struct(">ihhhhh").pack
_DIGITS = struct.Struct(">ihhhhhh").pack
_ZERO = struct.pack(">ihhhh", 8, 0, 0, 0, 0)
_NEGATIVE = 0x4000
PIECE_BYTES = 256 * 1024  # handed to the driver at a time


def copy(tx: Cursor[Any], arrivals: Iterable[Arrival], ids: Mapping[Series, int]) -> None:
    """Put `arrivals` into the table `incoming`, made here for the transaction. `ids`: of every series in them."""
    tx.execute(INCOMING)
    with tx.copy(_COPY) as out:
        out.write(_BEGIN)
        for piece in _pieces(arrivals, ids):
            out.write(piece)
        out.write(_END)


def clear(tx: Cursor[Any]) -> None:
    """Forget what was put there, so that more can be."""
    tx.execute("DROP TABLE IF EXISTS incoming")


def _pieces(arrivals: Iterable[Arrival], ids: Mapping[Series, int]) -> Iterable[bytes]:
    parts: list[bytes] = []
    add = parts.append
    record, of_record = None, b""
    customers: dict[str, bytes] = {}
    numbers: dict[str, bytes] = {"1": _numeric("1")}
    for identity, content, place, index, customer, time_us, contributions in arrivals:
        if place is not record:
            record = place
            appended = _RECORD(8, place.offset, 8, place.appended_us - _EPOCH_US)
            of_record = appended + _text(place.tenant)
            if len(parts) > PIECE_BYTES // 32:
                yield b"".join(parts)
                parts.clear()
        of_customer = customers.get(customer)
        if of_customer is None:
            of_customer = customers[customer] = _text(customer)
        at = time_us - _EPOCH_US
        is_first = True
        for series, number, text in contributions:
            if is_first:
                add(_FIRST(_COLUMNS, 16, identity, 16, content, 8, at, 4, index, 8, ids[series]))
                is_first = False
            else:
                add(_FURTHER(_COLUMNS, -1, -1, 8, at, 4, index, 8, ids[series]))
            add(of_record)
            add(of_customer)
            add(_NULL if number is None else numbers.get(number) or _numeric(number))
            add(_NULL if text is None else _text(text))
        if is_first:
            add(_FIRST_ALONE(_COLUMNS, 16, identity, 16, content, 8, at, 4, index, -1))
            parts += (of_record, of_customer, _NULL, _NULL)
    yield b"".join(parts)


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
