"""Aggregations: exact, and the same whatever the order of arrival (SEMANTICS 14, 15)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.aggregation import (
    Point,
    by_dimensions,
    measure,
    percentile,
    present,
    split,
    sum_of_windows,
    time_of_day,
    weighted_sum,
    windows,
)
from billing.errors import Rejected
from billing.metering import Aggregation
from billing.period import Period
from billing.price import Tier
from billing.proration import ProrationUnit
from billing.recurring import Change, held, held_things, never_less, prorated_units, rate_held

D = Decimal
START = datetime(2026, 3, 1, tzinfo=UTC)
MARCH = Period(START, datetime(2026, 4, 1, tzinfo=UTC))


def at(day: int, value: str = "1", **fields: object) -> Point:
    return Point(START + timedelta(days=day - 1), D(value), **fields)  # type: ignore[arg-type]


POINTS = [at(1, "5"), at(2, "2.5"), at(9, "-1"), at(9, "7", key="b"), at(31, "3")]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Aggregation.COUNT, 5),
        (Aggregation.SUM, D("16.5")),
        (Aggregation.MAX, 7),
        (Aggregation.MIN, -1),
        (Aggregation.LATEST, 3),
        (Aggregation.AVERAGE, Fraction(33, 10)),
    ],
)
def test_points_become_one_quantity(method: Aggregation, expected: Decimal | Fraction) -> None:
    outside = [at(0, "100"), at(32, "100")]
    assert measure(method, [*POINTS, *outside], MARCH) == expected


@pytest.mark.parametrize("method", [each for each in Aggregation if each is not Aggregation.PERCENTILE])
def test_without_points_there_is_nothing(method: Aggregation) -> None:
    assert measure(method, [], MARCH) == 0


def test_of_one_instant_the_greater_key_is_the_latest() -> None:
    assert measure(Aggregation.LATEST, [at(9, "7", key="b"), at(9, "1", key="a")], MARCH) == 7


@given(st.permutations(POINTS), st.sampled_from([each for each in Aggregation if each is not Aggregation.PERCENTILE]))
def test_the_order_of_arrival_does_not_matter(points: list[Point], method: Aggregation) -> None:
    assert measure(method, points, MARCH) == measure(method, POINTS, MARCH)


def test_distinct_things_are_counted_until_they_leave() -> None:
    points = [
        at(1, thing="a"),
        at(2, thing="b"),
        at(3, thing="a"),
        at(4, thing="a", removes=True),
        at(5, thing="x", removes=True),
    ]
    assert measure(Aggregation.UNIQUE, points, MARCH) == 1
    assert present(points, before=["z"]) == {"b", "z"}


@pytest.mark.parametrize(
    ("percent", "expected"), [("1", 1), ("50", 5), ("95", 10), ("90", 9), ("90.1", 10), ("100", 10)]
)
def test_a_percentile_is_a_value_that_occurred(percent: str, expected: int) -> None:
    assert percentile([D(n) for n in range(10, 0, -1)], D(percent)) == expected


@pytest.mark.parametrize("percent", ["0", "-1", "100.1"])
def test_a_percentile_outside_its_range_is_refused(percent: str) -> None:
    with pytest.raises(Rejected):
        percentile([D(1)], D(percent))


def test_a_level_counts_for_the_time_it_is_held() -> None:
    assert weighted_sum([at(6, "2500")], MARCH, MARCH) == Fraction(2500 * 26, 31)
    assert measure(Aggregation.WEIGHTED_SUM, [at(6, "-10")], MARCH, carried=D(10)) == Fraction(10 * 5, 31)
    half = Period(MARCH.start, START + timedelta(days=15))
    assert weighted_sum([], half, MARCH, carried=D(31)) == 15
    assert measure(Aggregation.SUM, [at(2, "5")], MARCH, carried=D(10)) == 15


def test_quantities_are_split_by_dimensions_and_by_the_hour_of_the_day() -> None:
    cells = by_dimensions([at(1, dimensions=("us",)), at(2, dimensions=("eu",)), at(3, dimensions=("us",))])
    assert [(key, len(points)) for key, points in cells.items()] == [(("eu",), 1), (("us",), 2)]
    band = time_of_day([(8, "peak"), (20, "night")], "America/New_York")
    hours = [Point(START + timedelta(hours=hour)) for hour in (12, 13, 23, 25, 26)]  # 7, 8, 18, 20 and 21 there
    assert {key[0]: len(points) for key, points in split(hours, band).items()} == {"night": 3, "peak": 2}


@pytest.mark.parametrize(
    ("unit", "expected"), [("day", ["7", "3"]), ("hour", ["2", "7", "3"]), ("week", ["7"]), ("month", ["7"])]
)
def test_a_window_has_its_own_quantity(unit: str, expected: list[str]) -> None:
    points = [Point(START + timedelta(hours=h), D(v)) for h, v in ((30, "2"), (33, "7"), (54, "3"))]
    found = windows(Aggregation.MAX, points, MARCH, unit, "America/New_York")
    assert [each.value for each in found] == [D(each) for each in expected]
    assert sum_of_windows(found) == sum(D(each) for each in expected)


def test_a_daily_window_of_25_hours_is_one() -> None:
    clocks = datetime(2026, 11, 1, 4, tzinfo=UTC)
    points = [
        Point(clocks, D(1)),
        Point(clocks + timedelta(hours=24, minutes=59), D(5)),
        Point(clocks + timedelta(hours=25)),
    ]
    found = windows(Aggregation.SUM, points, Period(clocks, clocks + timedelta(days=3)), "day", "America/New_York")
    assert [(each.value, each.period.seconds) for each in found] == [(6, 25 * 3600), (1, 24 * 3600)]


TIERS = (Tier(D(5), D(10), D(100)), Tier(D(15), D(5), D(50)), Tier(unit=D(2)))


def test_full_units_choose_the_tiers_and_prorated_ones_are_priced() -> None:
    full, part = ("2", "5", "10", "-6", "4", "60"), ("1.4", "2.5", "2", "-2.2", "0.667", "2")
    changes = [Change(D(a), Fraction(b)) for a, b in zip(full, part, strict=True)]
    assert rate_held(TIERS, changes) == Fraction("191.335")
    assert rate_held(TIERS, []) == 0


def test_by_day_the_day_of_a_change_counts() -> None:
    changes = held([at(10, "2")], MARCH, MARCH, carried=D(3), by=ProrationUnit.DAY)
    assert [each.prorated for each in changes] == [3, Fraction(2 * 22, 31)]
    assert prorated_units(changes) == 3 + Fraction(44, 31)


def test_a_thing_that_leaves_is_held_through_its_day() -> None:
    points = [at(10, thing="a"), at(12, thing="a"), at(14, thing="a", removes=True), at(20, thing="b", removes=True)]
    changes = held_things(points, MARCH, MARCH, by=ProrationUnit.DAY)
    assert [each.prorated for each in changes] == [Fraction(22, 31), Fraction(-17, 31)]
    exact = held_things(points, MARCH, MARCH)
    assert prorated_units(exact) == Fraction(4, 31)


def test_paid_in_advance_only_a_new_highest_level_costs() -> None:
    changes = held([at(1, "10"), at(2, "-5"), at(16, "7")], MARCH, MARCH)
    assert [each.units for each in never_less(changes)] == [10, 2]
    assert never_less(changes)[1].prorated == Fraction(2 * 16, 31)


@given(st.lists(st.tuples(st.integers(1, 31), st.integers(-5, 9)), max_size=6))
def test_the_average_level_is_the_weighted_sum(steps: list[tuple[int, int]]) -> None:
    points = [at(day, str(units), key=str(i)) for i, (day, units) in enumerate(steps)]
    assert prorated_units(held(points, MARCH, MARCH, carried=D(4))) == weighted_sum(points, MARCH, MARCH, carried=D(4))
