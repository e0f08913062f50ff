"""The Avro schema that a dataclass declares: read at release time only; at run time the .avsc files are the schema.

The class's docstring documents the record, the string literal under a field documents the field.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from schemas.mapping import DECIMAL_PRECISION, DECIMAL_SCALE, converter

Json = Any
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PRIMITIVES: dict[Any, Json] = {
    str: "string",
    int: "long",
    bool: "boolean",
    bytes: "bytes",
    Decimal: {"type": "bytes", "logicalType": "decimal", "precision": DECIMAL_PRECISION, "scale": DECIMAL_SCALE},
    datetime: {"type": "long", "logicalType": "timestamp-micros"},
    date: {"type": "int", "logicalType": "date"},
}


def schema_of(cls: type, namespace: str, meta: type | None = None) -> dict[str, Json]:
    """The schema of message `cls`, self-contained; a `meta` becomes its first field.

    Raises:
        TypeError: a field's type or default has no agreed Avro form, or a doc is missing.
    """
    seen: set[str] = set()
    record: dict[str, Json] = {"type": "record", "name": cls.__name__, "namespace": namespace, "doc": _doc(cls)}
    seen.add(cls.__name__)
    first = []
    if meta is not None:
        first = [{"name": "meta", "type": _record(meta, namespace, seen), "doc": "Who, when, and where in the order."}]
    record["fields"] = first + _fields(cls, namespace, seen)
    return record


def _fields(cls: type, namespace: str, seen: set[str]) -> list[Json]:
    hints, docs = get_type_hints(cls), _field_docs(cls)
    declared = []
    for each in fields(cls):
        if each.name not in docs:
            raise TypeError(f"{cls.__name__}.{each.name} has no string literal under it that says what it is")
        try:
            default = _default(each, hints[each.name], namespace)
            entry = {"name": each.name, "type": _type(hints[each.name], namespace, seen, default)}
        except TypeError as e:
            raise TypeError(f"{cls.__name__}.{each.name}: {e}") from e
        if default is not MISSING:
            entry["default"] = default
        entry["doc"] = docs[each.name]
        declared.append(entry)
    return declared


def _type(hint: Any, namespace: str, seen: set[str], default: Json = MISSING) -> Json:
    if isinstance(hint, NewType):
        return _type(hint.__supertype__, namespace, seen)
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum(hint, seen)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, namespace, seen)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return {"type": "array", "items": _type(args[0], namespace, seen)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "map", "values": _type(args[1], namespace, seen)}
    if origin in (Union, types.UnionType):
        branches = [_type(each, namespace, seen) for each in args if each is not type(None)]
        if len(branches) < len(args):  # a default belongs to the first branch, so null leads unless another is it
            branches.insert(0 if default in (None, MISSING) else len(branches), "null")
        return branches
    raise TypeError(f"{hint}: no Avro type is agreed for it")


def _record(cls: type, namespace: str, seen: set[str]) -> Json:
    if cls.__name__ in seen:
        return cls.__name__
    seen.add(cls.__name__)
    return {"type": "record", "name": cls.__name__, "doc": _doc(cls), "fields": _fields(cls, namespace, seen)}


def _enum(cls: type[StrEnum], seen: set[str]) -> Json:
    if cls.__name__ in seen:
        return cls.__name__
    seen.add(cls.__name__)
    symbols = [str(member.value) for member in cls]
    for symbol in symbols:
        if not _NAME.match(symbol):
            raise TypeError(f"{cls.__name__}: {symbol!r} is no Avro symbol; letters, digits and underscores only")
    return {"type": "enum", "name": cls.__name__, "symbols": symbols, "default": symbols[0], "doc": _doc(cls)}


def _default(field: Field[Any], hint: Any, namespace: str) -> Json:
    if field.default_factory is not MISSING:
        value = field.default_factory()
    elif field.default is not MISSING:
        value = field.default
    else:
        return MISSING
    return _as_json(converter(hint, namespace).encode(value))


def _as_json(raw: Any) -> Json:
    """A raw value as the default of a field, where a union's default belongs to the union's first branch."""
    match raw:
        case bytes():
            return raw.decode("iso-8859-1")
        case tuple():
            return _as_json(raw[1])
        case list():
            return [_as_json(each) for each in raw]
        case dict():
            return {key: _as_json(each) for key, each in raw.items()}
        case _:
            return raw


@cache
def _doc(cls: type) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    if not doc or doc.startswith(f"{cls.__name__}("):  # what @dataclass writes where nobody did
        raise TypeError(f"{cls.__name__} has no docstring")
    return _one_line(doc)


@cache
def _field_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if not is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, below in zip(tree.body, tree.body[1:], strict=False):
            match statement, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    docs[name] = _one_line(inspect.cleandoc(text))
    return docs


def _one_line(text: str) -> str:
    """The first paragraph: what follows it explains the code, not the message."""
    return " ".join(text.split("\n\n")[0].split())
