"""grants.json, allowances: windows of time and how much of them is gone, through `billing.allowance`.

The peer's cases name their fields in more than one way, so the first name that a case has counts.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from billing.allowance import Opening, Window, next_window, status, together, windows
from billing.period import Period
from tests.conformance.figures import first, instant, number, optional
from tests.conformance.peers import Peer
from tests.conformance.proration import period as span

Given = dict[str, Any]
Results = dict[str, Any]
_DURATION = re.compile(r"P?T?(?P<count>\d+) ?(?P<unit>[hdw])", re.IGNORECASE)  # PT5H, P1D, 5h
_UNITS = {"h": "hour", "d": "day", "w": "week"}
ALIGNED = ("unit_start", "calendar", "aligned")
LAST_END = ("previous_window_end", "previous_end", "last_window_end", "covered_until", "previous_valid_to")


def _window(given: Given) -> Window:
    named = first(given, "window", "allowance", "duration", "grant", default=given)
    source = {**given, **named} if isinstance(named, dict) else given
    hours, written = first(source, "duration_hours", "hours"), _DURATION.match(str(source.get("duration", "")))
    if written:
        source = {**source, "unit": _UNITS[written["unit"].lower()], "count": written["count"]}
    unit = "hour" if hours is not None else str(first(source, "unit", "interval", "duration_unit", default="hour"))
    unit = unit.removesuffix("s")
    aligned = given["op"] == "allowance_window_aligned" or first(source, "alignment", "opening") in ALIGNED
    made = Window(
        unit="period" if unit in ("period", "cycle", "subscription_period", "billing_period") else unit,
        count=int(hours if hours is not None else first(source, "count", "value", "duration_value", default=1)),
        opening=Opening.CALENDAR if aligned else Opening.FIRST_USAGE,
        zone=source.get("timezone") or "UTC",
    )
    made.check("window")
    return made


def _cycle(given: Given) -> Period:
    named = first(given, "cycle", "billing_period", "period")
    if isinstance(named, dict):
        return span(named, given.get("timezone") or "UTC")
    start = instant(first(given, "cycle_start", "period_start", "start"))
    return Period(
        start, instant(first(given, "cycle_end_exclusive", "cycle_end", "period_end_exclusive", "period_end"))
    )


def _usage(given: Given) -> list[datetime]:
    """What was used by the instant of the evaluation, which excludes itself."""
    named = first(given, "events", "usage", "event_at", "first_event_at", "usage_at", default=[])
    found = [
        instant(each["at"] if isinstance(each, dict) else each)
        for each in ([named] if isinstance(named, str) else named)
    ]
    until = first(given, "evaluated_at", "at", "now")
    return [at for at in found if until is None or at < instant(until)]


def _covered(given: Given) -> datetime | None:
    named = first(given, *LAST_END, "previous_window", "previous")
    if isinstance(named, dict):
        named = first(named, "end_exclusive", "to_exclusive", "end")
    return None if named is None else instant(named)


def _shown(found: Period | None) -> Results:
    start, end = (found.start, found.end) if found else (None, None)
    return {"start": start, "from": start, "end_exclusive": end, "to_exclusive": end}


def allowance_window(given: Given, peer: Peer) -> Results:
    found = next_window(_window(given), _usage(given), _cycle(given), covered=_covered(given))
    return {**_shown(found), "window": _shown(found) if found else None, "opened": found is not None}


def allowance_windows(given: Given, peer: Peer) -> Results:
    found = list(windows(_window(given), _usage(given), _cycle(given), covered=_covered(given)))
    return {"windows": [_shown(each) for each in found], "count": len(found)}


def allowance_status(given: Given, peer: Peer) -> Results:
    found = status(number(first(given, "quota", "limit", "allowance")), number(first(given, "usage", "used")))
    return {
        "status": "exhausted" if found.exhausted else "active",
        "exhausted": found.exhausted,
        "is_exhausted": found.exhausted,
        "remaining": found.remaining,
        "overage": found.overage,
    }


def allowance_sum(given: Given, peer: Peer) -> Results:
    """Those that are switched off add nothing."""
    listed = first(given, "allowances", "quotas", "limits", "entitlements", "grants", default=[])
    dicts = [each if isinstance(each, dict) else {"quota": each} for each in listed]
    on = [each for each in dicts if first(each, "enabled", "is_enabled", default=True)]
    total = together(optional(first(each, "quota", "limit", "amount", "allowance")) for each in on)
    return {**dict.fromkeys(("sum", "total", "quota", "limit", "allowance"), total), "unlimited": total is None}


OPERATIONS = {
    "allowance_window": allowance_window,
    "allowance_window_aligned": allowance_window,
    "allowance_windows": allowance_windows,
    "allowance_status": allowance_status,
    "overage": allowance_status,
    "allowance_sum": allowance_sum,
}
