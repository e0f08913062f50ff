"""Usage written as JSON, for producers without Avro: the fields of `UsageBatch` by their Avro names.

A record is `{"tenant": ..., "events": [{...}, ...]}`, or one event with its tenant beside its fields. Times are ISO
8601 text with an offset, or microseconds since 1970 as in Avro. Numbers count as they are written: no binary fraction
is ever made of them. A record is taken whole or refused whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.errors import DecodeError

FIRST_BYTE = b"{"  # neither framing begins with it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Digits beyond microseconds would be cut off in silence, so they do not match.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)
_DIGITS_MAX = 19  # of 64 bits
_SHOWN = 40


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def read(value: bytes, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The raw record of `schema`, that of `UsageBatch`, which the JSON in `value` says.

    Raises:
        DecodeError: `corrupt_json`, or `invalid_value` naming the field.
    """
    try:
        given = _LOADER.decode(value.decode())
    except UnicodeDecodeError as e:
        raise DecodeError("corrupt_json", f"not UTF-8 at byte {e.start}") from e
    except (ValueError, RecursionError) as e:
        raise DecodeError("corrupt_json", str(e)) from e
    (event,) = (each["type"]["items"] for each in schema["fields"] if each["name"] == "events")
    if "events" not in given:
        alone = {name: each for name, each in given.items() if name != "tenant"}
        names = {"tenant": given["tenant"]} if "tenant" in given else {}
        tenant = _record(schema, {**names, "events": []}, "")["tenant"]
        return {"tenant": tenant, "events": [_record(event, alone, "")]}
    return _record(schema, given, "")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {_shown(twice)} stands twice in one object")
    return made


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


_LOADER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_Number, parse_int=_Number, parse_constant=_constant, strict=True
)


def _record(schema: Mapping[str, Any], given: Any, path: str) -> dict[str, Any]:
    if type(given) is not dict:
        raise _invalid(path, "an object is needed here")
    made: dict[str, Any] = {}
    taken = 0
    for field in schema["fields"]:
        name = field["name"]
        if name in given:
            taken += 1
            made[name] = _value(field["type"], given[name], f"{path}.{name}" if path else name)
        elif "default" in field:
            made[name] = field["default"]
        elif name == "properties":
            made[name] = {}
        else:
            raise _invalid(f"{path}.{name}" if path else name, "is missing")
    if taken < len(given):
        other = min(given.keys() - made.keys())
        known = ", ".join(made)
        raise _invalid(f"{path}.{_shown(other)}" if path else _shown(other), f"no such field; there are: {known}")
    return made


def _value(kind: Any, given: Any, path: str) -> Any:
    """`given` as a raw value of the Avro type `kind`."""
    if kind == "string":
        return _text(given, path)
    if isinstance(kind, list):  # a union with null
        return None if given is None else _value(next(each for each in kind if each != "null"), given, path)
    if kind in ("long", "int"):
        return _whole(given, path)
    if kind == "boolean" and isinstance(given, bool):
        return given
    match kind:
        case {"type": "map", "values": "string"}:
            return _properties(given, path)
        case {"type": "array", "items": items} if isinstance(given, list):
            return [_value(items, each, f"{path}[{index}]") for index, each in enumerate(given)]
        case {"type": "record"}:
            return _record(kind, given, path)
        case {"type": "enum", "symbols": symbols} if given in symbols:
            return str(given)
        case {"type": "long", "logicalType": "timestamp-micros"}:
            return _microseconds(given, path)
    raise _invalid(path, f"{_shown(given)} does not belong here")


def _text(given: Any, path: str) -> str:
    if type(given) is not str:
        raise _invalid(path, "text is needed here; put it in quotes")
    if not given.isascii():
        _check_unicode(given, path)
    return given


def _properties(given: Any, path: str) -> dict[str, str]:
    if type(given) is not dict:
        raise _invalid(path, "an object of texts and numbers is needed here")
    for name, value in given.items():
        if not isinstance(value, str):
            raise _invalid(f"{path}.{_shown(name)}", "allowed are text and numbers")
        if not name.isascii():
            _check_unicode(name, path)
        if not value.isascii():
            _check_unicode(value, f"{path}.{_shown(name)}")
    return {name: str(value) for name, value in given.items()}


def _check_unicode(text: str, path: str) -> None:
    """Half a surrogate pair can be escaped in JSON, and is no text: nothing could store it."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise _invalid(path, "not Unicode text: half of a surrogate pair") from e


def _whole(given: Any, path: str) -> int:
    if type(given) is _Number and len(given) <= _DIGITS_MAX + 1 and given.lstrip("-").isdecimal():
        number = int(given)
        if -(2**63) <= number < 2**63:
            return number
    raise _invalid(path, "a whole number of 64 bits is needed here")


def _microseconds(given: Any, path: str) -> int:
    if type(given) is _Number:
        return _whole(given, path)
    try:
        if type(given) is not str or not _INSTANT.match(given):
            raise ValueError
        return (datetime.fromisoformat(given.upper()) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError) as e:
        said = "is no time; write 2026-02-01T00:00:00Z, with an offset and up to 6 decimals, or microseconds since 1970"
        raise _invalid(path, f"{_shown(given)} {said}") from e


def _invalid(path: str, said: str) -> DecodeError:
    return DecodeError("invalid_value", f"{path}: {said}" if path else said)


def _shown(given: object) -> str:
    return ascii(given)[:_SHOWN] if not isinstance(given, str) else ascii(str(given))[1:-1][:_SHOWN]
