"""What cannot be rated is refused where it stands, with what is allowed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from billing.errors import Rejected
from billing.price import (
    Blocks,
    BlockTier,
    Capacity,
    CapacityLimit,
    CapacityTier,
    Cell,
    Charge,
    Commitment,
    Committed,
    Conversion,
    Dynamic,
    Flat,
    Graduated,
    GraduatedPercentage,
    Matrix,
    Package,
    Percentage,
    PercentageTier,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Stairstep,
    Tier,
    Volume,
)
from billing.price_check import check
from tests.billing.charges import charge

D = Decimal
PATH = "plans[0].charges[2]"
OPEN = Tier(unit=D(1))


@pytest.mark.parametrize(
    "model",
    [
        Flat(D("500.00")),
        PerUnit(D(0)),
        PerUnit(D("0.000000000001")),
        PerUnit(D("99999999999999999999999999.999999999999")),
        PerUnit(D("12.000000000000000000000")),  # idle zeros are no digits
        Graduated((Tier(D("0.5"), D(1)), OPEN)),
        Volume((OPEN,)),
        Stairstep((Tier(D(1), flat=D(3)), Tier(flat=D(5)))),
        Package(D("0.5"), D(1)),
        Blocks((BlockTier(D(1), 1, D(1)), BlockTier(D(2), 5, D(1)))),
        Percentage(D(100), D("0.30"), free_transactions=0),
        Percentage(D("2.9"), free_transactions=1),
        GraduatedPercentage((PercentageTier(D(100), D(5)), PercentageTier())),
        Matrix(("a", "b"), (Cell(("x", "y"), D(1)), Cell(("x", "z"), D(1)))),
        Dynamic(),
        Committed(D(1), D(1), D(1)),
        Capacity(("kind",), (CapacityTier((CapacityLimit("x", D(1)),), D(1)),)),
    ],
)
def test_every_model_can_be_published(model: PriceModel) -> None:
    check(charge(model), PATH)


@pytest.mark.parametrize(
    ("model", "field", "code"),
    [
        (Graduated(()), "tiers", "missing"),
        (Graduated((Tier(D(10)), Tier(D(5)), OPEN)), "tiers[1].up_to", "overlapping_tiers"),
        (Graduated((Tier(D(10)), Tier(D(10)), OPEN)), "tiers[1].up_to", "overlapping_tiers"),
        (Volume((Tier(D(0)), OPEN)), "tiers[0].up_to", "overlapping_tiers"),
        (Volume((Tier(D(10)), Tier(D(20)), Tier(D(30)))), "tiers[2].up_to", "gap_in_tiers"),
        (Stairstep((Tier(D(10)),)), "tiers[0].up_to", "gap_in_tiers"),
        (Package(D("NaN"), D(1)), "size", "not_a_number"),
        (Percentage(D(-1)), "percent", "out_of_range"),
        (Matrix(("a", "b"), (Cell(("x",), D(1)),)), "cells[0].values", "wrong_length"),
        (Volume((Tier(D(10)), OPEN, Tier(D(20)), OPEN)), "tiers[1].up_to", "open_tier"),
        (Graduated((Tier(D(-1)), OPEN)), "tiers[0].up_to", "out_of_range"),
        (Graduated((Tier(D("NaN")), OPEN)), "tiers[0].up_to", "not_a_number"),
        (Graduated((Tier(D(1), D(-1)), OPEN)), "tiers[0].unit", "out_of_range"),
        (Graduated((Tier(D(1), flat=D(-1)), OPEN)), "tiers[0].flat", "out_of_range"),
        (Graduated((Tier(D(1), cap=D(-1)), OPEN)), "tiers[0].cap", "out_of_range"),
        (Stairstep((Tier(D(1), D(1)), Tier(flat=D(5)))), "tiers[0].unit", "unexpected"),
        (GraduatedPercentage((PercentageTier(None, D(101)),)), "tiers[0].percent", "out_of_range"),
        (GraduatedPercentage((PercentageTier(None, D(1), D(-1)),)), "tiers[0].flat", "out_of_range"),
        (
            GraduatedPercentage((PercentageTier(D(1)), PercentageTier(D(1)), PercentageTier())),
            "tiers[1].up_to",
            "overlapping_tiers",
        ),
        (PerUnit(D(-1)), "unit", "out_of_range"),
        (PerUnit(D("NaN")), "unit", "not_a_number"),
        (PerUnit(D("Infinity")), "unit", "not_a_number"),
        (PerUnit(D("1e400")), "unit", "out_of_range"),
        (PerUnit(D("1e26")), "unit", "out_of_range"),
        (PerUnit(D("0.0000000000001")), "unit", "out_of_range"),
        (Flat(D(-5)), "amount", "out_of_range"),
        (Package(D(0), D(1)), "size", "out_of_range"),
        (Package(D(1), D(-1)), "price", "out_of_range"),
        (Package(D(1), D(1), QuantityRounding.HALF_UP), "rounding", "unexpected"),
        (Blocks(()), "tiers", "missing"),
        (Blocks((BlockTier(D(1), None), BlockTier(D(1), 1))), "tiers[0].count", "open_tier"),
        (Blocks((BlockTier(D(1), 0),)), "tiers[0].count", "out_of_range"),
        (Blocks((BlockTier(D(0), 1),)), "tiers[0].size", "out_of_range"),
        (Blocks((BlockTier(D(1), 1, D(-1)),)), "tiers[0].price", "out_of_range"),
        (Percentage(D(300)), "percent", "out_of_range"),
        (Percentage(D(1), D(-1)), "fixed", "out_of_range"),
        (Percentage(D(1), free_transactions=-1), "free_transactions", "out_of_range"),
        (Percentage(D(1), free_amount=D(-1)), "free_amount", "out_of_range"),
        (Percentage(D(1), minimum=D("NaN")), "minimum", "not_a_number"),
        (Percentage(D(1), maximum=D(-1)), "maximum", "out_of_range"),
        (Matrix((), ()), "dimensions", "missing"),
        (Matrix(("a", "a"), ()), "dimensions", "duplicate"),
        (Matrix(("a",), (Cell(("x", "y"), D(1)),)), "cells[0].values", "wrong_length"),
        (Matrix(("a",), (Cell(("x",), D(1)), Cell(("x",), D(2)))), "cells[1].values", "duplicate"),
        (Matrix(("a",), (Cell(("x",), D(-1)),)), "cells[0].unit", "out_of_range"),
        (Matrix(("a",), (), D(-1)), "default", "out_of_range"),
        (Dynamic(D(0)), "multiplier", "out_of_range"),
        (Committed(D(-1), D(1), D(1)), "included", "out_of_range"),
        (Committed(D(1), D(-1), D(1)), "fee", "out_of_range"),
        (Committed(D(1), D(1), D(-1)), "overage", "out_of_range"),
        (Capacity(("a", "b"), (CapacityTier(),)), "dimensions", "wrong_length"),
        (Capacity(("a",), ()), "tiers", "missing"),
        (Capacity(("a",), (CapacityTier(price=D(-1)),)), "tiers[0].price", "out_of_range"),
        (Capacity(("a",), (CapacityTier((CapacityLimit("x", D(-1)),)),)), "tiers[0].limits[0].up_to", "out_of_range"),
    ],
)
def test_a_wrong_model_is_refused_by_its_path(model: PriceModel, field: str, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        check(charge(model), PATH)
    assert (refused.value.field, refused.value.code) == (f"{PATH}.model.{field}", code)
    assert refused.value.detail


@pytest.mark.parametrize(
    ("wrong", "field", "code"),
    [
        (charge(PerUnit(D(1)), key=""), "key", "missing"),
        (charge(PerUnit(D(1)), meter=None), "meter", "missing"),
        (charge(Flat(D(1)), meter="calls"), "meter", "unexpected"),
        (charge(PerUnit(D(1)), in_advance=True), "in_advance", "unexpected"),
        (charge(PerUnit(D(1)), maximum=D(-1)), "maximum", "out_of_range"),
        (charge(PerUnit(D(1)), maximum=D(1), minimum=D(2)), "maximum", "out_of_range"),
        (charge(PerUnit(D(1)), minimum=D("NaN")), "minimum", "not_a_number"),
        (charge(PerUnit(D(1)), discount_percent=D(300)), "discount_percent", "out_of_range"),
        (charge(PerUnit(D(1)), free_units=D(-1)), "free_units", "out_of_range"),
        (charge(Dynamic(), free_units=D(1)), "free_units", "unexpected"),
        (charge(Matrix(("a",), ()), split_by=("a",)), "split_by", "unexpected"),
        (charge(Dynamic(), conversion=Conversion(D(2))), "conversion", "unexpected"),
        (charge(PerUnit(D(1)), conversion=Conversion(D(0))), "conversion.factor", "out_of_range"),
        (charge(PerUnit(D(1)), conversion=Conversion(D(1), precision=13)), "conversion.precision", "out_of_range"),
        (charge(PerUnit(D(1)), commitment=Commitment()), "commitment.quantity", "missing"),
        (charge(PerUnit(D(1)), commitment=Commitment(D(1), D(1))), "commitment.quantity", "missing"),
        (charge(PerUnit(D(1)), commitment=Commitment(D(-1))), "commitment.quantity", "out_of_range"),
        (
            charge(PerUnit(D(1)), commitment=Commitment(D(1), overage_factor=D(0))),
            "commitment.overage_factor",
            "out_of_range",
        ),
        (charge(Percentage(D(1)), commitment=Commitment(D(1))), "commitment", "unexpected"),
    ],
)
def test_a_wrong_charge_is_refused_by_its_path(wrong: Charge, field: str, code: str) -> None:
    with pytest.raises(Rejected) as refused:
        check(wrong, PATH)
    assert (refused.value.field, refused.value.code) == (f"{PATH}.{field}", code)


def test_a_conversion_may_keep_as_many_decimals_as_the_log() -> None:
    check(charge(PerUnit(D(1)), conversion=Conversion(D(1), precision=12)), PATH)


def test_a_charge_may_always_cost_the_same() -> None:
    check(charge(PerUnit(D(1)), maximum=D(2), minimum=D(2)), PATH)


def test_every_refusal_reads_as_it_is_written_down() -> None:
    """`refusals.txt` is what people read; its diff is what a reviewer reviews."""
    written = Path(__file__).with_name("refusals.txt")
    marks = [
        *test_a_wrong_model_is_refused_by_its_path.pytestmark,
        *test_a_wrong_charge_is_refused_by_its_path.pytestmark,
    ]
    said: list[str] = []
    for mark in marks:
        for each in mark.args[1]:
            wrong = each[0] if isinstance(each[0], Charge) else charge(each[0])
            with pytest.raises(Rejected) as refused:
                check(wrong, "charge")
            said.append(f"{refused.value}\n")
    assert "".join(said) == written.read_text(encoding="utf-8")


def test_dimensions_are_those_of_the_model_or_of_the_split() -> None:
    assert charge(Matrix(("a",), ())).dimensions == ("a",)
    assert charge(Capacity(("b",), (CapacityTier(),))).dimensions == ("b",)
    assert charge(PerUnit(D(1)), split_by=("c",)).dimensions == ("c",)
    assert charge(PerUnit(D(1))).dimensions == ()
