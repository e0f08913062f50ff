"""How an expected figure is compared: exactly, or to the decimals that are stated where the exact one does not end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from billing.money import Money, half_up


def number(text: str | int | None) -> Decimal:
    """A figure of a case; nothing stands for zero."""
    return Decimal(0) if text is None else Decimal(str(text))


def optional(text: str | int | None) -> Decimal | None:
    """A figure of a case, or None where none is stated."""
    return None if text is None else Decimal(str(text))


def first(given: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """The figure under the first of `names` that a case has."""
    return next((given[name] for name in names if given.get(name) is not None), default)


def instant(text: str, zone: str = "UTC") -> datetime:
    """An instant, or the local time or midnight in `zone` of one without offset."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (found.replace(tzinfo=ZoneInfo(zone)) if found.tzinfo is None else found).astimezone(UTC)


def local(text: str) -> datetime:
    """A local date-time without offset."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


def differences(expected: Any, actual: Any, uncovered: Sequence[str] = (), path: str = "") -> list[str]:
    """Every stated result that differs, with its path. Paths in `uncovered` may be missing, but not wrong."""
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping):
            return [f"{path}: expected {expected}, got {actual}"]
        found: list[str] = []
        for key, value in expected.items():
            where = f"{path}/{key}"
            if key not in actual:
                missing_is_fine = any(where == each or where.startswith(f"{each}/") for each in uncovered)
                found += [] if missing_is_fine else [f"{where}: not computed, expected {value}"]
            else:
                found += differences(value, actual[key], uncovered, where)
        return found
    if isinstance(expected, list):
        if not isinstance(actual, Sequence) or len(actual) != len(expected):
            return [f"{path}: expected {expected}, got {actual}"]
        pairs = zip(expected, actual, strict=True)
        return [line for i, (e, a) in enumerate(pairs) for line in differences(e, a, uncovered, f"{path}/{i}")]
    return [] if same(expected, actual) else [f"{path}: expected {expected}, got {actual!s}"]


def same(expected: Any, actual: Any) -> bool:
    """Whether one stated result is met."""
    match expected, actual:
        case None, _:
            return actual is None
        case bool(), _:
            return expected is actual
        case str(), datetime():
            return bool(instant(expected) == actual)
        case str(), date():
            return bool(date.fromisoformat(expected) == actual)
        case str(), str():
            return bool(expected == actual)
        case str() | int(), Money():
            return _equal(str(expected), Fraction(actual.major()))
        case str() | int(), int() | Decimal() | Fraction():
            return _equal(str(expected), Fraction(actual))
    return False


def _equal(expected: str, actual: Fraction) -> bool:
    if "/" in expected:
        return bool(Fraction(expected) == actual)
    stated = Decimal(expected)
    if Fraction(stated) == actual or _ends(actual):
        return bool(Fraction(stated) == actual)
    decimals = max(-int(stated.as_tuple().exponent), 0)
    return bool(half_up(actual * 10**decimals) == Fraction(stated) * 10**decimals)


def _ends(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
