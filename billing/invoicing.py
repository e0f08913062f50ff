"""Invoicing: from a closed period, its prices and its quantities to the lines of an invoice.

`needs` says which quantities a run asks for, `lines` rates them. A period whose pricing changed is rated charge by
charge, each over the span in which it went on unchanged:

    Feb 1            Feb 15               Mar 1
    |---- Starter ----|####  credit  ####|      its fee was paid in advance: the unused part is given back
                      |------- Pro ------|      its fee is charged for the rest, its tiers start at zero

Prorated fees of such a period are parts of one whole: their exact sum is rounded once, and split by largest remainder,
so that no chain of changes loses or makes a cent (SEMANTICS 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cache
from itertools import groupby

from billing.aggregation import to_quantity
from billing.measuring import Need as Need
from billing.metering import NOTHING, Aggregation, Measured, Meter
from billing.money import Money
from billing.partial import WHOLE, Part, promises
from billing.period import Period
from billing.price import Committed, Percentage
from billing.pricing import Books, Priced, Pricing, priced
from billing.proration import Proration, ProrationUnit, local_days, settled, share
from billing.quantity import regrouped
from billing.rated import figure, price_figure
from billing.rating import Rated, rate
from billing.recurring import prorated_units
from billing.run import BillingRun as BillingRun
from billing.run import Cut as Cut
from billing.run import InvoiceReason as InvoiceReason
from billing.run import LatePeriod as LatePeriod
from billing.run import PartitionPosition as PartitionPosition
from billing.run import UnusedFee as UnusedFee
from billing.segments import BilledSpan, ChargeSpan, Segment, charge_spans, union

RATING_ENGINE = "2"  # changes whenever the same inputs could give another amount; frozen on each invoice (SEMANTICS 25)
RATING_ENGINES = ("1", "2")  # all that can still be rated: 1 promises a whole minimum, maximum or commitment to a part
COMMITMENT = "minimum_commitment"


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


def versions(run: BillingRun, late: Sequence[LatePeriod]) -> set[int]:
    """The price-book versions that rating `run` takes."""
    segments = (*run.segments, *(segment for each in late for segment in each.segments))
    pricings = [segment.pricing for segment in segments]
    pricings += [run.advance.pricing] if run.advance else []
    pricings += [run.prepaid] if run.prepaid else []
    return {pricing.price_book_version for pricing in pricings}


def needs(run: BillingRun, books: Books, late: Sequence[LatePeriod]) -> list[Need]:
    """The quantities that `lines` will look up. `late` are those of `run.late` in which usage did arrive."""
    resolve = _resolver(books)
    wanted = _needs(charge_spans(run.segments, run.prepaid, resolve), run.cut.positions)
    for each in late:
        spans = charge_spans(each.segments, None, resolve)
        wanted += _needs(spans, each.since) + _needs(spans, run.cut.positions)
    return list(dict.fromkeys(wanted))


def carries_over(late: LatePeriod, books: Books) -> bool:
    """Whether usage before a closed period counts in it, too: a charge measures what is carried over into it."""
    spans = charge_spans(late.segments, None, _resolver(books))
    return any(span.item.meter is not None and span.item.meter.carries_over for span in spans)


def one_by_one(run: BillingRun, books: Books, late: Sequence[LatePeriod]) -> set[str]:
    """Meters of which a charge prices each event by itself; all others are read by windows, far faster."""
    resolve = _resolver(books)
    spans = [
        span
        for segments in (run.segments, *(each.segments for each in late))
        for span in charge_spans(segments, None, resolve)
    ]
    return {span.item.meter.key for span in spans if span.item.meter and isinstance(span.charge.model, Percentage)}


def lines(run: BillingRun, books: Books, late: Sequence[LatePeriod], quantities: Quantities) -> tuple[RatedLine, ...]:
    """The lines of `run`: usage of the closed period, its commitment, fees in advance, then corrections."""
    resolve = _resolver(books)
    made: list[RatedLine] = []
    given_back: list[RatedLine] = []
    if run.segments:
        period = _Closed(run.segments, run.prepaid, run.unused, run.currency, resolve, run.rating_engine)
        made += period.lines(quantities, run.cut.positions)
        given_back = period.given_back()
    if run.advance:
        plan = resolve(run.advance.pricing)
        fees = [ChargeSpan(item, plan, run.advance.span, False) for item in plan.charges if item.charge.in_advance]
        made += [_fee_line(each, Money.from_major(fee(each), run.currency)) for each in fees]
    for each in late:
        made += _late_lines(each, run, resolve, quantities)
    made += given_back
    if run.rating_engine == "1":
        made = [replace(each, plan="") for each in made]
    return tuple(made)


def fee(span: ChargeSpan) -> Fraction:
    """What a charge without a meter costs for its span, exact."""
    return Fraction(rate(span.charge, NOTHING).amount) * span.item.quantity * span.share


@dataclass(frozen=True, slots=True)
class _Closed:
    """A closed period that is billed: its charges, each for as long as it went on, and the fees it gives back."""

    segments: tuple[Segment, ...]
    prepaid: Pricing | None
    unused: tuple[UnusedFee, ...]
    currency: str
    resolve: Callable[[Pricing], Priced]
    engine: str

    def lines(self, quantities: Quantities, positions: tuple[PartitionPosition, ...]) -> list[RatedLine]:
        """Usage and fees in the order of the period; those of each plan are followed by its commitment's shortfall."""
        spans = charge_spans(self.segments, self.prepaid, self.resolve)
        fees, _ = self._amounts(spans)
        made: list[RatedLine] = []
        for _, group in groupby(self.segments, key=lambda segment: segment.pricing.plan):
            stay = tuple(group)
            exact = Fraction(0)
            for each in spans:
                if each.span.period.start not in union(stay).period:
                    continue
                if each.item.meter is None:
                    exact += fee(each)
                    made += [_fee_line(each, fees[each], self._label(each.plan))] if each in fees else []
                    continue
                measured = quantities[_need(each, each.item.meter, positions)]
                quantity = regrouped(measured, each.item.meter.dimensions, each.charge.dimensions)
                part = self._part(each)
                rated = rate(each.charge, quantity, part=part)
                exact += Fraction(rated.amount)
                made.append(_usage_line(each, quantity, rated, part, self.currency, self._label(each.plan)))
            made += self._shortfall(stay, exact)
        return made

    def _part(self, span: ChargeSpan) -> Part:
        """By which part the promises of a usage charge hold; the first engine held them whole."""
        if self.engine == "1" or span.share == 1 or not promises(span.charge):
            return WHOLE
        return Part(span.share, _share_text(span.span, span.plan.proration))

    def given_back(self) -> list[RatedLine]:
        """The parts of fees paid in advance that were not used, from what was really billed (SEMANTICS 22)."""
        if self.prepaid is None:
            return []
        plan = self.resolve(self.prepaid)
        names = {item.charge.key: item.charge.name for item in plan.charges}
        _, amounts = self._amounts(charge_spans(self.segments, self.prepaid, self.resolve))
        return [
            _unused_line(each, plan.key, f"{self._label(plan)}{names[each.charge]}", amount, self._unused_part(each))
            for each, amount in zip(self.unused, amounts, strict=True)
        ]

    def _amounts(self, spans: Sequence[ChargeSpan]) -> tuple[dict[ChargeSpan, Money], Sequence[Money]]:
        """What each fee of the period costs that is not paid yet, and what each unused one gives back (below zero)."""
        billed = [each for each in spans if each.item.meter is None and not each.prepaid]
        credits = [-Fraction(each.billed.major()) * self._unused_part(each).share for each in self.unused]
        if len(self.segments) == 1:
            alone = [Money.from_major(credit, self.currency) for credit in credits]
            return {each: Money.from_major(fee(each), self.currency) for each in billed}, alone
        period = union(self.segments).period
        parts = [each for each in billed if each.prorated and each.span.period != period]
        shared = settled([*(fee(each) for each in parts), *credits], self.currency)
        amounts = {each: Money.from_major(fee(each), self.currency) for each in billed}
        amounts.update(zip(parts, shared, strict=False))
        return amounts, shared[len(parts) :]

    def _unused_part(self, unused: UnusedFee) -> Part:
        """Which part of a fee is given back, by the rule of the plan under which it was billed."""
        assert self.prepaid is not None
        rule, zone = self.resolve(self.prepaid).proration, self.segments[0].span.zone
        exact = share(unused.unused, unused.period, rule, zone)
        if rule is Proration.DAY:
            return Part(exact, f"{local_days(unused.unused, zone)} of {local_days(unused.period, zone)} days")
        return Part(exact, f"{exact.numerator:,}/{exact.denominator:,}")

    def _shortfall(self, stay: Sequence[Segment], exact: Fraction) -> list[RatedLine]:
        """One line for what one plan's charges miss to its commitment, from exact amounts (SEMANTICS 4, 21)."""
        rule = self.resolve(stay[0].pricing).proration
        parts = [(self.resolve(each.pricing).minimum_commitment, each.span) for each in stay]
        if rule is Proration.NONE:
            parts = parts[-1:]  # in full, as promised at the end of the stay
        owed = [(amount, span) for amount, span in parts if amount is not None]
        committed = sum((Fraction(amount) * span.share(rule) for amount, span in owed), Fraction(0))
        if not owed or committed <= exact:
            return []
        whole = union(stay)
        if len({amount for amount, _ in parts}) == 1:
            owed = [(owed[0][0], whole)]
        words = [
            price_figure(amount) if span.share(rule) == 1 else f"{price_figure(amount)} x {_share_text(span, rule)}"
            for amount, span in owed
        ]
        return [
            RatedLine(
                kind=LineKind.COMMITMENT,
                charge=COMMITMENT,
                description=f"{self._label(self.resolve(stay[0].pricing))}Minimum commitment, shortfall",
                period=whole.period,
                amount=Money.from_major(committed - exact, self.currency),
                explanation=f"{' + '.join(words)} - {price_figure(_shown(exact))} charged",
                plan=stay[0].pricing.plan,
            )
        ]

    def _label(self, plan: Priced) -> str:
        """What tells the lines of several plans apart."""
        plans = {each.pricing.plan for each in self.segments} | ({self.prepaid.plan} if self.prepaid else set())
        return f"{plan.name}: " if len(plans) > 1 else ""


def _resolver(books: Books) -> Callable[[Pricing], Priced]:
    """`priced` under `books`, once for each pricing."""
    return cache(lambda pricing: priced(pricing, books))


def _needs(spans: Sequence[ChargeSpan], positions: tuple[PartitionPosition, ...]) -> list[Need]:
    return [_need(each, each.item.meter, positions) for each in spans if each.item.meter is not None]


def _need(span: ChargeSpan, meter: Meter, positions: tuple[PartitionPosition, ...]) -> Need:
    """What a charge asks of its meter: a level counts for its share of the full period, unless nothing is prorated."""
    period, whole = span.span.period, span.span.whole
    is_average = meter.aggregation is Aggregation.WEIGHTED_SUM
    if not span.prorated or not (is_average or meter.is_level):
        return Need(meter, period, positions)
    # An average is measured by elapsed time; what it costs to hold a unit is counted as the plan says.
    rule = ProrationUnit.SECOND if is_average else ProrationUnit(span.plan.proration)
    return Need(meter, period, positions, whole, not is_average, rule, span.span.zone)


def _fee_line(span: ChargeSpan, amount: Money, label: str = "") -> RatedLine:
    text = rate(span.charge, NOTHING).text
    if span.item.quantity != 1:
        text = f"{span.item.quantity:,} x {f'({text})' if ' ' in text else text}"
    if span.share != 1:
        text = f"{text} x {_share_text(span.span, span.plan.proration)}"
    return RatedLine(
        kind=LineKind.FEE,
        charge=span.charge.key,
        description=f"{label}{span.charge.name}",
        period=span.span.period,
        amount=amount,
        explanation=text,
        plan=span.plan.key,
    )


def _usage_line(span: ChargeSpan, quantity: Measured, rated: Rated, part: Part, currency: str, label: str) -> RatedLine:
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


def _late_lines(
    late: LatePeriod, run: BillingRun, resolve: Callable[[Pricing], Priced], quantities: Quantities
) -> list[RatedLine]:
    """Rate the old period up to both cuts and bill the difference per charge, which may be negative (SEMANTICS 16)."""
    period = _Closed(late.segments, None, (), run.currency, resolve, late.rating_engine)
    before, after = (
        {(line.charge, line.period): line for line in period.lines(quantities, positions)}
        for positions in (late.since, run.cut.positions)
    )
    made = []
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key), after.get(key)
        line = now or was
        assert line is not None
        zero = Money.zero(run.currency)
        difference = (now.amount if now else zero) - (was.amount if was else zero)
        if difference.minor == 0:
            continue
        quantity = None
        if line.quantity is not None:
            quantity = line.quantity - (was.quantity if was and was.quantity is not None else Decimal(0))
        made.append(
            RatedLine(
                kind=LineKind.LATE_USAGE,
                charge=line.charge,
                description=f"{line.description}, late",
                period=line.period,
                quantity=quantity,
                amount=difference,
                explanation=f"{now.explanation if now else '0'}, less {was.amount if was else '0'} already billed",
                plan=line.plan,
            )
        )
    return made


def _unused_line(unused: UnusedFee, plan: str, name: str, amount: Money, part: Part) -> RatedLine:
    return RatedLine(
        kind=LineKind.UNUSED_FEE,
        charge=unused.charge,
        description=f"{name}, unused time",
        period=unused.unused,
        amount=amount,
        explanation=part.said(f"-{unused.billed}"),
        plan=plan,
    )


def _share_text(span: BilledSpan, rule: Proration) -> str:
    if rule is Proration.DAY:
        return f"{local_days(span.period, span.zone)} of {local_days(span.whole, span.zone)} days"
    part, whole = (figure(_shown(Fraction(period.seconds))) for period in (span.period, span.whole))
    return f"{part} of {whole} s"


def _shown(number: Fraction) -> Decimal:
    """`number` to six decimals, for people; no figure is computed from it."""
    return Decimal(round(number * 1_000_000)).scaleb(-6)
