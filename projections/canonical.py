"""One text for one document: what an invoice's hash is taken of.

JSON with sorted keys and no spaces; decimals as plain text without trailing zeros, instants in UTC with microseconds,
enums by value. A field that has its default is left out, so that a document keeps its hash when a later release adds
fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any


def text(document: Any) -> str:
    """The canonical text of a dataclass.

    Raises:
        TypeError: it holds something that has no canonical form, such as a float.
    """
    return json.dumps(plain(document), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def digest(document: Any) -> bytes:
    """SHA-256 of the canonical text."""
    return hashlib.sha256(text(document).encode()).digest()


def plain(value: Any) -> Any:
    """`value` as JSON would hold it."""
    match value:
        case None | bool() | int():
            return value
        case Enum():
            return value.value
        case str():
            return value
        case Decimal():
            return format(value.normalize(), "f") if value else "0"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        case date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case tuple() | list():
            return [plain(each) for each in value]
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        present = {each.name: getattr(value, each.name) for each in fields(value) if not _is_default(value, each)}
        return {name: plain(each) for name, each in present.items()}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def _is_default(record: Any, field: Any) -> bool:
    value = getattr(record, field.name)
    if field.default is not MISSING:
        return bool(value == field.default)
    return field.default_factory is not MISSING and bool(value == field.default_factory())
