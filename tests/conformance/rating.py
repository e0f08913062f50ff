"""rating.json: every model through `billing.rating.rate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.metering import Measured
from billing.money import EXACT, Money
from billing.price import (
    Blocks,
    BlockTier,
    Capacity,
    CapacityLimit,
    CapacityTier,
    Cell,
    Dynamic,
    Flat,
    Graduated,
    GraduatedPercentage,
    Matrix,
    Package,
    Percentage,
    PercentageTier,
    PerUnit,
    PriceModel,
    QuantityRounding,
    Tier,
    Volume,
)
from billing.quantity import after_free_units, convert
from billing.rating import bill_so_far, rate
from billing.tiers import graduated_between
from tests.conformance.figures import number, optional
from tests.conformance.lines import charge, conversion, line, lines, tier_of, whole, with_tax
from tests.conformance.peers import Peer
from tests.conformance.prices import tiers
from tests.conformance.recurring import graduated_prorated

Given = dict[str, Any]
Results = dict[str, Any]


def rated(given: Given, peer: Peer) -> Results:
    """The results of one case of rating, by its model."""
    return MODELS[given["model"]](given, peer)


def standard(given: Given, peer: Peer) -> Results:
    if "filters" in given:
        return _standard_by_filter(given)
    if "groups" in given or "group_by" in given:
        cells = given.get("groups") or _count(given["events"], given["group_by"])
        made = charge(PerUnit(number(given["unit_price"])), given, split_by=("group",))
        measured = Measured(Decimal(0), tuple(((key,), number(value)) for key, value in cells.items()))
        result = rate(made, measured)
        return {**whole(result), "groups": {step.label: step.amount for step in result.steps}}
    if "buckets" in given:
        made = charge(PerUnit(number(given["unit_price"])), given, split_by=("bucket",))
        cells = tuple(((str(i),), number(value)) for i, value in enumerate(given["buckets"]))
        return whole(rate(made, Measured(Decimal(0), cells)))
    return lines(PerUnit(number(given["unit_price"])), given)


def _count(events: list[Given], key: str) -> dict[str, str]:
    counted: dict[str, int] = defaultdict(int)
    for event in events:
        counted[event[key]] += 1
    return {key: str(n) for key, n in counted.items()}


def _standard_by_filter(given: Given) -> Results:
    dimension = next(key for key in given["filters"][0] if key != "unit_price")
    cells: dict[str, Decimal] = defaultdict(Decimal)
    for event in given["events"]:
        cells[event.get(dimension, "")] += number(event[given["field"]]) if given["aggregation"] != "count" else 1
    model = Matrix(
        dimensions=(dimension,),
        cells=tuple(Cell((each[dimension],), number(each["unit_price"])) for each in given["filters"]),
        default=number(given["default_unit_price"]),
    )
    result = rate(
        charge(model, given), Measured(Decimal(0), tuple(((key,), value) for key, value in sorted(cells.items())))
    )
    return {**whole(result), "filters": {step.label: step.amount for step in result.steps}}


def package(given: Given, peer: Peer) -> Results:
    made = charge(_package(given), given, free_units=number(given.get("free_units")))
    return with_tax(line(made, given), given)


def _package(given: Given) -> Package:
    rounding = QuantityRounding.DOWN if given.get("package_rounding") == "down" else QuantityRounding.UP
    return Package(number(given["package_size"]), number(given.get("package_price")), rounding)


def graduated_span(given: Given, peer: Peer) -> Results:
    start, end = number(given["from_exclusive"]), number(given["to_inclusive"])
    rows = graduated_between(tiers(given), start, end)
    spans = [
        {"tier": tier_of(label), "units": units, "usage_amount": EXACT.subtract(amount, flat), "flat_amount": flat}
        for label, units, _, flat, amount, _ in rows
    ]
    total = rate(charge(Graduated(tiers(given)), given), Measured(end)).amount
    return {"spans": spans, "cumulative_total_at_to": total}


def tier_units(given: Given, peer: Peer) -> Results:
    """Units in the tier `(from, to]`; integer bounds name the first and the last unit of the tier."""
    low = number(given["tier_from"])
    if given["model"] == "graduated_percentage_tier_units":
        low -= 1
    price = number(given.get("unit_price", given.get("rate_percent")))
    table = (Tier(low), Tier(number(given["tier_to"]), price, number(given.get("flat"))), Tier())
    made = Graduated(table)
    if "rate_percent" in given:
        parts = tuple(PercentageTier(each.up_to, each.unit, each.flat) for each in table)
        steps = rate(charge(GraduatedPercentage(parts), given), Measured(number(given["quantity"]))).steps
    else:
        steps = rate(charge(made, given), Measured(number(given["quantity"]))).steps
    step = steps[1]
    return {"units": step.quantity, "amount": step.amount, "usage_amount": EXACT.subtract(step.amount, step.flat)}


def percentage(given: Given, peer: Peer) -> Results:
    model = Percentage(
        percent=number(given["rate_percent"]),
        fixed=number(given.get("fixed_amount_per_event")),
        free_transactions=given.get("free_events"),
        free_amount=optional(given.get("free_total_amount")),
        minimum=optional(given.get("min_per_event")),
        maximum=optional(given.get("max_per_event")),
    )
    amounts = tuple(number(each) for each in given.get("events", ()))
    total = number(given["quantity"]) if "quantity" in given else sum(amounts, Decimal(0))
    events = given.get("events_count", len(amounts))
    result = rate(charge(model, given), Measured(total, transactions=amounts, events=events))
    fixed = next((step for step in result.steps if step.label == "transactions"), None)
    paid_events = int(fixed.quantity) if fixed else 0
    results = {
        **whole(result),
        "percentage_amount": result.steps[0].amount,
        "fixed_amount": fixed.amount if fixed else Decimal(0),
        "paid_units": result.steps[0].quantity,
        "free_units": EXACT.subtract(total, result.steps[0].quantity),
        "paid_events": paid_events,
        "free_events": events - paid_events,
        "unit_amount": Fraction(result.amount) / Fraction(total) if total else Decimal(0),
    }
    return with_tax(results, given)


def graduated_percentage(given: Given, peer: Peer) -> Results:
    return lines(_percentage_tiers(given), given)


def _percentage_tiers(given: Given) -> GraduatedPercentage:
    return GraduatedPercentage(tuple(PercentageTier(each.up_to, each.unit, each.flat) for each in tiers(given)))


def dynamic(given: Given, peer: Peer) -> Results:
    """The events carry amounts in cents."""
    made = charge(Dynamic(Decimal("0.01")), given)
    if "groups" in given:
        amounts = {
            key: rate(made, Measured(number(each["event_amount_cents"]))).amount
            for key, each in given["groups"].items()
        }
        units = {key: number(each["units"]) for key, each in given["groups"].items()}
        return {"groups": {key: {"unit_amount": Fraction(amounts[key]) / Fraction(units[key])} for key in amounts}}
    if "events" in given:
        totals, sums, running, units_sum = [], [], Decimal(0), Decimal(0)
        for event in given["events"]:
            running += number(event["amount_cents"])
            units_sum += number(event["units"])
            totals.append(Money.from_major(rate(made, Measured(running)).amount, given["currency"]).minor)
            sums.append(units_sum)
        return {"amount_cents_after_each_event": totals, "units_after_each_event": sums}
    amount = rate(made, Measured(number(given["event_amount_cents"]))).amount
    return {"amount": amount, "unit_amount": Fraction(amount) / Fraction(number(given["quantity"]))}


def dynamic_multiplier(given: Given, peer: Peer) -> Results:
    return line(charge(Dynamic(number(given["multiplier"])), given), given)


def flat_fee(given: Given, peer: Peer) -> Results:
    """A fee in advance is owed with the first line of a period, one in arrears with the last one."""
    in_advance = given.get("payment_term") == "in_advance"
    made = charge(Flat(number(given["price"])), given, in_advance=in_advance)
    due = given.get("line", "whole_period") in ("whole_period", "first_in_period" if in_advance else "last_in_period")
    total = rate(made, Measured(Decimal(0))).amount if due else Decimal(0)
    return {"amount": total, "total": total, "lines": 1 if total else 0}


def max_spend(given: Given, peer: Peer) -> Results:
    """What a maximum takes off a line: amounts are compared as money."""
    currency = given["currency"]
    amount, before, limit = (
        Money.from_major(number(given[key]), currency) for key in ("line_amount", "previously_billed", "max_spend")
    )
    made = charge(PerUnit(Decimal(1)), {"max_spend": str(limit.major())})
    so_far = rate(made, Measured((before + amount).major()))
    over = Money.from_major(-sum((each.amount for each in so_far.adjustments), Decimal(0)), currency)
    return {"discount": min(over, amount)}


def usage_discount(given: Given, peer: Peer) -> Results:
    free, already = number(given["usage_discount_units"]), number(given["already_rated_quantity"])
    quantity = number(given["quantity"])
    billed = after_free_units(quantity, free, already)
    return {
        "billed_quantity": billed,
        "already_rated_after_discount": after_free_units(already, free),
        "discounted_units": quantity - billed,
    }


def unit_conversion(given: Given, peer: Peer) -> Results:
    return {"billed_quantity": convert(number(given["quantity"]), conversion(given))}


def cumulative(given: Given, peer: Peer) -> Results:
    """Each run bills the whole period so far less what the runs before it billed (SEMANTICS 20)."""
    name = given["model"].removeprefix("cumulative_")
    made = charge(CUMULATED[name](given), given, free_units=number(given.get("free_units")))
    billed, totals = Money.zero(given.get("currency", "USD")), []
    for i, run in enumerate(given["runs"]):
        final = i == len(given["runs"]) - 1
        due = bill_so_far(made, Measured(number(run["cumulative_quantity"])), billed, final=final)
        totals.append(due)
        billed += due
    return {"run_totals": totals, "total": billed}


def _blocks(given: Given) -> Blocks:
    table = tuple(
        BlockTier(
            number(each["block_size"]),
            int(each["max_blocks"]) if each["max_blocks"] else None,
            number(each["price_per_block"]),
        )
        for each in given["blocks"]
    )
    return Blocks(table, top=given["model"].startswith("blocks_top_tier"))


def blocks(given: Given, peer: Peer) -> Results:
    if "units" not in given:
        return whole(rate(charge(_blocks(given), given), Measured(number(given["quantity"]))))
    amounts = [
        rate(charge(_blocks({**unit, "model": given["model"]}), given), Measured(number(unit["quantity"]))).amount
        for unit in given["units"]
    ]
    return {"amount": sum(amounts, Decimal(0))}


def capacity(given: Given, peer: Peer) -> Results:
    table = tuple(
        CapacityTier(
            tuple(CapacityLimit(unit, number(most)) for unit, most in tier["max"].items() if most is not None),
            number(tier["price"]),
        )
        for tier in given["tiers"]
    )
    cells = tuple(((unit,), number(peak)) for unit, peak in sorted(given["usage"].items()))
    return whole(rate(charge(Capacity(("unit",), table), given), Measured(Decimal(0), cells)))


def _unit(given: Given) -> PerUnit:
    return PerUnit(number(given["unit_price"]))


CUMULATED: Mapping[str, Callable[[Given], PriceModel]] = {
    "standard": _unit,
    "unit": _unit,
    "per_unit": _unit,
    "graduated": lambda given: Graduated(tiers(given)),
    "graduated_percentage": _percentage_tiers,
    "volume": lambda given: Volume(tiers(given)),
    "package": _package,
    "dynamic_multiplier": lambda given: Dynamic(number(given["multiplier"])),
    "dynamic": lambda given: Dynamic(number(given.get("multiplier", "1"))),
}
MODELS = {
    "standard": standard,
    "package": package,
    "package_count": package,
    "graduated": lambda given, peer: lines(Graduated(tiers(given)), given),
    "graduated_span": graduated_span,
    "graduated_tier_units": tier_units,
    "volume": lambda given, peer: lines(Volume(tiers(given)), given),
    "percentage": percentage,
    "percentage_per_transaction": percentage,
    "graduated_percentage": graduated_percentage,
    "graduated_percentage_tier_units": tier_units,
    "graduated_prorated": graduated_prorated,
    "dynamic": dynamic,
    "dynamic_multiplier": dynamic_multiplier,
    "flat_fee": flat_fee,
    "max_spend_discount": max_spend,
    "usage_discount": usage_discount,
    "unit_conversion": unit_conversion,
    "blocks_all_tiers": blocks,
    "blocks_all_tiers_multi_unit": blocks,
    "blocks_top_tier": blocks,
    "blocks_top_tier_multi_unit": blocks,
    "capacity": capacity,
    **{f"cumulative_{name}": cumulative for name in CUMULATED},
}
OPERATIONS = {"rate": rated}
