"""Expressions of meters on events: what fails names what is missing, and loses nothing else."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from billing.errors import Rejected
from billing.meter import check_meter
from billing.metering import Aggregation, Meter, readings
from services.meter_expressions import check_expressions, formula
from services.usage_intake import judge
from services.usage_placing import Layout
from tests.usage.making import batch, control, event, opened

SIZE = Meter(
    key="size",
    event_type="api",
    aggregation=Aggregation.SUM,
    condition='properties.kind == "read"',
    expression="number(properties.bytes) * number(properties.times)",
)
PAIRS = Meter(
    key="pairs", event_type="api", aggregation=Aggregation.UNIQUE, expression='properties.user + "@" + properties.host'
)


def meter(**fields: Any) -> Meter:
    return Meter(**{"key": "m", "event_type": "api", "aggregation": Aggregation.SUM, **fields})


def test_a_condition_chooses_events_and_an_expression_gives_the_value() -> None:
    taken = event("1", kind="read", bytes="2.5", times="4")
    assert [each.number for each in readings(taken, [SIZE], formula)] == [Decimal(10)]
    assert readings(event("1", kind="write"), [SIZE], formula) == []
    (pair,) = readings(event("1", user="ann", host="a"), [PAIRS], formula)
    assert (pair.text, pair.number) == ("ann@a", None)


@pytest.mark.parametrize(
    ("made", "properties", "field", "said"),
    [
        (SIZE, {"kind": "read"}, "properties.times", "meter 'size', its expression: the event has no 'times'"),
        (SIZE, {}, "properties.kind", "meter 'size', its condition: the event has no 'kind'"),
        (SIZE, {"kind": "read", "times": "x"}, "properties", "no number"),
        (meter(expression="properties.bytes"), {}, "properties", "a value is a number, not string"),
        (meter(expression="1 == 1"), {}, "properties", "a value is a number, not bool"),
        (PAIRS, {"user": "u" * 200, "host": "h" * 200}, "properties", "up to 256 characters"),
        (meter(value="bytes", condition="1"), {}, "properties", "true or false"),
        (meter(value="bytes", condition="1 +"), {}, "", "no CEL"),
    ],
)
def test_an_event_that_cannot_be_evaluated_is_refused_by_field(
    made: Meter, properties: dict[str, str], field: str, said: str
) -> None:
    with pytest.raises(Rejected) as refused:
        readings(event("1", **properties), [made], formula)
    assert (refused.value.code, refused.value.field) == ("expression_failed", field)
    assert said in refused.value.detail


def test_what_an_expression_gives_is_as_large_as_a_value_may_be() -> None:
    for expression in ("number(properties.bytes) - number(2)", "number(properties.bytes) * number(1000000000)"):
        with pytest.raises(Rejected) as refused:
            readings(event("1", bytes="1" if "-" in expression else "9" * 26), [meter(expression=expression)], formula)
        assert refused.value.code == "out_of_range"


def test_one_event_that_fails_loses_nothing_else() -> None:
    log = opened(meters=[SIZE])
    log.append(batch(event("1", kind="read"), event("2", kind="read", times="3"), event("3", kind="other")))
    made = judge(log.records, {}, Layout(1))
    assert made.settle({}) == 2
    assert [[each.number for each in claim.contributions] for claim in made.claims] == [["3"], []]
    (refusal,) = made.refusals
    assert (refusal.usage.reason, refusal.usage.field) == ("expression_failed", "events[0].properties.times")


def test_the_field_of_a_bad_expression_is_named() -> None:
    good = meter(value="bytes", condition="has(properties.bytes)")
    check_expressions([good])
    for name in ("condition", "expression"):
        with pytest.raises(Rejected) as refused:
            check_expressions([good, meter(**{name: "properties."})])
        assert (refused.value.code, refused.value.field) == ("invalid_expression", f"meters[1].{name}")


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (meter(aggregation=Aggregation.COUNT, expression="1"), "expression"),
        (meter(value="bytes", expression="1"), "expression"),
        (meter(), "value"),
        (meter(value="bytes", condition="1" * 501), "condition"),
    ],
)
def test_the_rules_refuse_what_does_not_fit_together(made: Meter, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_meter(made, "meter")
    assert refused.value.field == f"meter.{field}"


def test_a_control_record_with_a_bad_expression_refuses_its_events_alone() -> None:
    log = opened(meters=[meter(event_type="other", value="bytes", condition="1 +"), meter(key="n", value="bytes")])
    log.append(batch(event("1", type="other"), event("2")))
    log.append(control(version=2, meters=[meter(key="n", value="bytes")]))
    made = judge(log.records, {}, Layout(1))
    assert made.settle({}) == 1
    assert [each.usage.reason for each in made.refusals] == ["expression_failed"]
