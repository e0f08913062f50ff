"""Rows as Postgres' binary format wants them, and the series that are known."""

from __future__ import annotations

import struct
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.usage_rows import Series, _numeric
from services import usage_series
from services.usage_series import KnownSeries


def value_of(field: bytes) -> Decimal:
    """What Postgres reads in a binary numeric."""
    size, count, weight, sign, scale = struct.unpack(">ihhHh", field[:12])
    assert size == len(field) - 4
    digits = struct.unpack(f">{count}h", field[12:])
    assert all(0 <= each < 10_000 for each in digits)
    value = sum((Decimal(each) * Decimal(10_000) ** (weight - place) for place, each in enumerate(digits)), Decimal(0))
    assert -value.as_tuple().exponent <= scale + 3 if isinstance(value.as_tuple().exponent, int) else True
    return -value if sign == 0x4000 else value


plain = st.one_of(
    st.integers(-(10**26) + 1, 10**26 - 1).map(str),
    st.integers(0, 20_000).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(10**10), max_value=10**10).map(
        lambda each: format(each, "f")
    ),
)


@given(plain)
def test_every_decimal_is_written_exactly(text: str) -> None:
    assert value_of(_numeric(text)) == Decimal(text)


@pytest.mark.parametrize(
    "text", ["0", "1", "9999", "10000", "99999999", "100000000", "0.5", "-1", "12.000000000001", "9" * 26 + ".5"]
)
def test_edges_of_the_digits(text: str) -> None:
    assert value_of(_numeric(text)) == Decimal(text)


def series(number: int, value: str = "") -> Series:
    return Series("acme", f"c{number}", "calls", ("region",), (value,))


def test_series_are_known_by_their_natural_key() -> None:
    known = KnownSeries()
    known.add({series(1): 11, series(1, "eu"): 12})
    assert known.among([series(1), series(1, "eu"), series(2)]) == {series(1): 11, series(1, "eu"): 12}


def test_the_cache_starts_anew_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_series, "ALL_MAX", 10)
    known = KnownSeries()
    known.add({series(number): number for number in range(1, 11)})
    assert len(known.among([series(number) for number in range(1, 11)])) == 10
    known.add({series(99): 99})
    assert known.among([series(1), series(99)]) == {series(99): 99}
