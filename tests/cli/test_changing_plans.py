"""Prices as code on a running system: look at the difference, publish it, move subscribers to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import Run
from tests.cli.test_commands import system as system
from tests.cli.test_commands import tallybook as tallybook
from tests.waiting import eventually

CATALOG = """\
effective_at: {effective_at}
tenant:
  id: {tenant}
  name: Shop
  currency: USD
  zone: America/New_York
  test_clock: 2013-01-01 00:00
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {{key: base, name: Base fee, in_advance: true, model: {{type: flat, amount: {amount}}}}}
  - key: team
    name: Team
    currency: USD
    charges:
      - {{key: base, name: Base fee, in_advance: true, model: {{type: flat, amount: 50.00}}}}
add_ons:
  - key: seats
    name: Seats
    currency: USD
    charges:
      - {{key: fee, name: Seats, in_advance: true, model: {{type: flat, amount: 3.00}}}}
customers:
  - {{id: acme, name: Acme, overrides: [{{plan: team, discount_percent: 10}}]}}
subscriptions:
  - {{id: s1, customer: acme, plan: pro, starts_at: 2013-01-15 00:00}}
  - {{id: s2, customer: acme, plan: pro, starts_at: 2013-01-15 00:00}}
"""


def write(path: Path, tenant: str, amount: str = "20.00", effective_at: str = "2013-01-01 00:00") -> str:
    file = path / "prices.yaml"
    file.write_text(CATALOG.format(tenant=tenant, amount=amount, effective_at=effective_at))
    return str(file)


def test_prices_are_planned_published_and_subscribers_moved(tallybook: Run, tmp_path: Path) -> None:
    tenant = ("--tenant", "change")
    file = write(tmp_path, "change")
    assert tallybook("catalog", "apply", file)[0] == 0
    eventually(lambda: "s2" in tallybook("subscriptions", "list", *tenant)[1])
    assert tallybook("catalog", "plan", file, "--exit-code")[0] == 0

    dearer = write(tmp_path, "change", amount="22.00", effective_at="2013-01-10 00:00")
    code, said, _ = tallybook("catalog", "plan", dearer)
    assert code == 0
    assert "price book 2, effective 2013-01-10 00:00 America/New_York" in said
    assert "~ plans.pro.charges.base.model.amount  20 -> 22" in said
    assert "pro: 2 subscriptions on price book 1 stay on it" in said
    assert tallybook("catalog", "plan", dearer, "--exit-code")[0] == 1
    code, said, _ = tallybook("catalog", "plan", dearer, "--json")
    assert json.loads(said)["differences"] == [
        {"path": "plans.pro.charges.base.model.amount", "before": "20", "after": "22"}
    ]

    assert tallybook("catalog", "apply", dearer)[0] == 0
    eventually(lambda: "no differences" in tallybook("catalog", "plan", dearer)[1])
    code, said, _ = tallybook("catalog", "migrate", "--plan", "pro", *tenant, "--dry-run")
    assert (code, said) == (0, "would migrate 2 subscriptions of pro to price book 2; nothing changed\n")
    code, said, _ = tallybook("catalog", "migrate", "--plan", "pro", *tenant)
    assert (code, said) == (0, "migrated 2 of 2 subscriptions of pro\n")

    code, said, _ = tallybook("subscriptions", "change", "s1", "--plan", "team", *tenant, "--dry-run")
    assert (code, said.splitlines()[0]) == (0, "would change s1 to plan team at the end of its period")
    code, said, _ = tallybook("subscriptions", "change", "s1", "--plan", "team", *tenant)
    assert (code, said) == (0, "s1: pro, price book 1; team, price book 2 from 2013-01-15 00:00\n")
    code, said, _ = tallybook("subscriptions", "add", "s2", "seats", "--quantity", "3", *tenant)
    assert (code, said) == (
        0,
        "s2: pro, price book 1; pro, price book 2 from 2013-01-15 00:00, 3 x seats from 2013-01-15 00:00\n",
    )
    assert tallybook("subscriptions", "remove", "s2", "seats", *tenant)[0] == 0
    code, said, _ = tallybook("subscriptions", "list", *tenant, "--json")
    assert [each["changes"][0]["plan"] for each in json.loads(said)] == ["team", "pro"]


def test_a_change_that_is_refused_says_why(tallybook: Run, tmp_path: Path) -> None:
    assert tallybook("catalog", "apply", write(tmp_path, "refuse"))[0] == 0
    code, _, said = tallybook("subscriptions", "change", "s1", "--plan", "gold", "--tenant", "refuse")
    assert (code, "has no plan 'gold'" in said) == (1, True)


@pytest.mark.parametrize("local", ["2013-03-10 02:30", "2013-02-30 00:00"])
def test_a_start_of_prices_that_never_comes_is_named_with_its_line(tallybook: Run, tmp_path: Path, local: str) -> None:
    code, _, said = tallybook("catalog", "check", write(tmp_path, "never", effective_at=local))
    assert (code, ":1: effective_at: " in said) == (1, True)
