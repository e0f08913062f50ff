"""Dataclass <-> Avro record, by field, compiled once per class.

Between the two stands the *raw* form: what Avro holds when logical types are left out. A decimal is its
unscaled integer as two's complement bytes, an instant is microseconds since 1970 UTC, a date is days since
1970, an enum its symbol. Every value is checked on the way out, because an Avro writer would rather store
something wrong than refuse: `True` for 1, 1 for 1.9, local time for a datetime without a zone.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from functools import cache
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from schemas.errors import EncodeError, InvalidValue

DECIMAL_PRECISION = 38
DECIMAL_SCALE = 12
_UNIT = 10**DECIMAL_SCALE
_DECIMAL_LIMIT = 10**DECIMAL_PRECISION
_EXACT = Context(prec=DECIMAL_PRECISION + DECIMAL_SCALE, traps=[Inexact, InvalidOperation])
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Converter:
    """Both directions between one type's values and their raw form."""

    branch: str
    """Name of the type as a branch of an Avro union."""
    encode: Callable[[Any], Any]
    """Value -> raw; raises `EncodeError` with the path below the value."""
    decode: Callable[[Any], Any] | None
    """Raw -> value; raises `InvalidValue`; None where raw and value are the same."""
    accepts: tuple[type, ...]
    """Python types that choose this branch of a union."""


@cache
def converter(hint: Any, namespace: str) -> Converter:
    """The converter of values typed `hint`, whose records live in `namespace`.

    Raises:
        TypeError: messages cannot be declared with such a type.
    """
    if isinstance(hint, NewType):
        return converter(hint.__supertype__, namespace)
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum(hint, namespace)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, namespace)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _array(converter(args[0], namespace))
    if origin in (Mapping, dict) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if args[0] is not str and getattr(args[0], "__supertype__", None) is not str:
            raise TypeError(f"{hint}: keys of a map are strings")
        return _map(converter(args[1], namespace))
    if origin in (Union, types.UnionType):
        return _union(args, namespace)
    raise TypeError(f"{hint}: no Avro type is agreed for it")


def _refuse(value: object, wanted: str) -> EncodeError:
    return EncodeError("", f"{type(value).__name__} where {wanted} belongs")


def _encode_str(value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse(value, "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise EncodeError("", f"a lone surrogate at {e.start} is not text") from e
    return value


def _encode_int(value: Any) -> int:
    if type(value) is not int:  # exactly: True is an int to Python, and 1 to a reader
        raise _refuse(value, "an integer")
    if not _LONG_MIN <= value <= _LONG_MAX:
        raise EncodeError("", f"{value} does not fit 64 bits")
    return value


def _encode_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _refuse(value, "true or false")
    return value


def _encode_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise _refuse(value, "bytes")
    return value


def _encode_decimal(value: Any) -> bytes:
    if type(value) is not Decimal:
        raise _refuse(value, "a Decimal")
    if not value.is_finite():
        raise EncodeError("", f"{value} is not a number")
    if value.adjusted() > DECIMAL_PRECISION and value:  # before scaling: 1E+999999 would fill the memory
        raise EncodeError("", f"more than {DECIMAL_PRECISION - DECIMAL_SCALE} digits before the point")
    try:
        scaled = value.scaleb(DECIMAL_SCALE, _EXACT) if value else value
    except Inexact as e:
        raise EncodeError("", f"more than {DECIMAL_PRECISION} digits") from e
    unscaled = int(scaled)
    if unscaled != scaled:
        raise EncodeError("", f"{value} has more than {DECIMAL_SCALE} decimals")
    if not -_DECIMAL_LIMIT < unscaled < _DECIMAL_LIMIT:
        raise EncodeError("", f"more than {DECIMAL_PRECISION - DECIMAL_SCALE} digits before the point")
    return unscaled.to_bytes((unscaled + (unscaled < 0)).bit_length() // 8 + 1, "big", signed=True)


def _decode_decimal(raw: Any) -> Decimal:
    """The shortest form of the value (12.5, 1000), so that it does not tell by which path it came."""
    unscaled = int.from_bytes(raw.encode("iso-8859-1") if type(raw) is str else raw, "big", signed=True)
    if not -_DECIMAL_LIMIT < unscaled < _DECIMAL_LIMIT:
        raise InvalidValue("", f"a decimal of more than {DECIMAL_PRECISION} digits")
    whole, rest = divmod(unscaled, _UNIT)
    if not rest:
        return Decimal(whole)
    return Decimal(unscaled).scaleb(-DECIMAL_SCALE, _EXACT).normalize(_EXACT)


def _encode_instant(value: Any) -> int:
    if type(value) is not datetime:
        raise _refuse(value, "a datetime")
    if value.tzinfo is not UTC and value.utcoffset() != timedelta(0):
        raise EncodeError("", f"{value.isoformat()} is not in UTC" if value.tzinfo else f"{value} has no zone")
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _decode_instant(raw: Any) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=raw)
    except OverflowError as e:
        raise InvalidValue("", f"{raw} microseconds since 1970 is no instant") from e


def _encode_date(value: Any) -> int:
    if type(value) is not date:  # a datetime is a date to Python
        raise _refuse(value, "a date")
    return value.toordinal() - _EPOCH_DAY


def _decode_date(raw: Any) -> date:
    try:
        return date.fromordinal(raw + _EPOCH_DAY)
    except (OverflowError, ValueError) as e:
        raise InvalidValue("", f"{raw} days since 1970 is no date") from e


def _decode_bytes(raw: Any) -> Any:
    return raw.encode("iso-8859-1") if type(raw) is str else raw  # a default is JSON text until it is used


_PRIMITIVES: dict[Any, Converter] = {
    str: Converter("string", _encode_str, None, (str,)),
    int: Converter("long", _encode_int, None, (int,)),
    bool: Converter("boolean", _encode_bool, None, (bool,)),
    bytes: Converter("bytes", _encode_bytes, _decode_bytes, (bytes,)),
    Decimal: Converter("bytes", _encode_decimal, _decode_decimal, (Decimal,)),
    datetime: Converter("long", _encode_instant, _decode_instant, (datetime,)),
    date: Converter("int", _encode_date, _decode_date, (date,)),
}


def _enum(cls: type[StrEnum], namespace: str) -> Converter:
    symbols = {member: str(member.value) for member in cls}
    members = {symbol: member for member, symbol in symbols.items()}

    def encode(value: Any) -> str:
        if type(value) is not cls:  # a bare string equal to a member would pass unnoticed
            raise _refuse(value, f"a member of {cls.__name__}")
        return symbols[value]

    return Converter(f"{namespace}.{cls.__name__}", encode, members.__getitem__, (cls,))


def _record(cls: type, namespace: str) -> Converter:
    encoders: list[tuple[str, Callable[[Any], Any]]] = []
    decoders: list[tuple[str, Callable[[Any], Any] | None]] = []

    def encode(value: Any) -> dict[str, Any]:
        if type(value) is not cls:
            raise _refuse(value, cls.__name__)
        raw = {}
        name = ""
        try:
            for name, convert in encoders or compile_fields():
                raw[name] = convert(getattr(value, name))
        except EncodeError as e:
            raise e.under(name) from e.__cause__
        return raw

    def decode(raw: Any) -> Any:
        values = {}
        name = ""
        if not encoders:
            compile_fields()
        try:
            for name, convert in decoders:
                values[name] = raw[name] if convert is None else convert(raw[name])
        except InvalidValue as e:
            raise e.under(name) from e.__cause__
        try:
            return cls(**values)
        except (ValueError, AssertionError, ArithmeticError) as e:  # the class's own check of what it may hold
            raise InvalidValue("", f"{cls.__name__} refuses it: {str(e) or type(e).__name__}") from e

    def compile_fields() -> list[tuple[str, Callable[[Any], Any]]]:
        hints = get_type_hints(cls)  # at first use, not before: a record may contain itself
        compiled = [(each.name, converter(hints[each.name], namespace)) for each in fields(cls)]
        decoders[:] = [(name, each.decode) for name, each in compiled]
        encoders[:] = [(name, each.encode) for name, each in compiled]
        return encoders

    return Converter(f"{namespace}.{cls.__name__}", encode, decode, (cls,))


def _array(item: Converter) -> Converter:
    encode_item, decode_item = item.encode, item.decode

    def encode(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise _refuse(value, "a tuple")
        raw: list[Any] = []
        try:
            for each in value:
                raw.append(encode_item(each))
        except EncodeError as e:
            raise e.under(f"[{len(raw)}]") from e.__cause__
        return raw

    def decode(raw: Any) -> tuple[Any, ...]:
        if decode_item is None:
            return tuple(raw)
        values: list[Any] = []
        try:
            for each in raw:
                values.append(decode_item(each))
        except InvalidValue as e:
            raise e.under(f"[{len(values)}]") from e.__cause__
        return tuple(values)

    return Converter("array", encode, decode, (tuple,))


def _map(item: Converter) -> Converter:
    encode_item, decode_item = item.encode, item.decode

    def encode(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _refuse(value, "a mapping")
        raw = {}
        for key, each in value.items():
            try:
                raw[_encode_str(key)] = encode_item(each)
            except EncodeError as e:
                raise e.under(f"[{key!r}]") from e.__cause__
        return raw

    def decode(raw: Any) -> Any:
        if decode_item is None:
            return raw
        values = {}
        for key, each in raw.items():
            try:
                values[key] = decode_item(each)
            except InvalidValue as e:
                raise e.under(f"[{key!r}]") from e.__cause__
        return values

    return Converter("map", encode, decode, (dict,))


def _union(args: Sequence[Any], namespace: str) -> Converter:
    """Branches are chosen by the exact Python type, and read back by the record's name."""
    branches = [converter(each, namespace) for each in args if each is not type(None)]
    nullable = len(branches) < len(args)
    names = [each.branch for each in branches]
    if len(branches) == 1:
        return _optional(branches[0])
    if not all(isinstance(each, type) and is_dataclass(each) for each in args if each is not type(None)):
        raise TypeError(f"{args}: a union holds records, or one type and null")
    by_type = {python: (each.branch, each.encode) for each in branches for python in each.accepts}
    by_name = {each.branch: each.decode for each in branches}
    wanted = " or ".join(name.rsplit(".", 1)[1] for name in names)

    def encode(value: Any) -> Any:
        if value is None and nullable:
            return None
        branch = by_type.get(type(value))
        if branch is None:
            raise _refuse(value, wanted)
        return branch[0], branch[1](value)

    def decode(raw: Any) -> Any:
        if raw is None:
            return None
        name, value = raw
        convert = by_name[name]
        return value if convert is None else convert(value)

    return Converter("union", encode, decode, tuple(by_type))


def _optional(some: Converter) -> Converter:
    branch, encode_some, decode_some = some.branch, some.encode, some.decode

    def encode(value: Any) -> Any:
        # The branch is named, or the writer would try the value against each in turn.
        return None if value is None else (branch, encode_some(value))

    def decode(raw: Any) -> Any:
        return None if raw is None else decode_some(raw)  # type: ignore[misc]

    return Converter("union", encode, decode_some and decode, some.accepts)
