"""periods.json: boundaries and periods, through `billing.period`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from billing import period as kernel
from billing.aggregation import window_start
from billing.period import Alignment, Cadence, Period, boundary, full_period, moved, period_from
from billing.proration import local_days
from tests.conformance.figures import first, instant
from tests.conformance.peers import Peer
from tests.conformance.proration import cadence as billing_day_cadence

Given = dict[str, Any]
Results = dict[str, Any]
UNITS = {"day": "P{}D", "week": "P{}W", "month": "P{}M", "quarter": "P{}M", "half_year": "P{}M", "year": "P{}Y"}
MONTHS = {"quarter": 3, "half_year": 6}
MICROSECOND = timedelta(microseconds=1)


def interval(given: Given) -> str:
    unit = given["interval"]
    return UNITS[unit].format(given.get("count", 1) * MONTHS.get(unit, 1))


def local(moment: datetime, zone: str) -> datetime:
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def cadence(given: Given, anchor: datetime) -> Cadence:
    zone = given["timezone"]
    if given.get("alignment") != "calendar":
        return Cadence(zone, local(anchor, zone), interval(given), Alignment.ANCHOR)
    if given.get("count", 1) > 1:
        # Several units in a row begin with the unit of the start, not with a larger one that they happen to make up.
        start = kernel.floor(anchor, given["interval"], zone)
        return Cadence(zone, local(start, zone), interval(given), Alignment.ANCHOR)
    return Cadence(zone, local(anchor, zone), interval(given), Alignment.CALENDAR)


def next_boundary(given: Given, peer: Peer) -> Results:
    start = instant(given["current_period_start"])
    anchor = instant(given["anchor"]) if "anchor" in given else start
    found = period_from(cadence(given, anchor), start).end
    if "subscription_end" in given:
        found = min(found, instant(given["subscription_end"]))
    return {"next": found, "next_local": local(found, given["timezone"]).isoformat()}


def boundaries(given: Given, peer: Peer) -> Results:
    start, end = instant(given["start"]), instant(given["end"])
    made = list(kernel.periods(cadence(given, instant(given["anchor"])), start, end))
    return {"boundaries": [start, *(min(each.end, end) for each in made)]}


def occurrences(given: Given, peer: Peer) -> Results:
    rule = cadence(given, instant(given["anchor"]))
    start, end = instant(given["from_inclusive"]), instant(given["to_inclusive"])
    found = [each.start for each in kernel.periods(rule, full_period(rule, start).start, end + MICROSECOND)]
    return {"occurrences": [each for each in found if start <= each <= end]}


def occurrence_next(given: Given, peer: Peer) -> Results:
    at = instant(given["at"])
    found = full_period(cadence(given, instant(given["anchor"])), at)
    return {"occurrence": at if given["inclusive"] and found.start == at else found.end}


def occurrence_prev(given: Given, peer: Peer) -> Results:
    at = instant(given["at"])
    return {
        "occurrence": full_period(
            cadence(given, instant(given["anchor"])), at if given["inclusive"] else at - MICROSECOND
        ).start
    }


def period_containing(given: Given, peer: Peer) -> Results:
    at = instant(given["at"])
    if "billing_day" in given:
        start = instant(given["subscription_start"])
        at = max(at, start)
        found = full_period(billing_day_cadence(given, start, given["billing_day"]), at)
        found = Period(max(found.start, start), found.end)
    else:
        effective = first(given, "effective_at", "start")
        at = max(at, instant(effective)) if effective else at
        found = full_period(cadence(given, instant(given["anchor"])), at)
        found = Period(max(found.start, instant(effective)), found.end) if effective else found
    return {"start": found.start, "end_exclusive": found.end}


def floor(given: Given, peer: Peer) -> Results:
    return {"floor": window_start(instant(given["at"]), given["unit"], given["timezone"])}


def add_days(given: Given, peer: Peer) -> Results:
    return {"result": kernel.add_days(instant(given["at"]), given["days"], given["timezone"])}


def advance_period(given: Given, peer: Peer) -> Results:
    at = instant(given["invoice_date"])
    found = full_period(billing_day_cadence(given, at, given["billing_day"]), at)
    return {"start": at, "end_exclusive": found.end}


def arrears_period(given: Given, peer: Peer) -> Results:
    start, at = instant(given["subscription_start"]), instant(given["invoice_date"])
    rule = billing_day_cadence(given, start, given["billing_day"])
    ended = [each for each in kernel.periods(rule, start, at) if each.end <= at]
    return {"start": ended[-1].start, "end_exclusive": ended[-1].end}


def elapsed_cycles(given: Given, peer: Peer) -> Results:
    start, at = instant(given["subscription_start"]), instant(given["at"])
    rule = billing_day_cadence(given, start, given["billing_day"])
    return {"elapsed_cycles": len([each for each in kernel.periods(rule, start, at) if each.end <= at])}


def bill_day_from_start(given: Given, peer: Peer) -> Results:
    return {"bill_day": local(instant(given["start"]), given["timezone"]).day}


def align_to_bill_day(given: Given, peer: Peer) -> Results:
    at = instant(given["date"])
    return {"date": boundary(billing_day_cadence(given, at, given["bill_day"]), 0).date()}


def next_bill_day(given: Given, peer: Peer) -> Results:
    at = instant(given["date"])
    anchor = instant(given["previous"]) if "previous" in given else at
    found = full_period(billing_day_cadence(given, anchor, given.get("bill_day")), at)
    return {"date": (at if found.start == at else found.end).date()}


def _day_cadence(given: Given) -> Cadence:
    """Periods of whole local days: the anchor is the first instant of its day."""
    zone = given["timezone"]
    day = kernel.floor(instant(given["anchor"]), "day", zone)
    alignment = Alignment.CALENDAR if given["alignment"] == "calendar" else Alignment.ANCHOR
    return Cadence(zone, local(day, zone), interval(given), alignment)


def _billed(given: Given, rule: Cadence, at: datetime) -> Period:
    containing = full_period(rule, at)
    if given["billed"] == "advance" or given.get("terminated_at"):
        return containing
    return full_period(rule, containing.start - MICROSECOND)


def billed_period(given: Given, peer: Peer) -> Results:
    zone = given["timezone"]
    found = _billed(given, _day_cadence(given), instant(given["bill_at"]))
    start, end = found.start, found.end
    if given.get("started_at"):
        start = max(start, kernel.floor(instant(given["started_at"]), "day", zone))
    if given.get("terminated_at"):
        ends = kernel.add_days(kernel.floor(instant(given["terminated_at"]), "day", zone), 1, zone)
        end = min(end, ends) if ends > start else end
    return {"from": start, "to_inclusive": last_second(end), "days_in_period": local_days(found, zone)}


def billed_periods(given: Given, peer: Peer) -> Results:
    rule, started = _day_cadence(given), instant(given["anchor"])
    fees: list[list[datetime]] = []
    usages: list[list[datetime] | None] = []
    for at in map(instant, given["bill_at"]):
        fee = _billed(given, rule, at)
        usage = full_period(rule, full_period(rule, at).start - MICROSECOND)
        fees.append([fee.start, last_second(fee.end)])
        usages.append([max(usage.start, started), last_second(usage.end)] if usage.end > started else None)
    return {"fee_periods": fees, "usage_periods": usages}


def current_period_end(given: Given, peer: Peer) -> Results:
    return {"end_inclusive": last_second(full_period(_day_cadence(given), instant(given["bill_at"])).end)}


def usage_period_after_zone_change(given: Given, peer: Peer) -> Results:
    old, new = given["old_timezone"], given["new_timezone"]
    ended = datetime.fromisoformat(given["previous_usage_end_local"]) + timedelta(seconds=1)
    start = ended.replace(tzinfo=ZoneInfo(old)).astimezone(instant("2000-01-01").tzinfo)
    running = full_period(Cadence(old, ended, "P1M"), start)
    stretched = moved(running, old, new)
    return {
        "before_change": {"from": running.start, "to_inclusive": last_second(running.end)},
        "after_change": {"from": stretched.start, "to_inclusive": last_second(stretched.end)},
    }


def last_second(end: datetime) -> datetime:
    """The end as people are shown it: the last second that belongs to the period."""
    return end - timedelta(seconds=1)


OPERATIONS = {
    "next_boundary": next_boundary,
    "boundaries": boundaries,
    "occurrences_between": occurrences,
    "occurrence_next": occurrence_next,
    "occurrence_prev": occurrence_prev,
    "period_containing": period_containing,
    "floor": floor,
    "add_days": add_days,
    "advance_period": advance_period,
    "arrears_period": arrears_period,
    "elapsed_cycles": elapsed_cycles,
    "bill_day_from_start": bill_day_from_start,
    "align_to_bill_day": align_to_bill_day,
    "next_bill_day": next_bill_day,
    "billed_period": billed_period,
    "billed_periods": billed_periods,
    "current_period_end": current_period_end,
    "usage_period_after_timezone_change": usage_period_after_zone_change,
}
