"""Expressions of meters, at the edges: checked when a catalogue comes in, compiled once, evaluated on events.

CEL lives in `infra.expression`; the deciders never see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from billing.errors import Rejected
from billing.metering import Formula, Meter

if TYPE_CHECKING:
    from infra.expression import Expression

KNOWN_MAX: Final = 1_000  # of all tenants
_USED: Final = re.compile(r"properties\.([A-Za-z_]\w*)|properties\[['\"]([^'\"]+)['\"]\]", re.ASCII)

Value = TypeVar("Value")


def check_expressions(meters: Sequence[Meter]) -> None:
    """Refuse meters whose expressions are none.

    Raises:
        Rejected: naming the field, such as `meters[2].condition`.
    """
    for index, meter in enumerate(meters):
        check_expression(meter, f"meters[{index}]")


def check_expression(meter: Meter, path: str) -> None:
    """Refuse a meter whose expressions are none.

    Raises:
        Rejected: naming the field under `path`.
    """
    for name, source in (("condition", meter.condition), ("expression", meter.expression)):
        if source:
            _compiled(source, f"{path}.{name}")


@lru_cache(maxsize=KNOWN_MAX)
def formula(source: str) -> Formula:
    """The compiled form of `source`; one that is no CEL, and came past the edges, fails on every event."""
    try:
        return _Compiled(source)
    except Rejected as e:
        return _NoExpression(e.detail)


class _Compiled:
    """An expression whose failures name the property of the event that is missing, where one is."""

    def __init__(self, source: str) -> None:
        self._expression = _compiled(source, "properties")
        self._used = [one or other for one, other in _USED.findall(source)]

    def passes(self, properties: Mapping[str, str], source: str) -> bool:
        return self._tried(self._expression.passes, properties, source)

    def value(self, properties: Mapping[str, str], source: str) -> Decimal:
        return self._tried(self._expression.value, properties, source)

    def text(self, properties: Mapping[str, str], source: str) -> str:
        return self._tried(self._expression.text, properties, source)

    def _tried(
        self, evaluate: Callable[[Mapping[str, str], str], Value], properties: Mapping[str, str], source: str
    ) -> Value:
        try:
            return evaluate(properties, source)
        except Rejected as e:
            missing = next((name for name in self._used if name not in properties), None)
            if missing is None:
                raise
            raise Rejected(e.code, f"the event has no {missing!r}", field=f"properties.{missing}") from e


class _NoExpression:
    """Refuses every event."""

    def __init__(self, detail: str) -> None:
        self._detail = detail

    def passes(self, properties: Mapping[str, str], source: str) -> bool:
        raise Rejected("invalid_expression", self._detail, field="")

    def value(self, properties: Mapping[str, str], source: str) -> Decimal:
        raise Rejected("invalid_expression", self._detail, field="")

    def text(self, properties: Mapping[str, str], source: str) -> str:
        raise Rejected("invalid_expression", self._detail, field="")


def _compiled(source: str, field: str) -> Expression:
    from infra.expression import Expression  # a quarter of a second to load, and most tenants have no expressions

    return Expression(source, field)
