"""A catalogue file says what it says: prices exact, mistakes with line and field, nothing guessed."""

from __future__ import annotations

import json
import textwrap
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from billing.price import Graduated, Matrix, Volume
from services.catalog_file import BadCatalog, read, to_utc
from services.shapes import plain

AIRPORT = Path(__file__).parents[2] / "examples" / "airport" / "catalog.yaml"

GOOD = """\
tenant:
  id: shop
  name: Shop
  currency: USD
  zone: America/New_York
meters:
  - {key: calls, event_type: call}
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - key: calls
        name: Calls
        meter: calls
        model:
          type: graduated
          tiers:
            - {up_to: 1000, unit: 0.0110}
            - {up_to: 3000, unit: 0.0095}
            - {unit: 0.0080}
coupons:
  - {code: TEN, percent: 10}
customers:
  - {id: acme, name: Acme, coupons: [TEN]}
subscriptions:
  - {id: s1, customer: acme, plan: pro, starts_at: 2013-02-14 00:00}
"""


def faults(text: str) -> list[tuple[int, str, str]]:
    """(line, field, code) of each mistake."""
    with pytest.raises(BadCatalog) as refused:
        read(text.encode())
    return [(line, fault.field, fault.code) for line, fault in refused.value.found]


def test_the_airports_catalogue_is_the_plan_of_the_demonstration() -> None:
    file = read(AIRPORT.read_bytes())
    assert file.tenant is not None
    assert file.price_book is not None
    assert (file.tenant_id, file.tenant.currency, file.tenant.zone) == ("airport", "USD", "America/New_York")
    assert [each.percent for each in file.tenant.taxes] == [Decimal("8.875")]
    assert file.tenant.test_clock == datetime(2013, 1, 1, 5, tzinfo=UTC)
    [plan] = file.price_book.plans
    charges = {each.key: each for each in plan.charges}
    assert list(charges) == ["base_fee", "departures", "miles", "aircraft", "gate"]
    assert plan.minimum_commitment == Decimal(1500)
    departures, miles, gate = (charges[key].model for key in ("departures", "miles", "gate"))
    assert isinstance(departures, Graduated)
    assert [(each.up_to, each.unit) for each in departures.tiers] == [
        (Decimal(1000), Decimal("12.00")),
        (Decimal(3000), Decimal("9.50")),
        (None, Decimal("7.25")),
    ]
    assert isinstance(miles, Volume)
    assert [each.unit for each in miles.tiers] == [Decimal("0.0110"), Decimal("0.0095"), Decimal("0.0080")]
    assert isinstance(gate, Matrix)
    assert {each.values: each.unit for each in gate.cells} == {
        ("EWR",): Decimal("3.10"),
        ("JFK",): Decimal("4.25"),
        ("LGA",): Decimal("5.05"),
    }
    assert len(file.customers) == len(file.subscriptions) == 16
    paying = {each.id: each.payment_method.token for each in file.customers}
    assert [id for id, token in paying.items() if token != "pm_card_visa"] == ["F9"]
    starts = {each.customer: each.starts_at for each in file.subscriptions}
    assert {id: at for id, at in starts.items() if at != datetime(2013, 1, 1)} == {  # noqa: DTZ001  # local times
        "YV": datetime(2013, 2, 14),  # noqa: DTZ001
        "OO": datetime(2013, 3, 10, 12),  # noqa: DTZ001
    }


def test_prices_are_read_exactly_as_they_are_written() -> None:
    file = read(GOOD.replace("0.0110", "0.110000000001").encode())
    assert file.price_book is not None
    model = file.price_book.plans[0].charges[0].model
    assert isinstance(model, Graduated)
    assert str(model.tiers[0].unit) == "0.110000000001"


def test_json_says_the_same_as_yaml() -> None:
    book = read(GOOD.encode()).price_book
    again = {name: value for name, value in plain(book).items() if name != "effective_at"}
    assert read(json.dumps(again, indent="\t").encode()).price_book == book


def test_every_part_of_a_file_may_be_left_out() -> None:
    file = read(b"customers: [{id: acme}]")
    assert (file.tenant, file.price_book, [each.id for each in file.customers]) == (None, None, ["acme"])


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("up_to: 3000", "up_to: 1000", (20, "plans[0].charges[0].model.tiers[1].up_to")),
        ("up_to: 3000", "up_to: 500", (20, "plans[0].charges[0].model.tiers[1].up_to")),
        ("{unit: 0.0080}", "{up_to: 9000, unit: 1}", (21, "plans[0].charges[0].model.tiers[2].up_to")),
        ("0.0095", "-0.0095", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", ".nan", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "NaN", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "1e400", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "0.0000000000001", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "010", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "0,0095", (20, "plans[0].charges[0].model.tiers[1].0095")),
        ("0.0095", "true", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("0.0095", "", (20, "plans[0].charges[0].model.tiers[1].unit")),
        ("meter: calls", "meter: clals", (15, "plans[0].charges[0].meter")),
        ("type: graduated", "type: gradated", (16, "plans[0].charges[0].model")),
        ("          type: graduated\n", "", (16, "plans[0].charges[0].model")),
        ("    currency: USD\n    charges", "    currency: usd\n    charges", (11, "plans[0].currency")),
        ("  currency: USD\n  zone", "  currency: DOL\n  zone", (4, "tenant.currency")),
        ("America/New_York", "America/Gotham", (5, "tenant.zone")),
        ("percent: 10", "percent: 300", (23, "coupons[0].percent")),
        ("percent: 10", "percent: 10, percent: 20", (23, "coupons[0].percent")),
        ("percent: 10", "precent: 10", (23, "coupons[0].precent")),
        ("key: calls, event", "key: 7, event", (7, "meters[0].key")),
        ("coupons: [TEN]", "coupons: [ELEVEN]", (25, "customers[0].coupons[0]")),
        ("plan: pro", "plan: prp", (27, "subscriptions[0].plan")),
        ("2013-02-14 00:00", "2013-02-30 00:00", (27, "subscriptions[0].starts_at")),
        ("2013-02-14 00:00", "2013-03-10 02:30", (27, "subscriptions[0].starts_at")),
        ("2013-02-14 00:00", "2013-11-03 01:30", (27, "subscriptions[0].starts_at")),
        ("{id: acme, name", "{id: '', name", (25, "customers[0].id")),
        ("name: Acme", 'name: "A\\0"', (25, "customers[0].name")),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_field(old: str, new: str, fault: tuple[int, str]) -> None:
    assert GOOD.count(old) == 1
    found = faults(GOOD.replace(old, new))
    assert [(line, field) for line, field, _ in found] == [fault], found


def test_a_misspelt_field_brings_the_name_that_was_meant() -> None:
    with pytest.raises(BadCatalog, match="did you mean 'percent'"):
        read(GOOD.replace("percent", "precent").encode())


def test_every_mistake_is_listed_at_once() -> None:
    text = GOOD.replace("0.0110", "x").replace("event_type", "event_typ").replace("percent: 10", "percent: no")
    assert [line for line, _, _ in faults(text)] == [7, 19, 23]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [1", "malformed"),
        ("a: !!python/object:os.system x", "unexpected_tag"),
        ("- 1\n- 2", "invalid_type"),
        ("a: 1\n---\na: 2", "malformed"),
        ("a: *nowhere", "malformed"),
        ("a: &a [*a]", "too_deep"),
        ("[" * 100 + "]" * 100, "too_deep"),
        ("\ta: 1", "malformed"),
        ("tenant: {id: a}\ntenant: {id: b}", "duplicate_key"),
        ("{a: 1, ? [b] : 2}", "invalid_type"),
    ],
)
def test_what_is_no_catalogue_is_refused(text: str, code: str) -> None:
    assert [fault for _, _, fault in faults(text)] == [code]


def test_an_alias_that_grows_without_end_is_refused() -> None:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert faults("\n".join(lines))[0][2] == "too_large"


def test_bytes_that_are_not_text_are_refused_with_their_line() -> None:
    with pytest.raises(BadCatalog) as refused:
        read(b"tenant:\n  id: \xff\n")
    assert [(line, fault.code) for line, fault in refused.value.found] == [(2, "not_utf8")]


def test_two_customers_with_one_id_are_a_mistake() -> None:
    text = textwrap.dedent("""\
        customers:
          - {id: acme}
          - {id: acme}
    """)
    assert faults(text) == [(3, "customers[1].id", "duplicate")]


def test_a_local_time_is_one_instant() -> None:
    noon = datetime(2013, 3, 10, 12)  # noqa: DTZ001  # on a day of 23 hours
    assert to_utc(noon, "America/New_York") == datetime(2013, 3, 10, 16, tzinfo=UTC)


def test_a_day_alone_is_its_local_midnight() -> None:
    [subscription] = read(GOOD.replace("2013-02-14 00:00", "2013-02-14").encode()).subscriptions
    assert subscription.starts_at == datetime(2013, 2, 14)  # noqa: DTZ001


def test_an_hour_that_comes_twice_is_told_apart_by_its_offset() -> None:
    text = GOOD.replace("2013-02-14 00:00", "2013-11-03T01:30:00-05:00")
    [subscription] = read(text.encode()).subscriptions
    assert subscription.starts_at is not None
    assert to_utc(subscription.starts_at, "America/New_York") == datetime(2013, 11, 3, 6, 30, tzinfo=UTC)


RICH = """\
effective_at: 2013-03-01 00:00
tenant:
  id: shop
  name: Shop
  currency: USD
  zone: America/New_York
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {key: base, name: Base fee, in_advance: true, model: {type: flat, amount: 20.00}}
    prices:
      - {currency: EUR, charges: [{key: base, name: Base fee, in_advance: true, model: {type: flat, amount: 18.00}}]}
    phases:
      - {name: launch, periods: 3, discount_percent: 50}
add_ons:
  - key: seats
    name: Seats
    currency: EUR
    charges:
      - {key: fee, name: Seats, in_advance: true, model: {type: flat, amount: 3.00}}
customers:
  - id: acme
    overrides:
      - {plan: pro, discount_percent: 10}
    jurisdiction: US-NY
    locale: de-DE
subscriptions:
  - {id: s1, customer: acme, plan: pro, currency: EUR, add_ons: [{add_on: seats, quantity: 2}]}
"""


def test_currencies_phases_add_ons_and_own_prices_are_read() -> None:
    file = read(RICH.encode())
    assert file.price_book is not None
    (plan,) = file.price_book.plans
    assert [each.currency for each in plan.prices] == ["EUR"]
    assert plan.phases[0].periods == 3
    assert file.price_book.add_ons[0].key == "seats"
    assert file.customers[0].overrides[0].discount_percent == Decimal(10)
    assert (file.customers[0].jurisdiction, file.customers[0].locale) == ("US-NY", "de-DE")
    assert (file.subscriptions[0].currency, file.subscriptions[0].add_ons[0].quantity) == ("EUR", 2)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("2013-03-01", "2013-02-31", (1, "effective_at")),
        ("{currency: EUR, charges", "{currency: USD, charges", (14, "plans[0].prices[0].currency")),
        ("EUR, charges: [{key: base", "EUR, charges: [{key: bas", (14, "plans[0].prices[0].charges")),
        ("periods: 3", "periods: 0", (16, "plans[0].phases[0].periods")),
        ("discount_percent: 50", "discount_percent: 300", (16, "plans[0].phases[0].discount_percent")),
        ("discount_percent: 50", "discount: 50", (16, "plans[0].phases[0].discount")),
        ("amount: 3.00", "amount: -3.00", (22, "add_ons[0].charges[0].model.amount")),
        ("{plan: pro, d", "{plan: gold, d", (26, "customers[0].overrides[0].plan")),
        ("discount_percent: 10", "discount_percent: 101", (26, "customers[0].overrides[0].discount_percent")),
        ("plan: pro, currency: EUR", "plan: pro, currency: JPY", (30, "subscriptions[0].currency")),
        ("plan: pro, currency: EUR", "plan: pro, currency: USD", (30, "subscriptions[0].add_ons[0].add_on")),
        ("add_on: seats", "add_on: seat", (30, "subscriptions[0].add_ons[0].add_on")),
        ("US-NY", "New York", (27, "customers[0].jurisdiction")),
        ("de-DE", "german", (28, "customers[0].locale")),
        ("quantity: 2", "quantity: 0", (30, "subscriptions[0].add_ons[0].quantity")),
    ],
)  # fmt: skip
def test_a_mistake_in_them_is_named_with_its_line_and_field(old: str, new: str, fault: tuple[int, str]) -> None:
    assert RICH.count(old) == 1
    found = faults(RICH.replace(old, new))
    assert [(line, field) for line, field, _ in found] == [fault], found
