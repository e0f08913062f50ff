"""The same mistake through every door without a server: refused by the field's path with what is allowed, or exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.aggregation import Point, measure
from billing.errors import CurrencyMismatch, Rejected
from billing.metering import Aggregation, Meter, UsageEvent, check_event, readings
from billing.money import Money
from billing.period import Alignment, Cadence, Period, check_cadence
from billing.tenant import UsageBounds
from services.catalog_file import BadCatalog, read
from services.cli import main
from tests.cli.mistakes import BOOK, CHARGE, FORTY_DIGITS, MISTAKES, Mistake

Run = Callable[..., tuple[int, str, str]]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
GIGABYTES = Meter(key="gb", event_type="stored", aggregation=Aggregation.SUM, value="gb")


@pytest.fixture
def tallybook(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def line_of(text: str, mistake: Mistake) -> int:
    """Where the value, or the object that it belongs to, stands."""
    value = (
        json.dumps(mistake.value) if isinstance(mistake.value, str) else f'"currency": "{mistake.value["currency"]}"'
    )
    return next(number for number, line in enumerate(text.splitlines(), 1) if value in line)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.name)
def test_a_catalogue_names_file_line_and_field(mistake: Mistake, tallybook: Run, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(json.dumps(mistake.book(), indent=1))
    with pytest.raises(BadCatalog) as refused:
        read(path.read_bytes())
    [(line, fault)] = refused.value.found
    assert fault.field.startswith(mistake.field)
    assert (line, fault.code) == (line_of(path.read_text(), mistake), mistake.code)
    assert mistake.allowed in fault.detail
    priced = ("price", "--catalog", path, "--plan", "pro", "--charge", "calls", "-q", "1")
    code, _, err = tallybook(*priced)
    assert (code, err.partition(" ")[0]) == (1, f"{path}:{line}:")
    assert fault.field in err


@pytest.mark.parametrize(
    ("terms", "code", "allowed"),
    [
        ({"ends_at": "2026-01-31"}, "end_before_start", "any later time"),
        ({"billing_day": 31}, "unexpected", "calendar's first day"),
        ({"currency": "EUR"}, "currency_mismatch", "USD"),
        ({"zone": "Mars/Olympus"}, "unknown_zone", "IANA zone"),
    ],
)
def test_terms_of_a_catalogue_that_do_not_fit_the_plan_name_line_and_field(
    terms: dict[str, Any], code: str, allowed: str
) -> None:
    wish = {"id": "s1", "customer": "c1", "plan": "pro", "starts_at": "2026-02-01", **terms}
    text = json.dumps({**BOOK, "customers": [{"id": "c1"}], "subscriptions": [wish]}, indent=1)
    with pytest.raises(BadCatalog) as refused:
        read(text.encode())
    [(line, fault)] = refused.value.found
    [name] = terms
    where = next(
        number for number, each in enumerate(text.splitlines(), 1) if f'"{name}": {json.dumps(terms[name])}' in each
    )
    assert (line, fault.field, fault.code) == (where, f"subscriptions[0].{name}", code)
    assert allowed in fault.detail


OF_A_CHARGE = [each for each in MISTAKES if each.field.startswith(CHARGE) and each.name != "an unknown meter"]


@pytest.mark.parametrize("mistake", OF_A_CHARGE, ids=lambda each: each.name)
def test_a_price_names_file_line_and_field(mistake: Mistake, tallybook: Run, tmp_path: Path) -> None:
    field = mistake.field.replace(CHARGE, "charge")
    request: dict[str, Any] = {"charge": mistake.book()["plans"][0]["charges"][0], "quantity": "5"}
    path = tmp_path / "request.yaml"
    path.write_text(json.dumps(request, indent=1))
    code, _, err = tallybook("price", path)
    assert code == 1
    assert err.startswith(f"{path}:{line_of(path.read_text(), mistake)}: {field}: ")
    assert mistake.allowed in err
    code, out, _ = tallybook("price", "--charge", json.dumps(request["charge"]), "-q", "5", "--json")
    assert (code, [(each["field"], each["code"]) for each in json.loads(out)["faults"]]) == (1, [(field, mistake.code)])


@pytest.mark.parametrize(
    ("quantity", "code"),
    [("NaN", "not_finite"), ("Infinity", "not_finite"), ("1e400", "invalid_decimal"), ("9" * 101, "invalid_decimal")],
)
def test_a_quantity_that_is_none_is_refused(tallybook: Run, quantity: str, code: str) -> None:
    charge = "{model: {type: per_unit, unit: 1}}"
    for words in (("-q", quantity), ("--transaction", quantity)):
        exit_code, out, _ = tallybook("price", "--charge", charge, *words, "--json")
        assert (exit_code, json.loads(out)["faults"][0]["code"]) == (1, code)


def test_forty_digits_are_priced_exactly(tallybook: Run) -> None:
    quantity = f"{FORTY_DIGITS}.{FORTY_DIGITS}"
    tiers = "{model: {type: graduated, tiers: [{up_to: 10, unit: 1}, {unit: 0.000000000001}]}}"
    code, out, _ = tallybook("price", "--charge", tiers, "-q", quantity, "--json")
    # 10 + (quantity - 10) / 10^12, by whole numbers only
    whole, rest = divmod(10 * 10**52 + int(quantity.replace(".", "")) - 10 * 10**40, 10**52)
    assert (code, json.loads(out)["exact"]) == (0, f"{whole}.{rest:052}")
    assert json.loads(out)["quantity"] == quantity


@pytest.mark.parametrize(
    ("value", "code"),
    [("NaN", "invalid_decimal"), ("1e400", "invalid_decimal"), (FORTY_DIGITS, "out_of_range"), ("-1", "out_of_range")],
)
def test_usage_names_the_property(value: str, code: str) -> None:
    event = UsageEvent(id="1", source="s", type="stored", customer="c", time=NOW, properties={"gb": value})
    with pytest.raises(Rejected) as refused:
        readings(event, [GIGABYTES])
    assert (refused.value.field, refused.value.code) == ("properties.gb", code)


def test_usage_of_an_unknown_meter_is_refused_with_those_that_exist() -> None:
    event = UsageEvent(id="1", source="s", type="sotred", customer="c", time=NOW, properties={})
    check_event(event, UsageBounds(), NOW)
    with pytest.raises(Rejected, match="known: stored") as refused:
        readings(event, [GIGABYTES])
    assert (refused.value.field, refused.value.code) == ("type", "unknown_meter")


def test_forty_digits_are_measured_exactly() -> None:
    points = [Point(NOW, Decimal(FORTY_DIGITS), key=str(n)) for n in range(3)]
    july = Period(NOW, datetime(2026, 4, 1, tzinfo=UTC))
    assert measure(Aggregation.SUM, points, july) == 3 * int(FORTY_DIGITS)


def test_an_anchor_of_31_in_a_calendar_plan_is_refused() -> None:
    with pytest.raises(Rejected, match="calendar's first day") as refused:
        check_cadence(Cadence("UTC", datetime(2026, 1, 31), "P1M", Alignment.CALENDAR, day=31), "plan")  # noqa: DTZ001
    assert (refused.value.field, refused.value.code) == ("plan.day", "unexpected")


def test_an_end_before_a_start_is_refused() -> None:
    with pytest.raises(Rejected, match="allowed is the start or later") as refused:
        Period.between(NOW, datetime(2026, 2, 1, tzinfo=UTC), "period")
    assert (refused.value.field, refused.value.code) == ("period", "end_before_start")


def test_currencies_do_not_mix() -> None:
    with pytest.raises(CurrencyMismatch, match="USD and EUR do not mix"):
        Money(1, "USD") + Money(1, "EUR")
