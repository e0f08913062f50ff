"""A scenario that cannot be read names file, line and field, and says what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.scenario.run import run
from services.scenario.text import BadScenario

GOOD = """\
A title

catalogue:
  meters: [{key: calls, event_type: api.call}]
  plans:
    - key: pro
      name: Pro
      currency: USD
      charges: [{key: calls, name: Calls, meter: calls, model: {type: per_unit, unit: 0.10}}]

2026-01-01  subscribe  acme pro
2026-02-01  clock
"""
SUBSCRIBE = "2026-01-01  subscribe  acme pro"
MODEL = "model: {type: per_unit, unit: 0.10}"


def faults(tmp_path: Path, text: str) -> list[tuple[str, int, str, str]]:
    path = tmp_path / "bad.scenario"
    path.write_text(text)
    with pytest.raises(BadScenario) as caught:
        run(path)
    return [(where.name, line, fault.field, fault.code) for where, line, fault in caught.value.found]


@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        ("2026-01-01  subcribe acme pro", "verb", "unknown_verb"),
        ("2026-01-01", "verb", "missing_field"),
        ("01.02.2026  clock", "time", "invalid_time"),
        ("2026-02-30  clock", "time", "invalid_time"),
        ("2026-01-01 25:00  clock", "time", "invalid_time"),
        ("2026-01-01  subscribe  acme", "subscribe.plan", "missing_field"),
        ("2026-01-01  subscribe  acme pro now", "subscribe", "unexpected"),
        ("2026-01-01  subscribe  acme pro from soon", "subscribe.from", "invalid_time"),
        ("2026-01-01  usage  acme", "usage.type", "missing_field"),
        ("2026-01-01  usage  acme api.call x many", "usage.x", "out_of_range"),
        ("2026-01-01  usage  acme api.call x 0", "usage.x", "out_of_range"),
        ("2026-01-01  usage  acme api.call x 100,001", "usage.x", "out_of_range"),
        ("2026-01-01  usage  acme api.call x 1,00", "usage.x", "out_of_range"),
        ("2026-01-01  usage  acme api.call user=u[1..25] x 100,000", "usage.x", "out_of_range"),
        ("2026-01-01  usage  acme api.call user=u[25..1]", "usage.user", "out_of_range"),
        ("2026-01-01  usage  acme api.call a=[1..2] b=[1..2]", "usage.b", "unexpected"),
        ("2026-01-01  usage  acme api.call a=1 a=2", "usage.a", "duplicate"),
        ("2026-01-01  usage  acme api.call id=e-1 x 2", "usage.id", "unexpected"),
        ("2026-01-01  void", "void.id", "missing_field"),
        ("2026-01-01  void  e-1 at once", "void", "unexpected"),
        ("2026-01-01  amend  acme api.call region=us", "amend.id", "missing_field"),
        ("2026-01-01  amend  acme api.call id=e-1 x 2", "amend.id", "unexpected"),
        ("2026-01-01  usage  acme 'api.call", "", "malformed"),
        ("2026-01-01  cancel  acme at noon", "cancel.at", "unexpected"),
        ("2026-01-01  redeem  acme", "redeem.coupon", "missing_field"),
        ("2026-01-01  subscribe  acme pro in", "subscribe.in", "missing_field"),
        ("2026-01-01  subscribe  acme pro day 1.5", "subscribe.day", "out_of_range"),
        ("2026-01-01  subscribe  acme pro with seat x none", "subscribe.x", "out_of_range"),
        ("2026-01-01  change  acme", "change.plan", "missing_field"),
        ("2026-01-01  change  acme gold at noon", "change.at", "unexpected"),
        ("2026-01-01  migrate", "migrate.subscription", "missing_field"),
        ("2026-01-01  migrate  acme pro", "migrate", "unexpected"),
        ("2026-01-01  add  acme seat x 0", "add.x", "out_of_range"),
        ("2026-01-01  remove  acme", "remove.add_on", "missing_field"),
        ("2026-01-01  override  acme", "override.plan", "missing_field"),
        ("2026-01-01  publish  missing.yaml", "publish", "unreadable"),
    ],
)
def test_a_line_of_the_timeline_is_named(tmp_path: Path, line: str, field: str, code: str) -> None:
    assert faults(tmp_path, GOOD.replace(SUBSCRIBE, line)) == [("bad.scenario", 11, field, code)]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    text = GOOD.replace(SUBSCRIBE, "2026-01-01  subcribe  acme pro\n2026-01-02  usage acme")
    assert [line for _, line, _, _ in faults(tmp_path, text)] == [11, 12]


@pytest.mark.parametrize(
    ("model", "line", "field", "code"),
    [
        ("model: {type: per_unit, unit: -1}", 9, "plans[0].charges[0].model.unit", "out_of_range"),
        ("model: {type: per_unit, unit: NaN}", 9, "plans[0].charges[0].model.unit", "not_finite"),
        ("model: {type: per_unit, unit: 1e400}", 9, "plans[0].charges[0].model.unit", "invalid_decimal"),
        ("model: {type: per_unit, price: 1}", 9, "plans[0].charges[0].model.price", "unknown_field"),
        (
            "model: {type: graduated, tiers: [{up_to: 9, unit: 1}, {up_to: 5, unit: 1}, {unit: 1}]}",
            9,
            "plans[0].charges[0].model.tiers[1].up_to",
            "overlapping_tiers",
        ),
    ],
)
def test_the_catalogue_inside_is_checked_by_the_lines_of_the_file(
    tmp_path: Path, model: str, line: int, field: str, code: str
) -> None:
    found = faults(tmp_path, GOOD.replace(MODEL, model))
    assert ("bad.scenario", line, field, code) in found


@pytest.mark.parametrize(
    ("prices", "line", "field", "code"),
    [
        ("discount_percent: some", 12, "override.discount_percent", "invalid_decimal"),
        ("discount_percent: 10\n  price: 1", 13, "override.price", "unknown_field"),
        ("charges: [{key: calls, name: Calls}]", 12, "override.charges[0].model", "missing_field"),
        ("- 1", 12, "override", "invalid_type"),
        ("plan: other", 12, "override.plan", "unexpected"),
    ],
)
def test_own_prices_are_checked_by_the_lines_of_the_file(
    tmp_path: Path, prices: str, line: int, field: str, code: str
) -> None:
    text = GOOD.replace(SUBSCRIBE, f"2026-01-01  override  acme pro\n  {prices}")
    assert ("bad.scenario", line, field, code) in faults(tmp_path, text)


def test_a_fault_in_another_catalogue_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("plans:\n  - {key: pro, name: Pro, currency: XXQ, charges: []}\n")
    found = faults(tmp_path, f"A title\n\ncatalogue: prices.yaml\n\n{SUBSCRIBE}\n")
    assert found == [("prices.yaml", 2, "plans[0].currency", "unknown_currency")]


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("", 1, "title"),
        ("catalogue:\n  plans: []\n", 1, "title"),
        ("A title\n\n2026-01-01  clock\n", 1, "catalogue"),
        (GOOD.partition(SUBSCRIBE)[0], 10, "timeline"),
        (
            "A title\n\ncatalogue:\n  meters: [{key: calls, event_type: api.call}]\n\n2026-01-01  clock\n",
            3,
            "catalogue.plans",
        ),
        (GOOD.replace("  plans:", "  customers: [{id: acme}]\n  plans:"), 3, "catalogue.subscriptions"),
        (GOOD + "2026-01-31  clock\n", 13, "time"),
        (GOOD.replace(SUBSCRIBE, f"{SUBSCRIBE}\n  indented"), 12, ""),
    ],
)
def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path: Path, text: str, line: int, field: str) -> None:
    assert [(number, name) for _, number, name, _ in faults(tmp_path, text)] == [(line, field)]


def test_a_local_time_that_comes_twice_or_never_is_refused(tmp_path: Path) -> None:
    zoned = GOOD.replace("catalogue:\n", "catalogue:\n  tenant: {name: B, currency: USD, zone: Europe/Berlin}\n")
    for time, code in (("2026-03-29 02:30", "nonexistent_local_time"), ("2026-10-25 02:30", "ambiguous_local_time")):
        text = zoned.replace("2026-02-01  clock", f"{time}  clock")
        assert faults(tmp_path, text) == [("bad.scenario", 13, "time", code)]


def test_usage_that_has_no_price_stops_the_scenario(tmp_path: Path) -> None:
    text = (
        GOOD.replace("event_type: api.call}", "event_type: api.call, dimensions: [region]}")
        .replace(MODEL, "model: {type: matrix, dimensions: [region], cells: [{values: [eu], unit: 1}]}")
        .replace("2026-02-01", "2026-01-02  usage  acme api.call region=us\n2026-02-01")
    )
    assert [(line, code) for _, line, _, code in faults(tmp_path, text)] == [(13, "unpriced_cell")]


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.scenario"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadScenario) as caught:
        run(path)
    assert caught.value.found[0][2].code == "not_utf8"
