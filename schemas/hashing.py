"""Hashes that outlive a release: of what a command asks for, and of an event as it stands in the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from enum import Enum
from functools import cache
from hashlib import sha256
from typing import Any

from billing.envelope import EventEnvelope
from schemas.codec import body_of, event_body

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_EXACT = Context(prec=100)  # more digits than the log takes: no two values become one


def payload_hash(command: Any) -> bytes:
    """SHA-256 of what `command` asks for: tells a retry from another request under the same key.

    Two commands of one class have the same hash exactly when all their fields are equal, but for those the class lists
    as `OBSERVED`. A field that has its default is left out, so that the hash stays as it was when a release adds
    a field. Raises `TypeError` for a value that no command can hold.
    """
    return _digest(_record(command, getattr(type(command), "OBSERVED", ())))


def document_hash(document: Any) -> bytes:
    """SHA-256 of a document such as an issued invoice, in the same canonical form: equal only if all fields are."""
    return _digest(_record(document))


def _digest(canonical: Mapping[str, Any]) -> bytes:
    return sha256(_JSON.encode(canonical).encode()).digest()


def event_hash(envelope: EventEnvelope) -> bytes:
    """SHA-256 of the event's Avro body: the next event's `previous_hash`."""
    return sha256(event_body(envelope)).digest()


def hash_of_stored(value: bytes) -> bytes:
    """The same from a record's value, whatever version of the schema wrote it. Raises `DecodeError`."""
    return sha256(body_of(value)).digest()


@cache
def _shape(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Name and default of every field; `MISSING` where there is none."""
    return tuple(
        (each.name, each.default if each.default_factory is MISSING else each.default_factory()) for each in fields(cls)
    )


def _record(value: Any, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    canonical: dict[str, Any] = {"": type(value).__name__}
    cls: Any = type(value)
    for name, default in _shape(cls):
        item = getattr(value, name)
        if name in left_out or (default is not MISSING and item == default):
            continue
        canonical[name] = _canonical(item)
    return canonical


def _canonical(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case Decimal():
            return f"{value.normalize(_EXACT):f}" if value else "0"
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case tuple() | list():
            return [_canonical(each) for each in value]
        case Mapping():
            return {str(key): _canonical(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")
