"""rating.json, model `graduated_prorated`: recurring units weighted by how long they were held."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.aggregation import Point, present
from billing.money import Money
from billing.period import Period, add_days
from billing.recurring import Change, held, held_things, rate_held
from tests.conformance.figures import instant, number
from tests.conformance.peers import Peer
from tests.conformance.prices import tiers


def graduated_prorated(given: dict[str, Any], peer: Peer) -> dict[str, Any]:
    table = tiers(given)
    units: Decimal | None = None
    if "events_full_units" in given:
        pairs = zip(given["events_full_units"], given["events_prorated_units"], strict=True)
        changes = tuple(Change(number(full), Fraction(part)) for full, part in pairs)
    else:
        changes, units = _from_events(given, peer)
    amount = rate_held(table, changes)
    return {
        "amount": Money.from_major(amount, "USD").major(),
        "amount_cents": Money.from_major(amount, "USD").minor,
        "units": units,
    }


def _from_events(given: dict[str, Any], peer: Peer) -> tuple[tuple[Change, ...], Decimal]:
    zone, bounds = given.get("timezone", "UTC"), given["billing_period"]
    whole = Period(instant(bounds["start"]), add_days(instant(bounds["end_inclusive"]), 1, zone))
    last = bounds.get("terminated_on")
    # The day of termination is billed: the used span ends with that day.
    used = Period(whole.start, add_days(instant(last), 1, zone)) if last else whole
    points = [
        Point(
            instant(event["date"]),
            number(event.get("units", "1")),
            event.get("value", ""),
            event.get("op") == "remove",
            key=f"{i:06}",
        )
        for i, event in enumerate(given["events"])
    ]
    if given["aggregation"] == "unique_count":
        carried = given.get("carried_over_values", ())
        made = held_things(points, used, whole, carried=carried, by=peer.proration, zone=zone)
        return made, Decimal(len(present(points, carried)))
    level = number(given.get("carried_over_units"))
    made = held(points, used, whole, carried=level, by=peer.proration, zone=zone)
    return made, level + sum((point.value for point in points), Decimal(0))
