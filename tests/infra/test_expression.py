"""Expressions are exact, end, and cannot leave their sandbox."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing.errors import Rejected
from infra.expression import Expression

EVENT = {"region": "eu", "size": "12.5", "in": "0.1", "out": "0.2", "tail": "N123"}


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ('properties.region == "eu"', True),
        ('properties.region in ["us", "ca"]', False),
        ('number(properties.size) > number("12.4")', True),
        ('number(properties.size) >= number(13) || properties.tail.startsWith("N")', True),
        ('properties.tail.matches("^N[0-9]+$") && source == "gate"', True),
        ("has(properties.missing)", False),
        ("!has(properties.region)", False),
        ('number(properties["in"]) + number(properties.out) == number("0.3")', True),
    ],
)
def test_a_condition_lets_events_through(source: str, passes: bool) -> None:
    assert Expression(source).passes(EVENT, "gate") is passes


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ('number(properties["in"]) + number(properties.out)', "0.3"),
        ('number(properties.size) * number("0.0000000001")', "0.00000000125"),
        (
            'number("99999999999999999999999999999999") + number("0.000000000001")',
            "99999999999999999999999999999999.000000000001",
        ),
        ("number(1) / number(3)", "0.333333333333"),
        ("size(properties.region) + 1", "3"),
    ],
)
def test_a_value_is_exact(source: str, value: str) -> None:
    assert Expression(source).value(EVENT) == Decimal(value)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "1 +",
        "x" * 501,
        "[1, 2, 3].map(x, x * x)",
        "properties.all(k, k != '')",
        "[[1].map(y, y)].exists(x, true)",
    ],
)
def test_what_is_no_bounded_expression_is_refused_by_field(source: str) -> None:
    with pytest.raises(Rejected) as refused:
        Expression(source, "meters[0].filter")
    assert (refused.value.code, refused.value.field) == ("invalid_expression", "meters[0].filter")


@pytest.mark.parametrize(
    "source",
    [
        'properties.missing == "x"',
        "number(properties.region) > number(1)",
        'number("NaN") > number(1)',
        "number(1) / number(0)",
        '__import__("os").system("true")',
        "properties.__class__",
        "unknown(1)",
        "properties.region",
        "1.5",
    ],
)
def test_what_fails_on_an_event_says_why(source: str) -> None:
    made = Expression(source, "meters[0].filter")
    with pytest.raises(Rejected) as refused:
        made.passes(EVENT)
    assert refused.value.field == "meters[0].filter"
    with pytest.raises(Rejected):
        made.value(EVENT)
