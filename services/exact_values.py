"""Single values at the edges, as annotated types for models: exact or refused, never converted and never guessed.

Decimals come as plain decimal text or whole numbers, never as binary floats; instants with an offset; text without
control characters.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

TEXT_LENGTH_MAX = 500
ID_LENGTH_MAX = 128
SCALE_MAX = 12
DIGITS_MAX = 26
UNLOGGED_MAX = 100  # of what is only computed with; its products stay far within the 1,000 digits of `EXACT`
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)\Z", re.IGNORECASE)
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?\Z", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


class NotFinite(float):
    """What the JSON loader makes of NaN, Infinity and 1e400: a number that every field refuses by name."""


def text(value: object) -> str:
    """`value` as printable text of 1 to 500 characters (or empty).

    Raises:
        PydanticCustomError: `invalid_type` or `invalid_text`.
    """
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_type", "text is needed here; put it in quotes")
    if len(value) > TEXT_LENGTH_MAX:
        raise PydanticCustomError("invalid_text", "{said}", {"said": f"allowed are up to {TEXT_LENGTH_MAX} characters"})
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI:
            said = f"U+{ord(character):04X} is not allowed: no control characters, surrogates or direction overrides"
            raise PydanticCustomError("invalid_text", "{said}", {"said": said})
    return value


def named(value: object) -> str:
    """`value` as text of at least one character."""
    if value == "":
        raise PydanticCustomError("invalid_text", "at least one character is needed")
    return text(value)


def identifier(value: object) -> str:
    """`value` as an id: 1 to 128 printable characters, none of them a space at either end.

    Raises:
        PydanticCustomError: `invalid_type` or `invalid_id`.
    """
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_type", "text is needed here; put it in quotes")
    if not 0 < len(value) <= ID_LENGTH_MAX or not value.isprintable() or value != value.strip():
        said = f"an id has 1 to {ID_LENGTH_MAX} printable characters"
        raise PydanticCustomError("invalid_id", "{said}", {"said": said})
    return text(value)


def decimal(value: object, digits: int = DIGITS_MAX, scale: int = SCALE_MAX) -> Decimal:
    """`value` as an exact decimal: plain text or a whole number, at most 26 digits before and 12 after the point.

    Those are the log's own limits; what never comes to the log may have more.

    Raises:
        PydanticCustomError: `not_finite`, `invalid_type` or `invalid_decimal`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, NotFinite) or (isinstance(value, str) and _NOT_FINITE.match(value)):
        raise PydanticCustomError("not_finite", "a finite number is needed here")
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_type", "write a decimal as text, as in '0.0110', so that it stays exact")
    if not _DECIMAL.match(value):
        shown = value[:40].encode("ascii", "backslashreplace").decode()
        said = f"{shown!r} is not a plain decimal such as 12 or 0.0110"
        raise PydanticCustomError("invalid_decimal", "{said}", {"said": said})
    whole, _, places = value.lstrip("-").partition(".")
    if len(whole) > digits or len(places) > scale:
        said = f"allowed are {digits} digits before and {scale} after the point"
        raise PydanticCustomError("invalid_decimal", "{said}", {"said": said})
    return Decimal(value)


def whole(value: object) -> int:
    """`value` as an integer of 64 bits."""
    if isinstance(value, NotFinite):
        raise PydanticCustomError("not_finite", "a finite number is needed here")
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("invalid_type", "a whole number is needed here, such as 10")
    if not -(2**63) <= value < 2**63:
        raise PydanticCustomError("out_of_range", "the number does not fit 64 bits")
    return value


def instant(value: object) -> datetime:
    """`value`, ISO 8601 text with an offset, as an instant in UTC.

    Raises:
        PydanticCustomError: `invalid_type` or `invalid_time`.
    """
    parsed = _parsed(value, "2026-02-01T00:00:00Z")
    if parsed.tzinfo is None:
        raise PydanticCustomError("invalid_time", "a time needs an offset, as in 2026-02-01T00:00:00Z")
    return _in_range(parsed.astimezone(UTC))


def local_time(value: object) -> datetime:
    """`value`, ISO 8601 text: naive for a local time (a day alone is its midnight), aware if it has an offset."""
    if isinstance(value, str) and _DAY.match(value):
        value = f"{value} 00:00"
    parsed = _parsed(value, "2026-02-01 or 2026-02-01 00:00")
    _in_range(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
    return parsed


def _parsed(value: object, example: str) -> datetime:
    if not isinstance(value, str):
        said = f"a time is written as text, as in {example}"
        raise PydanticCustomError("invalid_time", "{said}", {"said": said})
    try:
        if not _INSTANT.match(value):
            raise ValueError
        return datetime.fromisoformat(value)
    except ValueError as e:
        shown = value[:40].encode("ascii", "backslashreplace").decode()
        said = f"{shown!r} is no time; write it as in {example}"
        raise PydanticCustomError("invalid_time", "{said}", {"said": said}) from e


def _in_range(at: datetime) -> datetime:
    if not _EARLIEST <= at <= _LATEST - timedelta(days=1):
        raise PydanticCustomError("invalid_time", "allowed are the years 1970 to 2199")
    return at


Text = Annotated[str, BeforeValidator(text), WithJsonSchema({"type": "string", "maxLength": TEXT_LENGTH_MAX})]
Name = Annotated[
    str, BeforeValidator(named), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TEXT_LENGTH_MAX})
]
Identifier = Annotated[
    str, BeforeValidator(identifier), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": ID_LENGTH_MAX})
]


def unlogged(value: object) -> Decimal:
    """`value` as an exact decimal that never comes to the log: up to 100 digits on either side of the point."""
    return decimal(value, UNLOGGED_MAX, UNLOGGED_MAX)


ExactDecimal = Annotated[
    Decimal,
    Field(strict=False),
    BeforeValidator(decimal),
    PlainSerializer(lambda value: format(value, "f"), return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$", "examples": ["0.0110"]}),
]
UnloggedDecimal = Annotated[Decimal, Field(strict=False), BeforeValidator(unlogged)]
Whole = Annotated[int, BeforeValidator(whole), WithJsonSchema({"type": "integer", "format": "int64"})]
Instant = Annotated[
    datetime, Field(strict=False), BeforeValidator(instant), WithJsonSchema({"type": "string", "format": "date-time"})
]
LocalTime = Annotated[
    datetime,
    Field(strict=False),
    BeforeValidator(local_time),
    WithJsonSchema({"type": "string", "examples": ["2013-01-01 00:00"]}),
]
