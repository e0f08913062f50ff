"""aggregation.json: quantities from events, through `billing.aggregation` and `billing.metering`."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from billing.aggregation import Point, by_dimensions, measure, present, window_start, windows
from billing.errors import Rejected
from billing.metering import Aggregation, Meter, UsageEvent, read
from billing.money import Money
from billing.period import Period
from billing.price import QuantityRounding, Tier
from billing.quantity import rounded
from billing.recurring import held, held_things, never_less, rate_held
from tests.conformance.figures import instant, number
from tests.conformance.peers import Peer

Given = dict[str, Any]
Results = dict[str, Any]
ROUNDINGS = {
    "none": QuantityRounding.NONE,
    "ceil": QuantityRounding.UP,
    "floor": QuantityRounding.DOWN,
    "round": QuantityRounding.HALF_UP,
}
METHODS = {
    "count": Aggregation.COUNT,
    "sum": Aggregation.SUM,
    "max": Aggregation.MAX,
    "min": Aggregation.MIN,
    "latest": Aggregation.LATEST,
    "unique_count": Aggregation.UNIQUE,
    "weighted_sum": Aggregation.WEIGHTED_SUM,
    "average": Aggregation.AVERAGE,
}
EVER = Period(datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))
SECOND = timedelta(seconds=1)
NEXT = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(hours=26),
    "week": timedelta(days=8),
    "month": timedelta(days=32),
}
"""From the start of a window into the next one."""


def aggregate(given: Given, peer: Peer) -> Results:
    match given["aggregation"]:
        case "round_units":
            mode = ROUNDINGS[given.get("mode") or "none"]
            return {"value": rounded(number(given["value"]), mode, given.get("decimals") or 0)}
        case "running_total":
            return _running_totals(given)
    if "boundaries" in given:
        return _by_period(given)
    if "from_inclusive" in given:
        return _by_window(given)
    if given.get("prorated") and given["aggregation"] in ("sum", "unique_count"):
        return _prorated(given, peer)
    return _one_quantity(given)


def points(given: Given) -> list[Point]:
    """The readable events of a case; what is no number is no reading. Events without a time keep their order."""
    dimensions = given.get("group_by") or ()
    names = [dimensions] if isinstance(dimensions, str) else list(dimensions)
    made = []
    for i, event in enumerate(given.get("events") or ()):
        at = instant(event["at"]) if "at" in event else EVER.start + (i + 1) * SECOND
        value = event.get("value", "1")
        unique = given["aggregation"] == "unique_count"
        if not (event.get("in_period", True) or given.get("recurring")):
            continue  # what lies before the period counts only for a meter that carries over
        if not unique and not _is_number(value):
            continue
        made.append(
            Point(
                at,
                Decimal(1) if unique else number(value),
                value if unique else "",
                event.get("op") == "remove",
                f"{i:06}",
                tuple(event.get(name, "") for name in names),
            )
        )
    return made


def _is_number(value: str) -> bool:
    try:
        return Decimal(value).is_finite()
    except ArithmeticError:
        return False


def _one_quantity(given: Given) -> Results:
    method = METHODS[given["aggregation"]]
    found = points(given)
    period = (
        Period(instant(given["period"]["start"]), instant(given["period"]["end_exclusive"]))
        if "period" in given
        else EVER
    )
    results: Results = {"events_count": sum(given.get("recurring") or point.at in period for point in found)}
    if given.get("group_by"):
        cells = {"/".join(key): measure(method, inside, period) for key, inside in by_dimensions(found).items()}
        results["groups"] = cells
        value = cells[given["group"]] if "group" in given else sum(cells.values(), Decimal(0))
    else:
        before = [point for point in found if point.at < period.start] if given.get("recurring") else []
        carried = number(given.get("initial_value")) + sum((point.value for point in before), Decimal(0))
        if method is Aggregation.UNIQUE:
            value = Decimal(len(present((point for point in found if point.at in period), present(before))))
        else:
            value = measure(method, found, period, carried=carried)
    results["value"] = max(value, Decimal(0)) if method is Aggregation.LATEST else value
    results["level_at_end"] = number(given.get("initial_value")) + sum((point.value for point in found), Decimal(0))
    if "unit_price" in given:
        results["amount_cents"] = Money.from_major(Fraction(value) * Fraction(given["unit_price"]), "USD").minor
    return results


def _prorated(given: Given, peer: Peer) -> Results:
    """Units held within a period, priced by the share of it; paid in advance they give nothing back."""
    period = Period(instant(given["period"]["start"]), instant(given["period"]["end_exclusive"]))
    zone = given.get("timezone", "UTC")
    found = points(given)
    before = [point for point in found if point.at < period.start] if given.get("recurring") else []
    if given["aggregation"] == "unique_count":
        changes = held_things(found, period, period, carried=present(before), by=peer.proration, zone=zone)
    else:
        carried = sum((point.value for point in before), Decimal(0))
        changes = held(found, period, period, carried=carried, by=peer.proration, zone=zone)
    paid = never_less(changes) if given.get("paid_in_advance") else changes
    amount = rate_held([Tier(unit=number(given["unit_price"]))], paid)
    value = sum((each.units for each in changes), Decimal(0))
    return {"value": value, "amount_cents": Money.from_major(amount, "USD").minor}


def _running_totals(given: Given) -> Results:
    """The sums so far that a percentage's free allowance looks at, up to the one that uses it up.

    An allowance of events comes before one of the total; without any nothing is looked at.
    """
    count, limit = given.get("free_events") or 0, number(given.get("free_total"))
    found = points(given)
    sums = [measure(Aggregation.SUM, found[: i + 1], EVER) for i in range(len(found))]
    if count:
        return {"running_totals": sums[:count]}
    within = [each for each in sums if each <= limit]
    return {"running_totals": sums[: len(within) + 1] if limit else []}


def _by_period(given: Given) -> Results:
    bounds = [instant(each) for each in given["boundaries"]]
    units = sorted({event["unit"] for event in given["events"]})
    by_unit: dict[str, list[Point]] = defaultdict(list)
    for event in given["events"]:
        by_unit[event["unit"]].append(Point(instant(event["at"]), number(event["value"])))
    rows = []
    for start, end in pairwise(bounds):
        quantities = {unit: measure(Aggregation.SUM, by_unit[unit], Period(start, end)) for unit in units}
        rows.append({"start": start, "end_exclusive": end, **quantities})
    return {"rows": rows}


def _by_window(given: Given) -> Results:
    """A query is widened to whole windows, since only whole windows are kept."""
    unit, zone = given.get("window"), given.get("timezone") or "UTC"
    asked = Period(instant(given["from_inclusive"]), instant(given["to_exclusive"]))
    if unit is None:
        value = measure(METHODS[given["aggregation"]], points(given), asked)
        return {"rows": [{"start": asked.start, "end_exclusive": asked.end, "value": value}]}
    last = window_start(asked.end - timedelta(microseconds=1), unit, zone)
    widened = Period(window_start(asked.start, unit, zone), window_start(last + NEXT[unit], unit, zone))
    found = windows(METHODS[given["aggregation"]], points(given), widened, unit, zone)
    rows = [each for each in found if each.period.start <= last]
    return {
        "rows": [{"start": each.period.start, "end_exclusive": each.period.end, "value": each.value} for each in rows]
    }


def event_value(given: Given, peer: Peer) -> Results:
    """What one event contributes, as the meter reads it; numbers travel as decimal text."""
    aggregation = "unique" if given["aggregation"] == "unique_count" else str(given["aggregation"])
    meter = Meter(
        key="meter",
        event_type="used",
        aggregation=Aggregation(aggregation),
        value=None if aggregation == "count" else given.get("value_property"),
    )
    properties = {key: str(value) for key, value in (given.get("data") or {}).items() if value is not None}
    event = UsageEvent(
        id="1", source="peer", type="used", customer="c", time=datetime(2024, 1, 1, tzinfo=UTC), properties=properties
    )
    try:
        reading = read(meter, event)
    except Rejected:
        return {"error": True}
    return {"value": reading.text if reading.text is not None else reading.number, "error": False}


OPERATIONS = {"aggregate": aggregate, "event_value": event_value}
