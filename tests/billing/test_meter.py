"""What a meter may be: each mistake is refused by its field."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from billing.errors import Rejected
from billing.meter import CARRYING, WINDOWED, Band, TimeOfDay, WindowUnit, check_meter
from billing.metering import Aggregation, Filter, Meter

GONE = Filter(property="operation", values=("remove",))


def meter(aggregation: str, **fields: Any) -> Meter:
    value = None if aggregation == "count" else "n"
    return Meter(key="m", event_type="e", aggregation=Aggregation(aggregation), value=value, **fields)


def bands(*hours: int, name: str = "day", dimension: str = "tariff") -> TimeOfDay:
    return TimeOfDay(dimension=dimension, bands=tuple(Band(begins=hour, name=name) for hour in hours))


@pytest.mark.parametrize(
    ("made", "code", "field"),
    [
        (meter("percentile"), "missing", "percent"),
        (meter("percentile", percent=Decimal(0)), "out_of_range", "percent"),
        (meter("percentile", percent=Decimal("100.1")), "out_of_range", "percent"),
        (meter("percentile", percent=Decimal("NaN")), "not_a_number", "percent"),
        (meter("sum", percent=Decimal(95)), "unexpected", "percent"),
        (meter("count", carries_over=True), "unexpected", "carries_over"),
        (meter("average", carries_over=True), "unexpected", "carries_over"),
        (meter("sum", removal=GONE), "unexpected", "removal"),
        (meter("unique", removal=Filter(property="", values=("x",))), "missing", "removal.property"),
        (meter("unique", removal=Filter(property="x", values=())), "missing", "removal.values"),
        (meter("count", window=WindowUnit.DAY), "unexpected", "window"),
        (meter("latest", carries_over=True, window=WindowUnit.DAY), "unexpected", "window"),
        (meter("unique", removal=GONE, window=WindowUnit.DAY), "unexpected", "window"),
        (meter("max", zone="Europe/Berlln"), "unknown_timezone", "zone"),
        (meter("count", time_of_day=bands(1)), "unknown_dimension", "time_of_day.dimension"),
        (meter("count", dimensions=("tariff",), time_of_day=bands()), "missing", "time_of_day.bands"),
        (meter("count", dimensions=("tariff",), time_of_day=bands(24)), "out_of_range", "time_of_day.bands[0].begins"),
        (
            meter("count", dimensions=("tariff",), time_of_day=bands(7, 7)),
            "out_of_range",
            "time_of_day.bands[1].begins",
        ),
        (meter("count", dimensions=("tariff",), time_of_day=bands(7, name="")), "missing", "time_of_day.bands[0].name"),
    ],
)
def test_a_meter_that_could_not_measure_is_refused_by_its_field(made: Meter, code: str, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_meter(made, "meters[0]")
    assert (refused.value.code, refused.value.field) == (code, f"meters[0].{field}")


@pytest.mark.parametrize("aggregation", CARRYING)
def test_a_level_may_carry_over(aggregation: Aggregation) -> None:
    made = meter(aggregation, carries_over=True)
    check_meter(made, "meter")
    assert made.signed == (aggregation in (Aggregation.SUM, Aggregation.WEIGHTED_SUM))
    assert made.is_level == (aggregation is not Aggregation.WEIGHTED_SUM)


@pytest.mark.parametrize("unit", WindowUnit)
@pytest.mark.parametrize("aggregation", WINDOWED)
def test_what_has_a_peak_may_be_taken_by_windows(aggregation: Aggregation, unit: WindowUnit) -> None:
    percent = Decimal(95) if aggregation is Aggregation.PERCENTILE else None
    check_meter(meter(aggregation, window=unit, zone="Asia/Kolkata", percent=percent), "meter")


def test_without_anything_new_a_meter_is_what_it_was() -> None:
    plain = meter("sum")
    assert not plain.signed
    assert not plain.is_level
    assert not meter("unique").is_level
