"""Strict models at the edges, made by field from the domain's dataclasses: one declaration serves file, HTTP and log.

A union of dataclasses is told apart by `type`, the snake_case name of the class. Decimals come as plain decimal text
or whole numbers, never as binary floats; instants with an offset; text without control characters. A field that does
not exist is refused with the nearest name that does.
"""

from __future__ import annotations

import difflib
import re
import types
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, NewType, Union, cast, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

TEXT_LENGTH_MAX = 500
ID_LENGTH_MAX = 128
SCALE_MAX = 12
DIGITS_MAX = 26
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?\Z", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)\Z", re.IGNORECASE)
_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?\Z", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field of an input."""

    code: str
    """Stable, snake_case, for programs."""
    detail: str
    """For people: what is wrong and what is allowed."""
    field: str
    """Path, such as `plans[0].charges[2].model.tiers[1].up_to`; empty for the whole."""


class NotFinite(float):
    """What the JSON loader makes of NaN, Infinity and 1e400: a number that every field refuses by name."""


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


def decimal(value: object) -> Decimal:
    """`value` as an exact decimal: plain text or a whole number, at most 26 digits before and 12 after the point.

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
    if len(whole) > DIGITS_MAX or len(places) > SCALE_MAX:
        said = f"allowed are {DIGITS_MAX} digits before and {SCALE_MAX} after the point"
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
ExactDecimal = Annotated[
    Decimal,
    Field(strict=False),
    BeforeValidator(decimal),
    PlainSerializer(lambda value: format(value, "f"), return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$", "examples": ["0.0110"]}),
]
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
