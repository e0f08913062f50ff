"""Values between dataclasses and Avro: what goes in comes out, and what would be stored wrong is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any, NewType
from zoneinfo import ZoneInfo

import pytest

from schemas.binary import parsed, read, write
from schemas.declaration import schema_of
from schemas.errors import EncodeError, InvalidValue
from schemas.mapping import converter

NAMESPACE = "tallybook.tests"
OrderId = NewType("OrderId", str)


class Colour(StrEnum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount."""

    minor: int
    """Minor units."""
    currency: str = "USD"
    """ISO 4217 code."""

    def __post_init__(self) -> None:
        assert self.currency.isupper(), "a currency is upper case"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A flat price."""

    price: Decimal
    """Price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiered:
    """A tiered price."""

    bounds: tuple[Decimal, ...]
    """Upper bounds."""
    then: Tiered | None = None
    """What follows; null for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Everything a message may hold."""

    id: OrderId
    """Its id."""
    amount: Amount
    """What it costs."""
    price: Flat | Tiered
    """How it is priced."""
    discount: Flat | Tiered | None = None
    """Another; null for none."""
    at: datetime
    """When."""
    on: date | None = None
    """Which day; null for none."""
    quantity: Decimal = Decimal("1.5")
    """How much."""
    colour: Colour = Colour.RED
    """Which colour."""
    lines: tuple[Amount, ...] = ()
    """Its lines."""
    prices: tuple[Flat | Tiered, ...] = ()
    """Further prices."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels."""
    rates: Mapping[str, Decimal] = field(default_factory=dict)
    """Rates."""
    tags: tuple[str, ...] | None = None
    """Tags; null for unknown."""
    open: bool = True
    """Whether it is open."""
    hash: bytes = b"\x00\xff"
    """A hash."""
    standard: Amount = Amount(5, "EUR")
    """An amount by default."""


ORDER: dict[str, Any] = {
    "id": OrderId("o-1"),
    "amount": Amount(100),
    "price": Flat(price=Decimal("0.005")),
    "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
}
FULL = Order(
    **ORDER,
    discount=Tiered(bounds=(Decimal(1), Decimal("-2.5")), then=Tiered(bounds=())),
    on=date(2024, 2, 29),
    colour=Colour.BLUE,
    lines=(Amount(1), Amount(-2, "JPY")),
    prices=(Tiered(bounds=()), Flat(price=Decimal(0))),
    labels={"a": "ä"},
    rates={"x": Decimal("12345678901234567890123456.123456789012")},
    tags=("p", "q"),
    open=False,
)


def of(cls: type) -> Any:
    return converter(cls, NAMESPACE)


def through_avro(value: Any) -> Any:
    cls = type(value)
    schema = parsed(schema_of(cls, NAMESPACE))
    return of(cls).decode(read(schema, write(schema, of(cls).encode(value))))


@pytest.mark.parametrize("order", [Order(**ORDER), FULL], ids=["defaults", "full"])
def test_what_goes_in_comes_out(order: Order) -> None:
    assert through_avro(order) == order


def test_a_union_of_records_names_its_branch() -> None:
    raw = of(Order).encode(FULL)
    assert raw["price"] == ("tallybook.tests.Flat", {"price": (5 * 10**9).to_bytes(5, "big")})


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("1000", "1000"),
        ("1E+3", "1000"),
        ("1.500000000000", "1.5"),
        ("0.000000000001", "0.000000000001"),
        ("-99999999999999999999999999.999999999999", "-99999999999999999999999999.999999999999"),
        ("-1.28", "-1.28"),
        ("1.50000000000000000000", "1.5"),
    ],
)
def test_a_decimal_comes_back_in_its_shortest_form(text: str, back: str) -> None:
    decimal = of(Flat)
    assert f"{decimal.decode(decimal.encode(Flat(price=Decimal(text)))).price:f}" == back


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({"quantity": 1.5}, "quantity", "float where a Decimal belongs"),
        ({"quantity": 1}, "quantity", "int where a Decimal belongs"),
        ({"quantity": Decimal("0.0000000000001")}, "quantity", "more than 12 decimals"),
        ({"quantity": Decimal(10) ** 26}, "quantity", "more than 26 digits before the point"),
        ({"quantity": Decimal("1E+999999")}, "quantity", "more than 26 digits before the point"),
        ({"quantity": Decimal("1E-999999")}, "quantity", "more than 12 decimals"),
        ({"quantity": Decimal("1." + "1" * 70)}, "quantity", "more than"),
        ({"quantity": Decimal("NaN")}, "quantity", "NaN is not a number"),
        ({"quantity": Decimal("sNaN")}, "quantity", "sNaN is not a number"),
        ({"quantity": Decimal("-Infinity")}, "quantity", "-Infinity is not a number"),
        ({"amount": Amount(2**63)}, "amount.minor", "does not fit 64 bits"),
        ({"amount": Amount(-(2**63) - 1)}, "amount.minor", "does not fit 64 bits"),
        ({"amount": Amount(True)}, "amount.minor", "bool where an integer belongs"),
        ({"amount": Amount(1.9)}, "amount.minor", "float where an integer belongs"),  # type: ignore[arg-type]
        ({"amount": {"minor": 1, "currency": "USD", "extra": 1}}, "amount", "dict where Amount belongs"),
        ({"amount": None}, "amount", "NoneType where Amount belongs"),
        ({"lines": (Amount(1), Amount("2"))}, "lines[1].minor", "str where an integer belongs"),  # type: ignore[arg-type]
        ({"lines": [Amount(1)]}, "lines", "list where a tuple belongs"),
        ({"price": Amount(1)}, "price", "Amount where Flat or Tiered belongs"),
        ({"prices": (Flat(price=Decimal("NaN")),)}, "prices[0].price", "NaN is not a number"),
        ({"at": datetime(2026, 1, 1)}, "at", "has no zone"),  # noqa: DTZ001  # the mistake itself
        ({"at": datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "at", "is not in UTC"),
        ({"at": datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/London"))}, "at", "is not in UTC"),
        ({"at": date(2026, 1, 1)}, "at", "date where a datetime belongs"),
        ({"on": datetime(2026, 1, 1, tzinfo=UTC)}, "on", "datetime where a date belongs"),
        ({"colour": "red"}, "colour", "str where a member of Colour belongs"),
        ({"labels": {"k": 5}}, "labels['k']", "int where a string belongs"),
        ({"labels": {5: "k"}}, "labels[5]", "int where a string belongs"),
        ({"rates": {"k": 0.5}}, "rates['k']", "float where a Decimal belongs"),
        ({"id": "\ud800"}, "id", "a lone surrogate"),
        ({"id": b"o-1"}, "id", "bytes where a string belongs"),
        ({"open": 1}, "open", "int where true or false belongs"),
        ({"hash": "ab"}, "hash", "str where bytes belongs"),
        ({"tags": ("a", 1)}, "tags[1]", "int where a string belongs"),
    ],
)
def test_a_value_that_would_be_stored_wrong_is_refused_by_path(changes: Any, path: str, reason: str) -> None:
    with pytest.raises(EncodeError) as refused:
        of(Order).encode(Order(**{**ORDER, **changes}))
    assert refused.value.path == path
    assert reason in refused.value.reason


def test_a_utc_instant_may_name_utc_in_any_way() -> None:
    order = Order(**{**ORDER, "at": datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))})
    assert of(Order).decode(of(Order).encode(order)).at == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"at": 2**62}, "at"),
        ({"on": 2**40}, "on"),
        ({"quantity": (10**38).to_bytes(17, "big")}, "quantity"),
        ({"lines": [{"minor": 1, "currency": "usd"}]}, "lines[0]"),
    ],
)
def test_a_recorded_value_that_the_class_refuses_is_named_by_path(change: dict[str, Any], path: str) -> None:
    schema = parsed(schema_of(Order, NAMESPACE))
    raw = {**read(schema, write(schema, of(Order).encode(FULL))), **change}
    with pytest.raises(InvalidValue) as refused:
        of(Order).decode(raw)
    assert refused.value.path == path


def test_the_schema_says_what_the_dataclass_says() -> None:
    schema = schema_of(Order, NAMESPACE)
    assert schema["doc"] == "Everything a message may hold."
    by_name = {each["name"]: each for each in schema["fields"]}
    assert by_name["at"] == {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "doc": "When."}
    assert by_name["on"]["type"] == ["null", {"type": "int", "logicalType": "date"}]
    assert by_name["on"]["default"] is None
    assert by_name["hash"]["default"] == "\x00\xff"
    assert by_name["lines"] == {
        "name": "lines",
        "type": {"type": "array", "items": "Amount"},
        "default": [],
        "doc": "Its lines.",
    }
    assert by_name["colour"]["default"] == "red"
    assert by_name["colour"]["type"]["symbols"] == ["red", "blue"]
    assert by_name["standard"]["default"] == {"minor": 5, "currency": "EUR"}
    assert [each if isinstance(each, str) else each["name"] for each in by_name["discount"]["type"]] == [
        "null",
        "Flat",
        "Tiered",
    ]


def test_a_field_that_nobody_explained_cannot_be_released() -> None:
    @dataclass(frozen=True)
    class Silent:
        """Says little."""

        value: int

    with pytest.raises(TypeError, match=r"Silent\.value has no string literal"):
        schema_of(Silent, NAMESPACE)


@pytest.mark.parametrize("hint", [float, dict[int, str], list[str], str | int, object, set[str]])
def test_a_type_without_an_agreed_form_is_refused_when_declared(hint: Any) -> None:
    with pytest.raises(TypeError):
        converter(hint, NAMESPACE)
