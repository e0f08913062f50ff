"""A deterministic example of a message, built from its schema alone: the golden bytes of every version."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from schemas.mapping import DECIMAL_SCALE
from schemas.released import named_types

_NOON = int(datetime(2026, 1, 2, 12, 0, tzinfo=UTC).timestamp()) * 1_000_000
_HOUR = 3_600_000_000
_DAY = date(2026, 1, 2).toordinal() - date(1970, 1, 1).toordinal()
_TEXTS = {
    "currency": "USD",
    "zone": "America/New_York",
    "tenant": "acme",
}  # where a message's class knows more than the schema


def example(schema: Mapping[str, Any], depth_max: int = 2) -> dict[str, Any]:
    """One record in raw form: each number differs, each instant is later than the one before, unions are not null."""
    build = _Example(named_types(schema), depth_max)
    value: dict[str, Any] = build.value(schema, str(schema["namespace"]), str(schema["name"]))
    return value


class _Example:
    """One walk over a schema, counting as it goes, so that no two fields hold the same."""

    def __init__(self, named: Mapping[str, Any], depth_max: int) -> None:
        self.count = 0
        self.depth_max = depth_max
        self.named = named
        self.inside: list[str] = []

    def value(self, schema: Any, namespace: str, name: str) -> Any:
        if isinstance(schema, list):
            return self.branch(schema, namespace, name)
        kind = schema if isinstance(schema, str) else schema["type"]
        match kind:
            case "record":
                return self.record(schema, namespace)
            case "enum":
                return schema["symbols"][-1]
            case "array":
                return self.items(schema["items"], namespace, name)
            case "map":
                return {f"{name}_key": self.value(schema["values"], namespace, name)}
            case "string":
                return _TEXTS.get(name, f"{name} é")
            case "boolean":
                return True
            case "bytes" | "long" | "int":
                return self.number(kind, schema)
            case "null":
                return None
            case _:
                return self.value(self.named[f"{namespace}.{kind}"], namespace, name)

    def number(self, kind: str, schema: Any) -> Any:
        self.count += 1
        match schema:
            case {"logicalType": "decimal"}:
                unscaled = self.count * 10**DECIMAL_SCALE + 5 * 10 ** (DECIMAL_SCALE - 1)  # 1.5, 2.5, ...
                return unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)
            case {"logicalType": "timestamp-micros"}:
                return _NOON + self.count * _HOUR
            case {"logicalType": "date"}:
                return _DAY + self.count
            case _:
                return bytes([self.count % 256]) * 32 if kind == "bytes" else self.count

    def record(self, schema: Any, namespace: str) -> dict[str, Any]:
        self.inside.append(schema["name"])
        built = {field["name"]: self.value(field["type"], namespace, field["name"]) for field in schema["fields"]}
        self.inside.pop()
        return built

    def branch(self, branches: list[Any], namespace: str, name: str) -> Any:
        some = [each for each in branches if each != "null"]
        chosen = some[-1]
        label = chosen if isinstance(chosen, str) else chosen.get("name", chosen["type"])
        if self.inside.count(label) >= self.depth_max and "null" in branches:
            return None
        full = f"{namespace}.{label}"
        return full if full in self.named else label, self.value(chosen, namespace, name)

    def items(self, item: Any, namespace: str, name: str) -> list[Any]:
        """One item, or one per branch where items are a union of records."""
        if not isinstance(item, list):
            label = item if isinstance(item, str) else item.get("name", "")
            return [] if self.inside.count(label) >= self.depth_max else [self.value(item, namespace, name)]
        return [self.branch([each], namespace, name) for each in item if each != "null"]
