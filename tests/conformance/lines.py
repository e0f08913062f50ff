"""rating.json: a charge made of a case, and what one line of a period that may be billed in several tells."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.metering import Measured
from billing.money import EXACT, Money
from billing.price import Charge, Conversion, ConversionOperation, Flat, PriceModel, QuantityRounding, Volume
from billing.price_check import check
from billing.rating import Rated, rate
from billing.tax import TaxRate, taxes
from tests.conformance.figures import number, optional

Given = dict[str, Any]
Results = dict[str, Any]
NOTHING_RATED = Rated(Decimal(0), Decimal(0), ())
ROUNDINGS = {
    "none": QuantityRounding.NONE,
    "ceiling": QuantityRounding.UP,
    "floor": QuantityRounding.DOWN,
    "half_up": QuantityRounding.HALF_UP,
}


def charge(model: PriceModel, given: Given, **options: Any) -> Charge:
    """A charge as a catalogue would publish it: it must pass the catalogue's check."""
    made = Charge(
        key="charge",
        name="Charge",
        model=model,
        meter=None if isinstance(model, Flat) else "meter",
        minimum=optional(given.get("min_spend")),
        maximum=optional(given.get("max_spend")),
        discount_percent=number(given.get("percentage_discount")),
        conversion=conversion(given["unit_conversion"]) if "unit_conversion" in given else None,
        **options,
    )
    check(made, "charge")
    return made


def line(made: Charge, given: Given) -> Results:
    """One line of a period that may be billed in several: the total so far less what was billed (SEMANTICS 20).

    Where the case does not say what was billed before, it is what Tallybook would have billed for the quantity
    before; a volume price is billed by this peer on the last line only, so nothing was.
    """
    already, quantity = number(given.get("already_rated_quantity")), number(given.get("quantity"))
    place = given.get("line", "whole_period")
    so_far = rate(made, Measured(EXACT.add(already, quantity)), final=place in ("whole_period", "last_in_period"))
    is_first = place in ("whole_period", "first_in_period") and not already
    only_last = isinstance(made.model, Volume) and not already
    before = NOTHING_RATED if is_first or only_last else rate(made, Measured(already), final=False)
    currency = given.get("currency", "USD")
    billed = number(given["previously_billed"]) if "previously_billed" in given else before.amount
    total = Money.from_major(so_far.amount, currency) - Money.from_major(billed, currency)
    usage = Money.from_major(so_far.usage, currency) - Money.from_major(before.usage, currency)
    discounts = {
        name: Money.from_major(_taken(so_far, reason), currency) - Money.from_major(_taken(before, reason), currency)
        for name, reason in (("percentage", "discount of"), ("max_spend", "above the maximum"))
    }
    return {
        **whole(so_far, before),
        "total": total,
        "usage_amount": usage,
        "discounts": discounts,
        "discount": sum(discounts.values(), Money.zero(currency)),
        "minimum_spend": -_taken(so_far, "up to the minimum"),
        "lines": 1 if total else 0,
    }


def _taken(result: Rated, reason: str) -> Decimal:
    return sum((-each.amount for each in result.adjustments if each.reason.startswith(reason)), Decimal(0))


def whole(result: Rated, before: Rated = NOTHING_RATED) -> Results:
    """What a rated quantity tells: the amount and its breakdown, less the parts that were rated before."""
    then = {step.label: step for step in before.steps}
    parts = [
        (step.label, EXACT.subtract(step.quantity, old.quantity), EXACT.subtract(step.amount, old.amount))
        if (old := then.get(step.label))
        else (step.label, step.quantity, step.amount)
        for step in result.steps
    ]
    parts = [each for each in parts if not then or each[1] or each[2]]
    packages = sum((units for _, units, _ in parts), Decimal(0))
    return {
        "amount": result.amount,
        "amount_cents": Money.from_major(result.amount, "USD").minor,
        "unit_amount": Fraction(result.amount) / Fraction(result.quantity) if result.quantity else Decimal(0),
        "billed_quantity": result.quantity,
        "paid_units": result.quantity,
        "packages": packages,
        "blocks": packages,
        "tiers": [
            {"tier": tier_of(label), "units": units, "blocks": units, "amount": amount}
            for label, units, amount in parts
        ],
        "tier": tier_of(parts[-1][0]) if parts else None,
    }


def tier_of(label: str) -> int:
    return int(label.removeprefix("tier ")) if label.startswith("tier ") else 1


def with_tax(results: Results, given: Given) -> Results:
    if "tax_percent" not in given:
        return results

    net = Money.from_major(results["amount"], "USD")
    tax = taxes([TaxRate(code="tax", percent=number(given["tax_percent"]))], [net], "USD")[0].amount
    return {**results, "total_with_tax": net + tax, "total_with_tax_cents": (net + tax).minor}


def lines(model: PriceModel, given: Given) -> Results:
    return with_tax(line(charge(model, given), given), given)


def conversion(given: Given) -> Conversion:
    rounding = ROUNDINGS[given.get("rounding") or "none"]
    return Conversion(
        number(given["factor"]), ConversionOperation(given["operation"]), rounding, given.get("precision") or 0
    )
