"""Any message at all, built from the dataclasses as the mapping is, with a taste for the edges."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from random import Random
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from billing.errors import Rejected
from schemas.declaration import schema_of
from schemas.example import example
from schemas.mapping import converter

_EDGES = (0, 1, -1, 63, 64, -64, -65, 2**31, 2**62, 2**63 - 1, -(2**63))
_TEXTS = ("", "a", "USD", "é", "\0", "\u202eabc", "🧾" * 40, "x" * 64, "\x7f\x80")
_DEPTH_MAX = 4
_PRIMITIVES: dict[Any, Callable[[Random], Any]] = {
    str: lambda r: r.choice(_TEXTS),
    int: lambda r: r.choice((*_EDGES, r.getrandbits(40))),
    bool: lambda r: r.random() < 0.5,
    bytes: lambda r: r.randbytes(r.choice((0, 1, 32, 70))),
    Decimal: lambda r: Decimal(r.choice((0, 1, -1, r.getrandbits(20), 10**26 - 1))).scaleb(-r.choice((0, 0, 2, 12))),
    datetime: lambda r: (
        datetime(1, 1, 2, tzinfo=UTC) + timedelta(days=r.randrange(3_650_000), microseconds=r.getrandbits(36))
    ),
    date: lambda r: date.fromordinal(r.randrange(1, 3_652_059)),
}


def message(cls: Any, seed: int) -> Any:
    """One value of `cls`, the same for the same seed."""
    return _value(cls, Random(seed), 0)


def _value(hint: Any, random: Random, depth: int) -> Any:
    if isinstance(hint, NewType):
        return _value(hint.__supertype__, random, depth)
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint](random)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return random.choice(list(hint))
    if isinstance(hint, type) and is_dataclass(hint):
        hints = _hints(hint)
        try:
            return hint(**{each.name: _value(hints[each.name], random, depth + 1) for each in fields(hint)})
        except (ValueError, AssertionError, ArithmeticError, Rejected):
            return _ordinary(hint)
    origin, args = get_origin(hint), get_args(hint)
    count = 0 if depth > _DEPTH_MAX else random.choice((0, 1, 2))
    if origin is tuple:
        return tuple(_value(args[0], random, depth + 1) for _ in range(count))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_value(args[0], random, depth): _value(args[1], random, depth + 1) for _ in range(count)}
    if origin in (Union, types.UnionType):
        if type(None) in args and (depth > _DEPTH_MAX or random.random() < 0.3):
            return None
        return _value(random.choice([each for each in args if each is not type(None)]), random, depth)
    raise TypeError(hint)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _ordinary(cls: type) -> Any:
    """One value that `cls` accepts, for classes that refuse most combinations."""
    decode = converter(cls, "tallybook.tests").decode
    assert decode is not None
    raw = example(schema_of(cls, "tallybook.tests"))
    return decode({name: _read_form(each) for name, each in raw.items()})


def _read_form(raw: Any) -> Any:
    """Optional values name their branch when written, and do not when read."""
    return raw[1] if isinstance(raw, tuple) else raw
