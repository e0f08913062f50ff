"""proration.json: shares of periods and what a change costs, through `billing.proration`."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from billing.money import Money
from billing.period import Alignment, Cadence, Period, add_days, floor, full_period
from billing.proration import (
    ProrationUnit,
    billed_shares,
    cap_credit,
    change,
    fixed_month_days,
    fraction,
    leading_fraction,
    local_days,
    to_decimals,
    trailing_fraction,
)
from tests.conformance.figures import instant, local, number
from tests.conformance.peers import Peer

Given = dict[str, Any]
Results = dict[str, Any]
INTERVALS = {
    "day": "P1D",
    "week": "P1W",
    "biweekly": "P2W",
    "thirty_days": "P30D",
    "month": "P1M",
    "quarter": "P3M",
    "half_year": "P6M",
    "year": "P1Y",
    "two_years": "P2Y",
}
UTC_ZONE = "UTC"


def period(given: Given, zone: str = UTC_ZONE) -> Period:
    """A period of a case: its last day is included if the case says so."""
    start = instant(given["start"], zone)
    if "end_exclusive" in given:
        return Period(start, instant(given["end_exclusive"], zone))
    return Period(start, end_of_day(given["end_inclusive"], zone))


def end_of_day(text: str, zone: str) -> datetime:
    """The end of the local day that a date names, or that a last second belongs to."""
    return add_days(floor(instant(text, zone), "day", zone), 1, zone)


def cadence(given: Given, start: datetime, day: int | None = None) -> Cadence:
    """A billing day's cadence: its months are counted from the month of the start."""
    unit = INTERVALS[given["interval"]]
    months = unit[-1] in "MY"
    return Cadence(UTC_ZONE, start.replace(tzinfo=None), unit, Alignment.ANCHOR, day if months else None)


def _unit(given: Given) -> ProrationUnit:
    return ProrationUnit.SECOND if given.get("method", "day").startswith("second") else ProrationUnit.DAY


def plan_change(given: Given, peer: Peer) -> Results:
    zone = given.get("timezone", UTC_ZONE)
    old, new = (Money.from_major(number(given[key]), given["currency"]) for key in ("old_amount", "new_amount"))
    made = change(
        old, new, period(given["period"], zone), instant(given["change_at"], zone), by=_unit(given), zone=zone
    )
    credit = made.credit
    if "amount_paid" in given:
        credit = cap_credit(credit, Money.from_major(number(given["amount_paid"]), given["currency"]), credit - credit)
    return {"factor": made.remaining, "credit": -credit, "charge": made.charge, "net": made.charge - credit}


def plan_change_components(given: Given, peer: Peer) -> Results:
    currency, lines, net = given.get("currency", "USD"), [], Money.zero(given.get("currency", "USD"))
    whole = period(given["period"])
    for each in given["components"]:
        old, new = Money(int(each.get("old_cents") or 0), currency), Money(int(each.get("new_cents") or 0), currency)
        own = period(each["period"]) if "period" in each else whole
        made = change(old, new, own, instant(given["change_at"]), by=_unit(given), zone=UTC_ZONE)
        if each.get("kind") in ("usage", "arrears") or not made.remaining:
            continue
        charge = new if each.get("kind") == "one_time" else made.charge
        lines.append({"component": each["name"], "credit_cents": -made.credit.minor, "charge_cents": charge.minor})
        net += charge - made.credit
    return {"lines": lines, "net_cents": net.minor}


def credit_cap(given: Given, peer: Peer) -> Results:
    credit, billed, credited = (
        Money.from_major(number(given[key]), "USD")
        for key in ("potential_credit", "amount_paid", "credits_already_issued")
    )
    return {"credit": cap_credit(credit, billed, credited)}


def prorate_credits(given: Given, peer: Peer) -> Results:
    whole = period(given["period"], given.get("timezone") or UTC_ZONE)
    start = min(max(instant(given["change_at"]), whole.start), whole.end)
    factor = fraction(Period(start, whole.end), whole, by=_unit(given), zone=given.get("timezone") or UTC_ZONE)
    return {"factor": factor, "credits": to_decimals(factor * Fraction(given["credits"]), 8)}


def calendar_days(given: Given, peer: Peer) -> Results:
    zone = ZoneInfo(given["timezone"])
    start, end = (local(given[key]).replace(tzinfo=zone) for key in ("from_local_date", "to_local_date"))
    return {"days": local_days(Period.between(start, end), given["timezone"])}


def factor(given: Given, peer: Peer) -> Results:
    return {"factor": fraction(period(given["partial"]), period(given["full"]), by=ProrationUnit.DAY)}


def first_period_factor(given: Given, peer: Peer) -> Results:
    start = instant(given["start"])
    whole = full_period(cadence(given, start, given["billing_day"]), start)
    used = Period(start, whole.end)
    share = None if whole.start == start else leading_fraction(used, INTERVALS[given["interval"]], zone=UTC_ZONE)
    return {"factor": share, "period": {"start": used.start, "end_exclusive": used.end}}


def arrears_active_fraction(given: Given, peer: Peer) -> Results:
    whole = period(given["period"])
    start = instant(given["active_from"]) if given.get("active_from") else whole.start
    end = instant(given["active_to_exclusive"]) if given.get("active_to_exclusive") else whole.end
    start, end = max(start, whole.start), max(start, end)
    active = whole.overlap(Period(start, end))
    share = fraction(active, whole, by=ProrationUnit.DAY) if active else Fraction(0)
    return {"factor": None if share == 1 else share}


def billing_cycles(given: Given, peer: Peer) -> Results:
    start = instant(given["start"])
    end = instant(given["end_exclusive"]) if given.get("end_exclusive") else None
    rule = cadence(given, start, given.get("bill_day"))
    in_advance = "arrear" not in given.get("billing_mode", "in_advance")
    shares = billed_shares(rule, start, end, instant(given["target_date"]), in_advance=in_advance)
    return {"cycles": sum((to_decimals(share, peer.fraction_decimals) for share in shares), Decimal(0))}


def leading(given: Given, peer: Peer) -> Results:
    used = Period(instant(given["start"]), instant(given["first_bill_date"]))
    share = leading_fraction(used, INTERVALS[given["interval"]], zone=UTC_ZONE)
    return {"fraction": to_decimals(share, peer.fraction_decimals)}


def trailing(given: Given, peer: Peer) -> Results:
    used = Period(instant(given["last_bill_date"]), instant(given["end_exclusive"]))
    share = trailing_fraction(used, INTERVALS[given["interval"]], zone=UTC_ZONE)
    return {"fraction": to_decimals(share, peer.fraction_decimals)}


def fixed_month(given: Given, peer: Peer) -> Results:
    span = Period(instant(given["from"]), instant(given["to_exclusive"]))
    days = fixed_month_days(span, given["fixed_days"], UTC_ZONE)
    return {"days": days, "fraction": to_decimals(Fraction(days, given["fixed_days"]), peer.fraction_decimals)}


def period_fee(given: Given, peer: Peer) -> Results:
    """The day of an end is billed, the day of an upgrade belongs to the new plan; trial days are free."""
    zone = given.get("timezone") or UTC_ZONE
    whole = period(given["period"], zone)
    last = floor(instant(given["billed_to_inclusive"], zone), "day", zone)
    end = last if given.get("ended_by") == "upgrade" else add_days(last, 1, zone)
    start = instant(given["billed_from"], zone)
    if given.get("trial_days"):
        trial = instant(given.get("trial_started_on") or given["billed_from"], zone)
        start = max(start, add_days(trial, given["trial_days"], zone))
        start = min(start, end)
    share = fraction(Period(start, end), whole, by=peer.proration, zone=zone)
    exact = share * Fraction(given["price_cents"])
    return {
        "amount_cents": Money.from_major(exact / 100, "USD").minor,
        "exact_cents": exact,
        "days": local_days(Period(start, end), zone),
        "of_days": local_days(whole, zone),
    }


OPERATIONS = {
    "plan_change": plan_change,
    "plan_change_components": plan_change_components,
    "cap_credit": credit_cap,
    "prorate_credits": prorate_credits,
    "calendar_days_between": calendar_days,
    "factor": factor,
    "first_period_factor": first_period_factor,
    "arrears_active_fraction": arrears_active_fraction,
    "billing_cycles": billing_cycles,
    "leading_fraction": leading,
    "trailing_fraction": trailing,
    "fraction_fixed_month": fixed_month,
    "days_fixed_month": fixed_month,
    "period_fee": period_fee,
}
