"""Invoicing: from a closed period, its price book and its quantities to the lines of an invoice.

`BillingRun` is every input of an invoice but the quantities, and those are fixed by its cut; so an invoice is
a function of the log (promise 3). `needs` says which quantities a run asks for, `lines` rates them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from billing.catalog import Plan, PriceBookPublished
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.metering import NOTHING, Measured, Meter
from billing.money import Money
from billing.period import Period
from billing.price import Charge
from billing.proration import fraction
from billing.quantity import regrouped
from billing.rated import figure, price_figure
from billing.rating import Rated, rate
from billing.tax import TaxRate

RATING_ENGINE = "1"  # changes whenever the same inputs could give another amount; frozen on each invoice (SEMANTICS 25)


class InvoiceReason(StrEnum):
    """Why an invoice was made."""

    PERIOD_END = "period_end"
    SUBSCRIPTION_START = "subscription_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPosition:
    """A place in one partition of the usage log."""

    partition: int
    """The partition."""
    offset: int
    """First offset that is not included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The two bounds that close a period (SEMANTICS 16)."""

    until: datetime
    """Event time, exclusive."""
    positions: tuple[PartitionPosition, ...]
    """Position in the usage log, exclusive, for each partition of the tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledSpan:
    """A span that is billed, and the full period whose price it is a part of."""

    period: Period
    """What is billed."""
    whole: Period
    """The full billing period around it; equal to `period` unless the span is partial."""

    @property
    def share(self) -> Fraction:
        """The exact part of the full price that the span costs (SEMANTICS 11)."""
        return fraction(self.period, self.whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatePeriod:
    """A closed period that is rated again, for usage that came after its last cut."""

    span: BilledSpan
    """The closed period."""
    plan: str
    """The plan it was billed under."""
    price_book_version: int
    """The price book it was billed under."""
    since: tuple[PartitionPosition, ...]
    """Up to where it is already billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedFee:
    """A fee paid in advance whose service ends early: what was billed for it, and for which part it is given back."""

    charge: str
    """Key of the charge."""
    billed: Money
    """What was billed for it, after discounts, before tax."""
    period: Period
    """What it was billed for."""
    unused: Period
    """The part that is not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingRun:
    """One invoice to be made, with every input but the quantities, which its cut fixes."""

    invoice_id: InvoiceId
    """The invoice; derived from subscription, reason and period."""
    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who pays."""
    reason: InvoiceReason = InvoiceReason.PERIOD_END
    """Why it is made."""
    currency: str
    """ISO 4217 code."""
    plan: str
    """Key of the plan."""
    price_book_version: int
    """Version of the price book that rates it."""
    rating_engine: str
    """Version of the arithmetic that rates it."""
    arrears: BilledSpan | None = None
    """The period whose usage is billed; null at a subscription's start."""
    advance: BilledSpan | None = None
    """The period whose fees are billed in advance; null at a subscription's end."""
    unused: tuple[UnusedFee, ...] = ()
    """Fees given back because the subscription ended within a period."""
    late: tuple[LatePeriod, ...] = ()
    """Earlier periods in which usage may have arrived since."""
    cut: Cut
    """Bounds of the usage that is billed."""
    taxes: tuple[TaxRate, ...] = ()
    """Tax rates at the time."""


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


@dataclass(frozen=True, slots=True)
class Need:
    """A quantity that a run asks for: what `meter` measured in `period` below `positions`."""

    meter: Meter
    period: Period
    positions: tuple[PartitionPosition, ...]


Books = Mapping[int, PriceBookPublished]
Quantities = Mapping[Need, Measured]


def needs(run: BillingRun, books: Books, late: Sequence[LatePeriod]) -> list[Need]:
    """The quantities that `lines` will look up. `late` are those of `run.late` in which usage did arrive."""
    wanted: list[Need] = []
    if run.arrears:
        wanted += _needs(run.arrears.period, run.cut.positions, books[run.price_book_version], run.plan)
    for each in late:
        book = books[each.price_book_version]
        wanted += _needs(each.span.period, each.since, book, each.plan)
        wanted += _needs(each.span.period, run.cut.positions, book, each.plan)
    return list(dict.fromkeys(wanted))


def lines(run: BillingRun, books: Books, late: Sequence[LatePeriod], quantities: Quantities) -> tuple[RatedLine, ...]:
    """The lines of `run`: usage of the closed period, its commitment, fees in advance, then corrections."""
    book = books[run.price_book_version]
    plan = book.plan(run.plan)
    made: list[RatedLine] = []
    if run.arrears:
        made += arrears_lines(plan, book, run.arrears, lambda need: quantities[need], run.cut.positions)
    if run.advance:
        made += advance_lines(plan, run.advance)
    for each in late:
        made += _late_lines(each, run, books[each.price_book_version], quantities)
    made += [_unused_line(fee, plan) for fee in run.unused]
    return tuple(made)


def advance_lines(plan: Plan, span: BilledSpan) -> list[RatedLine]:
    """Fees billed at the start of `span`."""
    return [_fee_line(charge, span, plan.currency) for charge in plan.charges if charge.in_advance]


def arrears_lines(
    plan: Plan,
    book: PriceBookPublished,
    span: BilledSpan,
    measured: Callable[[Need], Measured],
    positions: tuple[PartitionPosition, ...],
) -> list[RatedLine]:
    """What is billed at the end of `span`: usage, fees in arrears, and what is missing to the commitment."""
    meters = {meter.key: meter for meter in book.meters}
    made: list[RatedLine] = []
    exact = Fraction(0)
    for charge in plan.charges:
        if charge.meter is None:
            exact += fee(charge, span)
            if not charge.in_advance:
                made.append(_fee_line(charge, span, plan.currency))
            continue
        meter = meters[charge.meter]
        quantity = regrouped(measured(Need(meter, span.period, positions)), meter.dimensions, charge.dimensions)
        rated = rate(charge, quantity)
        exact += Fraction(rated.amount)
        made.append(_usage_line(charge, span, quantity, rated, plan.currency))
    if plan.minimum_commitment is not None:
        made += _shortfall(plan, span, exact)
    return made


def fee(charge: Charge, span: BilledSpan) -> Fraction:
    """What a charge without a meter costs for `span`, exact."""
    full = Fraction(rate(charge, NOTHING).amount)
    return full * span.share if charge.prorate else full


def _needs(period: Period, positions: tuple[PartitionPosition, ...], book: PriceBookPublished, plan: str) -> list[Need]:
    meters = {meter.key: meter for meter in book.meters}
    used = dict.fromkeys(charge.meter for charge in book.plan(plan).charges if charge.meter)
    return [Need(meters[key], period, positions) for key in used]


def _fee_line(charge: Charge, span: BilledSpan, currency: str) -> RatedLine:
    text = rate(charge, NOTHING).text
    if charge.prorate and span.share != 1:
        text = f"{text} x {_share_text(span)}"
    return RatedLine(
        kind=LineKind.FEE,
        charge=charge.key,
        description=charge.name,
        period=span.period,
        amount=Money.from_major(fee(charge, span), currency),
        explanation=text,
    )


def _usage_line(charge: Charge, span: BilledSpan, quantity: Measured, rated: Rated, currency: str) -> RatedLine:
    return RatedLine(
        kind=LineKind.USAGE,
        charge=charge.key,
        description=charge.name,
        period=span.period,
        quantity=quantity.total,
        amount=Money.from_major(rated.amount, currency),
        explanation=rated.text,
    )


def _shortfall(plan: Plan, span: BilledSpan, exact: Fraction) -> list[RatedLine]:
    """One line for what is missing to the commitment, from exact amounts, rounded by itself (SEMANTICS 4, 21)."""
    assert plan.minimum_commitment is not None
    committed = Fraction(plan.minimum_commitment) * span.share
    if committed <= exact:
        return []
    amount = Money.from_major(committed - exact, plan.currency)
    share = "" if span.share == 1 else f" x {_share_text(span)}"
    return [
        RatedLine(
            kind=LineKind.COMMITMENT,
            charge="minimum_commitment",
            description="Minimum commitment, shortfall",
            period=span.period,
            amount=amount,
            explanation=f"{price_figure(plan.minimum_commitment)}{share} - {price_figure(_shown(exact))} charged",
        )
    ]


def _late_lines(late: LatePeriod, run: BillingRun, book: PriceBookPublished, quantities: Quantities) -> list[RatedLine]:
    """Rate the old period up to both cuts and bill the difference per charge, which may be negative (SEMANTICS 16)."""
    plan = book.plan(late.plan)

    def rated(positions: tuple[PartitionPosition, ...]) -> dict[str, RatedLine]:
        made = arrears_lines(plan, book, late.span, lambda need: quantities[need], positions)
        return {line.charge: line for line in made}

    before, after = rated(late.since), rated(run.cut.positions)
    made = []
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key), after.get(key)
        line = now or was
        assert line is not None
        difference = (now.amount if now else Money.zero(run.currency)) - (
            was.amount if was else Money.zero(run.currency)
        )
        if difference.minor == 0:
            continue
        quantity = None
        if line.quantity is not None:
            quantity = line.quantity - (was.quantity if was and was.quantity is not None else Decimal(0))
        made.append(
            RatedLine(
                kind=LineKind.LATE_USAGE,
                charge=key,
                description=f"{line.description}, late",
                period=late.span.period,
                quantity=quantity,
                amount=difference,
                explanation=f"{now.explanation if now else '0'}, less {was.amount if was else '0'} already billed",
            )
        )
    return made


def _unused_line(unused: UnusedFee, plan: Plan) -> RatedLine:
    """The part of a fee paid in advance that is given back, from what was really billed (SEMANTICS 22)."""
    part = fraction(unused.unused, unused.period)
    name = next((charge.name for charge in plan.charges if charge.key == unused.charge), unused.charge)
    return RatedLine(
        kind=LineKind.UNUSED_FEE,
        charge=unused.charge,
        description=f"{name}, unused time",
        period=unused.unused,
        amount=-Money.from_major(Fraction(unused.billed.major()) * part, unused.billed.currency),
        explanation=f"-{unused.billed} x {part.numerator:,}/{part.denominator:,}",
    )


def _share_text(span: BilledSpan) -> str:
    seconds = [figure(_shown(Fraction(period.seconds))) for period in (span.period, span.whole)]
    return f"{seconds[0]} of {seconds[1]} s"


def _shown(number: Fraction) -> Decimal:
    """`number` to six decimals, for people; no figure is computed from it."""
    return Decimal(round(number * 1_000_000)).scaleb(-6)
