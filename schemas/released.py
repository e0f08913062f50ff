"""The schemas: `avro/<stream>/<Record>.<n>.avsc`, files that never change once `avro/released.txt` lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "avro"
_LOGICAL = ("doc", "logicalType", "precision", "scale")


@dataclass(frozen=True, slots=True, eq=False)
class Released:
    """One version of one record's schema."""

    stream: str
    """Folder it lies in: `commands`, `events`, `results`, `usage` or `rejected`."""
    record: str
    """Name of the message, such as `InvoiceFinalized`."""
    version: int
    """1, 2, 3, ... without gaps."""
    schema: dict[str, Any]
    """As the file has it."""

    @property
    def full_name(self) -> str:
        """Namespace and name; also the CloudEvents type."""
        return f"{self.schema['namespace']}.{self.record}"

    @property
    def file_name(self) -> str:
        return f"{self.record}.{self.version}.avsc"


def load(folder: Path = FOLDER) -> tuple[Released, ...]:
    """Every released schema, by stream, record and version.

    Raises:
        ValueError: a file's name and content disagree, or a version is missing.
    """
    found = sorted((_read(path) for path in folder.glob("*/*.avsc")), key=lambda r: (r.stream, r.record, r.version))
    for before, after in zip([None, *found], found, strict=False):
        follows = before is not None and (before.stream, before.record) == (after.stream, after.record)
        if after.version != (before.version + 1 if before is not None and follows else 1):
            raise ValueError(f"{after.stream}/{after.file_name}: a version before it is missing")
    return tuple(found)


def published(folder: Path = FOLDER) -> tuple[Released, ...]:
    """Those that `released.txt` lists.

    Raises:
        ValueError: one of them is missing or was changed.
    """
    path = folder / "released.txt"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    listed = dict(line.split(" ") for line in lines)
    found = {f"{each.stream}/{each.file_name}": each for each in load(folder)}
    for name, known in listed.items():
        if name not in found:
            raise ValueError(f"{name} is released, and missing")
        if digest(folder, found[name]) != known:
            raise ValueError(f"{name} is released, and was changed; a change is the next version")
    return tuple(each for name, each in found.items() if name in listed)


def digest(folder: Path, released: Released) -> str:
    """SHA-256 of a schema's file."""
    return sha256((folder / released.stream / released.file_name).read_bytes()).hexdigest()


@cache
def bundled() -> tuple[Released, ...]:
    """The schemas that came with this program."""
    return load()


def newest(versions: tuple[Released, ...]) -> dict[str, Released]:
    """The latest version of each record, by its full name."""
    return {each.full_name: each for each in versions}  # sorted by version: the last one stays


def raw_schema(schema: Any) -> Any:
    """`schema` without docs and logical types: what raw records are written and read with."""
    if isinstance(schema, list):
        return [raw_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    stripped = {key: value for key, value in schema.items() if key not in _LOGICAL}
    for key in ("type", "items", "values"):
        if key in stripped:
            stripped[key] = raw_schema(stripped[key])
    if "fields" in stripped:
        stripped["fields"] = [raw_schema(each) for each in stripped["fields"]]
    return stripped


def named_types(schema: Any, namespace: str = "") -> dict[str, Any]:
    """Every record and enum defined in `schema`, by full name: a later field may name one where it is not defined."""
    if isinstance(schema, list):
        return {name: each for branch in schema for name, each in named_types(branch, namespace).items()}
    if not isinstance(schema, dict):
        return {}
    found = {}
    if schema["type"] in ("record", "enum"):
        name = full_name(schema, namespace)
        found[name] = schema
        namespace = name.rpartition(".")[0]
    for field in schema.get("fields", ()):
        found |= named_types(field["type"], namespace)
    return found | named_types(schema.get("items", schema.get("values")), namespace)


def full_name(schema: Mapping[str, Any], namespace: str) -> str:
    """Name of a record or enum that lies within `namespace`."""
    name = str(schema["name"])
    return name if "." in name else f"{schema.get('namespace', namespace)}.{name}"


def _read(path: Path) -> Released:
    record, version, _ = path.name.split(".")
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path}: not JSON: {e}") from e
    match schema:
        case {"type": "record", "name": str(name), "namespace": str(namespace), "fields": list()}:
            if (name, namespace.rsplit(".", 1)[-1]) != (record, path.parent.name):
                raise ValueError(f"{path}: holds {namespace}.{name}")
        case _:
            raise ValueError(f"{path}: is no record with a name, a namespace and fields")
    return Released(path.parent.name, record, int(version), schema)
