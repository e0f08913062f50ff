"""Expressions over an event's properties, in CEL: which events a meter takes, and with which value.

    properties.region == "eu" && number(properties.size) > number("10")
    number(properties.tokens_in) + number(properties.tokens_out)

CEL has no loops, no input or output and no access to Python; macros that repeat (`map`, `all`, ...) are refused, so an
expression costs no more than it is long. Properties are text; `number(text)` makes an exact decimal, and a binary
fraction is refused. The deciders never see an expression: what they get are readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, DecimalException, localcontext
from typing import Any, Final

import celpy
from celpy import celtypes
from celpy.celparser import CELParseError
from celpy.evaluation import CELEvalError

from billing.errors import Rejected
from billing.meter import EXPRESSION_LENGTH_MAX as LENGTH_MAX
from billing.money import WIDE
from billing.price import QuantityRounding
from billing.quantity import SCALE, rounded

REPEATING: Final = frozenset({"map", "filter", "all", "exists", "exists_one", "reduce", "min"})


class Number(Decimal):
    """An exact decimal among CEL's types, which have only binary fractions."""


class Expression:
    """A compiled expression; evaluating it changes nothing and always ends."""

    def __init__(self, source: str, field: str = "expression") -> None:
        """Compile `source`.

        Raises:
            Rejected: it is too long, no CEL, or repeats; it names `field`.
        """
        if not 0 < len(source) <= LENGTH_MAX:
            raise Rejected("invalid_expression", f"allowed are 1 to {LENGTH_MAX} characters", field=field)
        environment = celpy.Environment(annotations={"properties": celtypes.MapType, "source": celtypes.StringType})
        try:
            tree = environment.compile(source)
        except CELParseError as e:
            raise Rejected("invalid_expression", f"it is no CEL expression: {e}", field=field) from e
        _refuse_repetition(tree, field)
        self.field = field
        self._program = environment.program(tree, functions={"number": _number})

    def passes(self, properties: Mapping[str, str], source: str = "") -> bool:
        """Whether an event meets the condition.

        Raises:
            Rejected: it cannot be evaluated on this event, or gives no truth value; `has(properties.x)` asks whether a
                property is there.
        """
        found = self._evaluate(properties, source)
        if not isinstance(found, celtypes.BoolType | bool):
            raise Rejected(
                "invalid_expression", f"a condition gives true or false, not {_kind(found)}", field=self.field
            )
        return bool(found)

    def value(self, properties: Mapping[str, str], source: str = "") -> Decimal:
        """The number that an event contributes, exact; a quotient that does not end is kept to 12 decimals.

        Raises:
            Rejected: it cannot be evaluated on this event, or gives no exact number.
        """
        found = self._evaluate(properties, source)
        if isinstance(found, celtypes.BoolType | bool):
            raise Rejected("invalid_expression", "a value is a number, not bool", field=self.field)
        if isinstance(found, celtypes.IntType | celtypes.UintType):
            return Decimal(int(found))
        if not isinstance(found, Decimal) or not found.is_finite():
            raise Rejected("invalid_expression", f"a value is a number, not {_kind(found)}", field=self.field)
        scale = found.as_tuple().exponent
        if isinstance(scale, int) and -scale > SCALE:
            return rounded(Decimal(found), QuantityRounding.HALF_UP, SCALE)
        return Decimal(found)

    def text(self, properties: Mapping[str, str], source: str = "") -> str:
        """The thing that an event tells of.

        Raises:
            Rejected: it cannot be evaluated on this event, or gives no text.
        """
        found = self._evaluate(properties, source)
        if not isinstance(found, str):  # a sum of texts is plain text to CEL
            raise Rejected("invalid_expression", f"a thing is text, not {_kind(found)}", field=self.field)
        return str(found)

    def _evaluate(self, properties: Mapping[str, str], source: str) -> Any:
        given = celtypes.MapType({celtypes.StringType(k): celtypes.StringType(v) for k, v in properties.items()})
        try:
            with localcontext(WIDE):
                return self._program.evaluate({"properties": given, "source": celtypes.StringType(source)})
        except (CELEvalError, DecimalException) as e:
            reason = str(e.args[0]) if e.args else "no reason given"
            raise Rejected("expression_failed", f"it cannot be evaluated: {reason}", field=self.field) from e


def _refuse_repetition(tree: Any, field: str) -> None:
    for node in tree.iter_subtrees():
        if node.data != "member_dot_arg":
            continue
        name = str(node.children[1])
        if name in REPEATING:
            raise Rejected("invalid_expression", f"{name}() repeats; allowed are conditions and sums", field=field)


def _number(text: Any) -> Any:
    """An exact decimal of plain text or a whole number; CEL reports an error as the expression's own."""
    try:
        found = Number(str(text)) if isinstance(text, str) else Number(int(text))
    except (ArithmeticError, TypeError, ValueError):
        return CELEvalError(f"{str(text)[:40]!r} is no number")
    return found if found.is_finite() else CELEvalError(f"{str(text)[:40]!r} is no finite number")


def _kind(found: Any) -> str:
    return type(found).__name__.removesuffix("Type").lower()
