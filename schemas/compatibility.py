"""FULL_TRANSITIVE: every version of a record reads what every other version wrote, checked without a server.

Registries agree on fields and types, and differ on decimals, docs and names; the rules here are the stricter
of all, because the log is kept for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from schemas.released import Released, newest

_NAMED = ("record", "enum")


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a set of schemas must not be released."""

    code: str
    """Stable, for programs."""
    where: str
    """`InvoiceFinalized.2: total.minor`."""
    detail: str
    """What is wrong and what is allowed."""

    def __str__(self) -> str:
        return f"{self.where}: {self.code}: {self.detail}"


def problems(versions: Sequence[Released], fingerprint: Callable[[Mapping[str, Any]], bytes]) -> list[Problem]:
    """Everything wrong with `versions` taken together; empty if they may be released."""
    alone = {each: list(in_itself(each)) for each in versions}
    found = [problem for own in alone.values() for problem in own]
    by_record = defaultdict(list)
    for each in versions:
        by_record[each.full_name].append(each)
    for history in by_record.values():
        for older, newer in combinations(history, 2):
            found += between(older, newer)
    # A schema that is wrong in itself may have no fingerprint at all.
    found += _shared_fingerprints([each for each in versions if not alone[each]], fingerprint)
    found += _two_meanings(newest(tuple(versions)).values())
    return found


def in_itself(released: Released) -> Iterator[Problem]:
    """What is wrong with one schema, whatever came before it."""
    label = f"{released.record}.{released.version}"
    for path, node in _nodes(released.schema, ""):
        where = f"{label}: {path}" if path else label
        if not str(node.get("doc", "")).endswith(".") and ("fields" in node or "name" in node):
            yield Problem("doc_missing", where, "every record and field says what it is, ending in a full stop")
        if node.get("type") == "enum" and node.get("default") not in node["symbols"]:
            yield Problem("enum_without_default", where, "a reader needs a symbol for those it does not know")
        if "fields" in node and len({f["name"] for f in node["fields"]}) < len(node["fields"]):
            yield Problem("duplicate_field", where, "two fields have one name")
        if "default" in node and node["type"] != "enum" and not _default_fits(node["type"], node["default"]):
            yield Problem("default_mismatch", where, f"{node['default']!r} is not of the (first) type")
        if node.get("type") in ("float", "double") or node.get("items") in ("float", "double"):
            yield Problem("float", where, "quantities and amounts are decimals")


def between(older: Released, newer: Released) -> list[Problem]:
    """Why `newer` and `older` could not read each other's bytes."""
    comparison = _Comparison(f"{newer.record}.{newer.version} against .{older.version}", older.schema, newer.schema)
    comparison.same(older.schema, newer.schema, "")
    return comparison.found


class _Comparison:
    """One pair of schemas, walked side by side."""

    def __init__(self, label: str, older: Any, newer: Any) -> None:
        self.label = label
        self.older_names = {node["name"]: node for _, node in _nodes(older, "") if node.get("type") in _NAMED}
        self.newer_names = {node["name"]: node for _, node in _nodes(newer, "") if node.get("type") in _NAMED}
        self.compared: set[str] = set()
        self.found: list[Problem] = []

    def add(self, code: str, path: str, detail: str) -> None:
        self.found.append(Problem(code, f"{self.label}: {path}" if path else self.label, detail))

    def same(self, older: Any, newer: Any, path: str) -> None:
        if isinstance(older, list) or isinstance(newer, list):
            self.unions(older, newer, path)
            return
        older, newer = self.older_names.get(_name(older), older), self.newer_names.get(_name(newer), newer)
        if _kind(older) != _kind(newer):
            self.add("type_changed", path, f"{_kind(older)} became {_kind(newer)}; add a field instead")
            return
        match _kind(older):
            case "record" if older["name"] not in self.compared:
                self.compared.add(older["name"])
                self.records(older, newer, path)
            case "enum":
                if gone := [symbol for symbol in older["symbols"] if symbol not in newer["symbols"]]:
                    self.add("symbol_removed", path, f"{', '.join(gone)} may stand in recorded messages")
            case "array":
                self.same(older["items"], newer["items"], f"{path}[]")
            case "map":
                self.same(older["values"], newer["values"], f"{path}[]")
            case _:
                self.logical(older, newer, path)

    def logical(self, older: Any, newer: Any, path: str) -> None:
        before, after = (each if isinstance(each, dict) else {} for each in (older, newer))
        if before.get("logicalType") != after.get("logicalType"):
            self.add("type_changed", path, f"{before.get('logicalType')} became {after.get('logicalType')}")
        elif any(before.get(key) != after.get(key) for key in ("precision", "scale")):
            self.add("decimal_changed", path, "a decimal's precision and scale stay: recorded digits do not tell them")

    def unions(self, older: Any, newer: Any, path: str) -> None:
        before, after = (
            {_name(each) or _kind(each): each for each in (side if isinstance(side, list) else [side])}
            for side in (older, newer)
        )
        if before.keys() != after.keys():
            self.add("type_changed", path, f"{' | '.join(before)} became {' | '.join(after)}")
        for key in before.keys() & after.keys():
            self.same(before[key], after[key], path)

    def records(self, older: Any, newer: Any, path: str) -> None:
        if older["name"] != newer["name"]:
            self.add("type_changed", path, f"{older['name']} became {newer['name']}")
        before, after = ({field["name"]: field for field in each["fields"]} for each in (older, newer))
        aliases = {alias: field["name"] for field in newer["fields"] for alias in field.get("aliases", ())}
        added = [name for name in after if name not in before]
        for name, field in before.items():
            where = f"{path}.{name}" if path else name
            if (now := name if name in after else aliases.get(name)) is not None:
                self.same(field["type"], after[now]["type"], where)
            elif any(after[each]["type"] == field["type"] for each in added if "default" not in after[each]):
                self.add("renamed_without_alias", where, "a new name needs the old one as its alias")
            elif "default" not in field:
                self.add("removed_without_default", where, "older readers need it")
        for name in added:
            if "default" not in after[name] and name not in aliases.values():
                where = f"{path}.{name}" if path else name
                self.add("added_without_default", where, "recorded messages do not have it")


def _shared_fingerprints(
    versions: Iterable[Released], fingerprint: Callable[[Mapping[str, Any]], bytes]
) -> Iterator[Problem]:
    seen: dict[bytes, Released] = {}
    for each in versions:
        mark = fingerprint(each.schema)
        if mark in seen:
            detail = f"same as {seen[mark].file_name}; docs, defaults and logical types do not make a version"
            yield Problem("fingerprint_shared", f"{each.record}.{each.version}", detail)
        seen[mark] = each


def _two_meanings(latest: Iterable[Released]) -> Iterator[Problem]:
    """A name that stands for two shapes: a reader of both streams would take one for the other."""
    first: dict[str, tuple[Any, str]] = {}
    for released in latest:
        for _, node in _nodes(released.schema, ""):
            if node.get("type") not in _NAMED or "name" not in node:
                continue
            shape = _shape(node)
            known, home = first.setdefault(node["name"], (shape, released.record))
            if known != shape:
                yield Problem("two_meanings", f"{released.record}: {node['name']}", f"has another shape in {home}")


def _shape(node: Any) -> Any:
    if node["type"] == "enum":
        return tuple(node["symbols"])
    return tuple((field["name"], _outline(field["type"])) for field in node["fields"])


def _outline(schema: Any) -> Any:
    """A type with inner definitions replaced by their names: where a name is defined is no difference."""
    if isinstance(schema, list):
        return tuple(_outline(each) for each in schema)
    if isinstance(schema, str):
        return schema
    if _name(schema):
        return schema["name"]
    inner = schema.get("items", schema.get("values"))
    return (schema["type"], schema.get("scale"), schema.get("precision"), inner if inner is None else _outline(inner))


def _nodes(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every record, enum, field and other type object, with its path."""
    if isinstance(schema, list):
        for each in schema:
            yield from _nodes(each, path)
    elif isinstance(schema, dict):
        yield path, schema
        for field in schema.get("fields", ()):
            where = f"{path}.{field['name']}" if path else field["name"]
            yield where, field
            yield from _nodes(field["type"], where)
        for key in ("items", "values"):
            yield from _nodes(schema.get(key), f"{path}[]")


def _name(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    return str(schema["name"]) if isinstance(schema, dict) and schema.get("type") in _NAMED else ""


def _kind(schema: Any) -> str:
    return schema if isinstance(schema, str) else str(schema["type"])


_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "null": type(None),
    "boolean": bool,
    "int": int,
    "long": int,
    "bytes": str,
    "string": str,
    "array": list,
    "map": dict,
    "record": dict,
}


def _default_fits(schema: Any, default: Any) -> bool:
    first = schema[0] if isinstance(schema, list) else schema
    kind = _kind(first)
    if kind == "enum":
        return default in first["symbols"]
    if kind in ("int", "long") and isinstance(default, bool):
        return False
    return isinstance(default, _JSON_TYPES.get(kind, object))
