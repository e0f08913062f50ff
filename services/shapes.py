"""Strict models at the edges, made by field from the domain's dataclasses: one declaration serves file, HTTP and log.

A union of dataclasses is told apart by `type`, the snake_case name of the class. Single values are those of
`exact_values`. A field that does not exist is refused with the nearest name that does.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, NewType, Union, cast, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from services.exact_values import ExactDecimal, Instant, Name, Text, Whole


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field of an input."""

    code: str
    """Stable, snake_case, for programs."""
    detail: str
    """For people: what is wrong and what is allowed."""
    field: str
    """Path, such as `plans[0].charges[2].model.tiers[1].up_to`; empty for the whole."""


class StrictModel(BaseModel):
    """Refuses what it does not know, with a hint, and never converts one type into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {each.alias or name for name, each in cls.model_fields.items()}
        for key in given:
            if key not in known:
                raise PydanticCustomError("unknown_field", "{said}", {"key": str(key), "said": hint(str(key), known)})
        return given


def hint(name: str, known: Iterable[str]) -> str:
    """That there is no field `name`, and which was probably meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    shown = name[:60].encode("ascii", "backslashreplace").decode()
    if near:
        return f"there is no field {shown!r} here; did you mean {near[0]!r}?"
    return f"there is no field {shown!r} here; allowed are: {', '.join(known) or 'none'}"


def faults(error: ValidationError | Iterable[Mapping[str, Any]], given: Any) -> list[Fault]:
    """What `error` says about the input `given`, in our codes; values are not repeated."""
    listed = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else error
    return [_fault(each, given) for each in listed]


def _fault(error: Mapping[str, Any], given: Any) -> Fault:
    kind, context = str(error["type"]), error.get("ctx") or {}
    loc = (*error["loc"], context["key"]) if kind == "unknown_field" else tuple(error["loc"])
    code = _CODES.get(kind, kind if kind in _OWN else "invalid_value")
    said = _SAID.get(kind, str(error["msg"]))
    return Fault(code, said, path(loc, given))


_OWN = frozenset(
    (
        "card_data_refused",
        "invalid_decimal",
        "invalid_id",
        "invalid_text",
        "invalid_time",
        "invalid_type",
        "not_finite",
        "out_of_range",
        "unknown_field",
    )
)
_CODES = {
    "missing": "missing_field",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "too_long": "out_of_range",
    "too_short": "out_of_range",
    "bool_type": "invalid_type",
    "list_type": "invalid_type",
    "dict_type": "invalid_type",
    "model_type": "invalid_type",
    "model_attributes_type": "invalid_type",
    "string_type": "invalid_type",
    "int_type": "invalid_type",
    "int_parsing": "invalid_type",
    "int_from_float": "invalid_type",
    "string_unicode": "invalid_text",
    "string_too_long": "invalid_text",
    "json_type": "invalid_type",
    "union_tag_not_found": "missing_field",
}
_SAID = {
    "missing": "it is needed here",
    "string_type": "text is needed here",
    "string_unicode": "lone surrogates are not text",
    "bool_type": "true or false is needed here",
    "list_type": "a list is needed here",
    "dict_type": "named values are needed here",
    "model_type": "named values (an object) are needed here",
    "model_attributes_type": "named values (an object) are needed here",
}


def path(loc: Iterable[int | str], given: Any) -> str:
    """Pydantic's `loc` as `plans[0].charges[2].key`. Names of union branches, which no input has, are left out."""
    at, shown = given, ""
    for part in loc:
        if isinstance(part, int):
            shown += f"[{part}]"
            at = at[part] if isinstance(at, list) and part < len(at) else None
            continue
        if isinstance(at, Mapping) and part not in at and at.get("type") == part:
            continue
        if part == "[key]":
            continue
        name = part if part.isascii() and part.isprintable() else ascii(part)
        shown += f".{name}" if shown else name
        at = at.get(part) if isinstance(at, Mapping) else None
    return shown


_SCALARS: dict[Any, Any] = {str: Text, int: Whole, bool: bool, Decimal: ExactDecimal, datetime: Instant, date: date}


@cache
def model_of(cls: type[Any], tag: str | None = None) -> type[StrictModel]:
    """The strict model of dataclass `cls`; with a `tag`, that of a branch of a union."""
    hints = get_type_hints(cls)
    declared: dict[str, Any] = {}
    if tag is not None:
        declared["type"] = (Literal[tag], ...)
    for each in fields(cls):
        annotation = _annotation(hints[each.name])
        if each.default is MISSING and each.default_factory is MISSING:
            declared[each.name] = (annotation, ...)
        else:
            declared[each.name] = (annotation, Field(default_factory=_plain_default(each)))
    return cast(type[StrictModel], create_model(cls.__name__, __base__=StrictModel, __doc__=cls.__doc__, **declared))


def value_of(hint: Any, given: Any) -> Any:
    """What a validated model (or part of one) says, as the domain's own type `hint`."""
    if given is None:
        return None
    if isinstance(hint, NewType):
        return value_of(hint.__supertype__, given)
    if isinstance(hint, type) and is_dataclass(hint):
        if isinstance(given, hint):
            return given
        hints = get_type_hints(hint)
        return hint(**{each.name: value_of(hints[each.name], getattr(given, each.name)) for each in fields(hint)})
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(given)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return tuple(value_of(args[0], each) for each in given)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: value_of(args[1], each) for key, each in given.items()}
    if origin in (Union, types.UnionType):
        return value_of(_branch(args, given), given)
    return given


def plain(value: Any) -> Any:
    """A domain value as JSON would say it, in the form that `model_of` reads."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        made = {}
        for each in fields(value):
            inner = getattr(value, each.name)
            made[each.name] = plain(inner)
            if is_dataclass(inner) and len(_dataclasses(get_args(hints[each.name]))) > 1:
                made[each.name] = {"type": snake(type(inner).__name__), **made[each.name]}
        return made
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


def snake(name: str) -> str:
    """`PerUnit` as `per_unit`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _annotation(hint: Any) -> Any:
    if isinstance(hint, NewType):
        return _annotation(hint.__supertype__)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return Literal[tuple(str(member) for member in hint)]
    if isinstance(hint, type) and is_dataclass(hint):
        return model_of(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return list[_annotation(args[0])]  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[Name, _annotation(args[1])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return _union(args)
    raise TypeError(f"{hint}: no form at the edges is agreed for it")


def _union(args: tuple[Any, ...]) -> Any:
    branches = _dataclasses(args)
    rest = [each for each in args if each not in branches and each is not type(None)]
    made: Any
    if len(branches) > 1:
        tagged = tuple(model_of(each, snake(each.__name__)) for each in branches)
        made = Annotated[Union[tagged], Field(discriminator="type")]  # noqa: UP007  # a union made at run time
    else:
        made = _annotation((branches or rest)[0])
    return made | None if type(None) in args else made


def _dataclasses(args: tuple[Any, ...]) -> list[Any]:
    return [each for each in args if isinstance(each, type) and is_dataclass(each)]


def _branch(args: tuple[Any, ...], given: Any) -> Any:
    branches = _dataclasses(args)
    if len(branches) > 1:
        return next(each for each in branches if isinstance(given, each) or snake(each.__name__) == given.type)
    return next(each for each in args if each is not type(None))


def _plain_default(field: Any) -> Any:
    """A default is left as the domain has it: `value_of` passes it through."""
    if field.default_factory is not MISSING:
        return field.default_factory
    return lambda value=field.default: value
