"""The handed-over cases with other numbers, against the plainest arithmetic: no adapter may fit only what it was given.

The oracles are short and slow on purpose: a unit at a time, a day at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import COPIES, cases
from tests.conformance.figures import differences
from tests.conformance.peers import PEERS, peer_of
from tests.conformance.test_vectors import OPERATIONS

Case = dict[str, Any]
Oracle = Callable[[dict[str, Any]], dict[str, Any]]
QUANTITIES = ("0.001", "1", "4.5", "5", "5.5", "10", "10.01", "99", "100", "100.5", "1234567.89")
HANDED_OVER: Path = COPIES[0]


def of(op: str) -> list[Case]:
    return [case for _, case in cases(HANDED_OVER) if case["given"]["op"] == op]


def half_up(exact: Fraction) -> int:
    return floor(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)


def shown(exact: Fraction) -> str:
    return f"{exact.numerator}/{exact.denominator}"


def tiers(given: Case) -> list[tuple[Fraction | None, Fraction, Fraction, Fraction | None]]:
    def figure(value: str | None) -> Fraction:
        return Fraction(value or 0)

    return [
        (
            Fraction(each["up_to"]) if each["up_to"] else None,
            figure(each.get("unit_price") or each.get("rate_percent")),
            figure(each.get("flat")),
            Fraction(each["cap"]) if each.get("cap") else None,
        )
        for each in given["tiers"]
    ]


def graduated(given: Case) -> dict[str, Any]:
    left, low, total = Fraction(given["quantity"]), Fraction(0), Fraction(0)
    percent = 100 if given["model"] == "graduated_percentage" else 1
    for up_to, unit, flat, cap in tiers(given):
        units = left if up_to is None else min(left, up_to - low)
        amount = units * unit / percent + flat
        total += amount if cap is None else min(amount, cap)
        left -= units
        low = up_to or low
        if left <= 0:
            break
    return {"amount": shown(total)}


def volume(given: Case) -> dict[str, Any]:
    quantity = Fraction(given["quantity"])
    n, (_, unit, flat, cap) = next((i, t) for i, t in enumerate(tiers(given)) if t[0] is None or quantity <= t[0])
    amount = quantity * unit + flat
    return {"amount": shown(amount if cap is None else min(amount, cap)), "tier": n + 1}


def package(given: Case) -> dict[str, Any]:
    units = max(Fraction(given["quantity"]) - Fraction(given.get("free_units") or 0), Fraction(0))
    count = (floor if given.get("package_rounding") == "down" else ceil)(units / Fraction(given["package_size"]))
    return {"amount": shown(count * Fraction(given["package_price"])), "packages": count}


RATED: dict[str, Oracle] = {
    "standard": lambda given: {"amount": shown(Fraction(given["quantity"]) * Fraction(given["unit_price"]))},
    "graduated": graduated,
    "graduated_percentage": graduated,
    "volume": volume,
    "package": package,
}
PIPELINE = {"min_spend", "max_spend", "already_rated_quantity", "percentage_discount", "unit_conversion"}


def is_plain(given: Case) -> bool:
    return given["model"] in RATED and "quantity" in given and not given.keys() & PIPELINE


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("case", [case for case in of("rate") if is_plain(case["given"])], ids=lambda case: case["id"])
def test_any_quantity_costs_what_it_costs_unit_by_unit(case: Case, quantity: str) -> None:
    given = {**case["given"], "quantity": quantity}
    assert not differences(RATED[given["model"]](given), OPERATIONS["rating"]["rate"](given, peer_of(case)))


def days(start: str, end: str) -> int:
    return (date.fromisoformat(end[:10]) - date.fromisoformat(start[:10])).days


@pytest.mark.parametrize("shift", range(0, 31, 3))
@pytest.mark.parametrize("case", of("plan_change"), ids=lambda case: case["id"])
def test_a_plan_may_change_on_any_day(case: Case, shift: int) -> None:
    given = case["given"]
    start, last = given["period"]["start"], given["period"]["end_inclusive"]
    at = (date.fromisoformat(start) + timedelta(days=shift)).isoformat()
    remaining = Fraction(days(at, last) + 1, days(start, last) + 1)
    credit = Fraction(half_up(Fraction(given["old_amount"]) * remaining * 100), 100)
    charge = Fraction(half_up(Fraction(given["new_amount"]) * remaining * 100), 100)
    actual = OPERATIONS["proration"]["plan_change"]({**given, "change_at": f"{at}T00:00:00Z"}, peer_of(case))
    stated = {"factor": shown(remaining), "credit": shown(-credit), "charge": shown(charge)}
    assert not differences({**stated, "net": shown(charge - credit)}, actual)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Auckland"])
@pytest.mark.parametrize("case", of("period_fee"), ids=lambda case: case["id"])
def test_a_fee_counts_days_one_by_one_in_any_zone(case: Case, zone: str) -> None:
    given = {**case["given"], "timezone": zone, "price_cents": "12345"}
    first, last = (date.fromisoformat(given[key]) for key in ("billed_from", "billed_to_inclusive"))
    if given.get("trial_days"):
        first = max(first, date.fromisoformat(given["trial_started_on"]) + timedelta(days=given["trial_days"]))
    used = [first + timedelta(days=n) for n in range((last - first).days + (given.get("ended_by") != "upgrade"))]
    whole = days(given["period"]["start"], given["period"]["end_inclusive"]) + 1
    exact = Fraction(12345 * len(used), whole)
    actual = OPERATIONS["proration"]["period_fee"](given, peer_of(case))
    assert not differences({"amount_cents": str(half_up(exact)), "of_days": whole}, actual)


@pytest.mark.parametrize("cents", ["1", "99", "1001", "33333"])
@pytest.mark.parametrize("case", [*of("tax"), *of("tax_per_line")], ids=lambda case: case["id"])
def test_any_amount_is_taxed_rate_by_rate(case: Case, cents: str) -> None:
    given = case["given"]
    if given["op"] == "tax":
        given = {**given, "amount_cents": cents, "discount_cents": "0"}
        wanted = [half_up(int(cents) * Fraction(each) / 100) for each in given["tax_percents"]]
        stated = {"per_tax_cents": [str(each) for each in wanted]}
    else:
        given = {**given, "lines": [{**each, "amount_cents": cents} for each in given["lines"]]}
        wanted = [half_up(int(cents) * Fraction(each["tax_percent"]) / 100) for each in given["lines"]]
        stated = {"per_line_tax_cents": [str(each) for each in wanted]}
    actual = OPERATIONS["coupons_tax_credit"][given["op"]](given, peer_of(case))
    assert not differences({**stated, "tax_cents": str(sum(wanted))}, actual)


@pytest.mark.parametrize("bill_day", [1, 15, 28, 29, 30, 31])
@pytest.mark.parametrize("start", ["2023-02-01", "2023-12-31", "2024-01-30", "2024-02-29", "2024-04-15"])
def test_a_bill_day_comes_on_its_day_or_on_the_last_of_the_month(start: str, bill_day: int) -> None:
    following = (date.fromisoformat(start) + timedelta(days=n) for n in range(40))
    found = next(d for d in following if d.day == bill_day or (d.day < bill_day and (d + timedelta(days=1)).day == 1))
    given = {"date": start, "bill_day": bill_day, "interval": "month"}
    assert not differences({"date": found.isoformat()}, OPERATIONS["periods"]["next_bill_day"](given, PEERS["kb"]))
