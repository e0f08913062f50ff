"""One line of an invoice before discounts and tax: what it bills, its amount, and the arithmetic as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.aggregation import to_quantity
from billing.measuring import Need as Need
from billing.metering import NOTHING, Aggregation, Measured, Meter
from billing.money import Money
from billing.partial import WHOLE, Part, promises
from billing.period import Period
from billing.price import Committed
from billing.pricing import Priced
from billing.proration import Proration, ProrationUnit, local_days, share
from billing.quantity import regrouped
from billing.rated import figure
from billing.rating import Rated, rate
from billing.recurring import prorated_units
from billing.run import PartitionPosition, UnusedFee
from billing.segments import BilledSpan, ChargeSpan


class LineKind(StrEnum):
    """What a line bills."""

    USAGE = "usage"
    FEE = "fee"
    COMMITMENT = "commitment"
    LATE_USAGE = "late_usage"
    UNUSED_FEE = "unused_fee"


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedLine:
    """One line before discounts and tax."""

    kind: LineKind = LineKind.USAGE
    """What it bills."""
    charge: str
    """Key of the charge, or `minimum_commitment`."""
    description: str
    """For people."""
    period: Period
    """The service period; for late usage the original one."""
    quantity: Decimal | None = None
    """What was measured; null for fees."""
    amount: Money
    """Rounded once, half up (SEMANTICS 4)."""
    explanation: str
    """The arithmetic as text."""
    plan: str = ""
    """Key of the plan that charges it; empty in lines of the first rating engine."""


Quantities = Mapping[Need, Measured]


def fee(span: ChargeSpan) -> Fraction:
    """What a charge without a meter costs for its span, exact."""
    return Fraction(rate(span.charge, NOTHING).amount) * span.item.quantity * span.share


def fee_line(span: ChargeSpan, amount: Money, label: str = "") -> RatedLine:
    text = rate(span.charge, NOTHING).text
    if span.item.quantity != 1:
        text = f"{span.item.quantity:,} x {f'({text})' if ' ' in text else text}"
    if span.share != 1:
        text = f"{text} x {share_text(span.span, span.plan.proration)}"
    return RatedLine(
        kind=LineKind.FEE,
        charge=span.charge.key,
        description=f"{label}{span.charge.name}",
        period=span.span.period,
        amount=amount,
        explanation=text,
        plan=span.plan.key,
    )


def part_of(span: ChargeSpan, engine: str) -> Part:
    """By which part the promises of a usage charge hold; the first engine held them whole."""
    if engine == "1" or span.share == 1 or not promises(span.charge):
        return WHOLE
    return Part(span.share, share_text(span.span, span.plan.proration))


def usage_line(span: ChargeSpan, quantity: Measured, rated: Rated, part: Part, currency: str, label: str) -> RatedLine:
    text = rated.said(part.price)
    if part is not WHOLE and isinstance(span.charge.model, Committed):
        text = f"{text}, capacity x {part.words}"
    return RatedLine(
        kind=LineKind.USAGE,
        charge=span.charge.key,
        description=f"{label}{span.charge.name}",
        period=span.span.period,
        quantity=quantity.total if quantity.held is None else to_quantity(prorated_units(quantity.held)),
        amount=Money.from_major(rated.amount, currency),
        explanation=text,
        plan=span.plan.key,
    )


def need_of(span: ChargeSpan, meter: Meter, positions: tuple[PartitionPosition, ...]) -> Need:
    """What a charge asks of its meter: a level counts for its share of the full period, unless nothing is prorated."""
    period, whole = span.span.period, span.span.whole
    is_average = meter.aggregation is Aggregation.WEIGHTED_SUM
    if not span.prorated or not (is_average or meter.is_level):
        return Need(meter, period, positions)
    # An average is measured by elapsed time; what it costs to hold a unit is counted as the plan says.
    rule = ProrationUnit.SECOND if is_average else ProrationUnit(span.plan.proration)
    return Need(meter, period, positions, whole, not is_average, rule, span.span.zone)


def measured_line(
    span: ChargeSpan, quantities: Quantities, positions: tuple[PartitionPosition, ...], engine: str, currency: str
) -> RatedLine:
    assert span.item.meter is not None
    measured = quantities[need_of(span, span.item.meter, positions)]
    quantity = regrouped(measured, span.item.meter.dimensions, span.charge.dimensions)
    part = part_of(span, engine)
    return usage_line(span, quantity, rate(span.charge, quantity, part=part), part, currency, "")


def unused_part(unused: UnusedFee, plan: Priced, zone: str) -> Part:
    """Which part of a fee is given back, by the rule of the plan under which it was billed."""
    exact = share(unused.unused, unused.period, plan.proration, zone)
    if plan.proration is Proration.DAY:
        return Part(exact, f"{local_days(unused.unused, zone)} of {local_days(unused.period, zone)} days")
    return Part(exact, f"{exact.numerator:,}/{exact.denominator:,}")


def unused_line(unused: UnusedFee, plan: str, name: str, amount: Money, part: Part) -> RatedLine:
    return RatedLine(
        kind=LineKind.UNUSED_FEE,
        charge=unused.charge,
        description=f"{name}, unused time",
        period=unused.unused,
        amount=amount,
        explanation=part.said(f"-{unused.billed}"),
        plan=plan,
    )


def share_text(span: BilledSpan, rule: Proration) -> str:
    if rule is Proration.DAY:
        return f"{local_days(span.period, span.zone)} of {local_days(span.whole, span.zone)} days"
    part, whole = (figure(shown(Fraction(period.seconds))) for period in (span.period, span.whole))
    return f"{part} of {whole} s"


def shown(number: Fraction) -> Decimal:
    """`number` to six decimals, for people; no figure is computed from it."""
    return Decimal(round(number * 1_000_000)).scaleb(-6)
