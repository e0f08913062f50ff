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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import groupby

from billing.metering import NOTHING
from billing.money import Money
from billing.partial import Part
from billing.period import Alignment, multiple
from billing.price import Percentage
from billing.pricing import Books, Priced, Pricing, priced
from billing.proration import Proration, settled
from billing.quantity import regrouped
from billing.rated import price_figure
from billing.rated_line import LineKind as LineKind
from billing.rated_line import Need as Need
from billing.rated_line import Quantities as Quantities
from billing.rated_line import RatedLine as RatedLine
from billing.rated_line import fee as fee
from billing.rated_line import (
    fee_line,
    measured_line,
    need_of,
    part_of,
    share_text,
    shown,
    unused_line,
    unused_part,
    usage_line,
)
from billing.rating import rate
from billing.run import BillingRun as BillingRun
from billing.run import ChargePeriod
from billing.run import Cut as Cut
from billing.run import InvoiceReason as InvoiceReason
from billing.run import LatePeriod as LatePeriod
from billing.run import PartitionPosition as PartitionPosition
from billing.run import UnusedFee as UnusedFee
from billing.segments import ChargeSpan, Segment, charge_spans, union

RATING_ENGINE = "2"  # changes whenever the same inputs could give another amount; frozen on each invoice (SEMANTICS 25)
RATING_ENGINES = ("1", "2")  # all that can still be rated: 1 promises a whole minimum, maximum or commitment to a part
COMMITMENT = "minimum_commitment"


def versions(run: BillingRun, late: Sequence[LatePeriod]) -> set[int]:
    """The price-book versions that rating `run` takes."""
    segments = (*run.segments, *(segment for each in late for segment in each.segments))
    pricings = [segment.pricing for segment in segments]
    pricings += [each.pricing for each in (*run.charges, *(own for each in late for own in each.charges))]
    pricings += [each.pricing for each in run.unused if each.pricing]
    pricings += [run.advance.pricing] if run.advance else []
    pricings += [run.prepaid] if run.prepaid else []
    return {pricing.price_book_version for pricing in pricings}


def needs(run: BillingRun, books: Books, late: Sequence[LatePeriod]) -> list[Need]:
    """The quantities that `lines` will look up. `late` are those of `run.late` in which usage did arrive."""
    resolve = _resolver(books)
    wanted = _needs(charge_spans(run.segments, run.prepaid, resolve), run.cut.positions)
    wanted += _needs(_own_spans(run.charges, resolve), run.cut.positions)
    for each in late:
        spans = [*charge_spans(each.segments, None, resolve), *_own_spans(each.charges, resolve)]
        wanted += _needs(spans, each.since) + _needs(spans, run.cut.positions)
    return list(dict.fromkeys(wanted))


def carries_over(late: LatePeriod, books: Books) -> bool:
    """Whether usage before a closed period counts in it, too: a charge measures what is carried over into it."""
    resolve = _resolver(books)
    spans = [*charge_spans(late.segments, None, resolve), *_own_spans(late.charges, resolve)]
    return any(span.item.meter is not None and span.item.meter.carries_over for span in spans)


def one_by_one(run: BillingRun, books: Books, late: Sequence[LatePeriod]) -> set[str]:
    """Meters of which a charge prices each event by itself; all others are read by windows, far faster."""
    resolve = _resolver(books)
    spans = [
        span
        for segments in (run.segments, *(each.segments for each in late))
        for span in charge_spans(segments, None, resolve)
    ]
    spans += [
        span for charges in (run.charges, *(one.charges for one in late)) for span in _own_spans(charges, resolve)
    ]
    return {span.item.meter.key for span in spans if span.item.meter and isinstance(span.charge.model, Percentage)}


def lines(run: BillingRun, books: Books, late: Sequence[LatePeriod], quantities: Quantities) -> tuple[RatedLine, ...]:
    """The lines of `run`: usage of the closed period, its commitment, fees in advance, then corrections."""
    resolve = _resolver(books)
    made: list[RatedLine] = []
    given_back: list[RatedLine] = []
    if run.segments:
        unused = tuple(each for each in run.unused if each.pricing is None)
        period = _Closed(run.segments, run.prepaid, unused, run.currency, resolve, run.rating_engine)
        made += period.lines(quantities, run.cut.positions)
        given_back = period.given_back()
    if run.advance:
        plan = resolve(run.advance.pricing)
        fees = [ChargeSpan(item, plan, run.advance.span, False) for item in plan.charges if item.in_advance]
        made += [fee_line(each, Money.from_major(fee(each), run.currency)) for each in fees]
    own, returned = _own_lines(run, resolve, quantities)
    made, given_back = [*made, *own], [*given_back, *returned]
    for each in late:
        made += _late_lines(each, run, resolve, quantities)
    made += given_back
    if run.rating_engine == "1":
        made = [replace(each, plan="") for each in made]
    return tuple(made)


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
                    made += [fee_line(each, fees[each], self._label(each.plan))] if each in fees else []
                    continue
                measured = quantities[need_of(each, each.item.meter, positions)]
                quantity = regrouped(measured, each.item.meter.dimensions, each.charge.dimensions)
                part = part_of(each, self.engine)
                rated = rate(each.charge, quantity, part=part)
                exact += Fraction(rated.amount)
                made.append(usage_line(each, quantity, rated, part, self.currency, self._label(each.plan)))
            made += self._shortfall(stay, exact + sum(_accrued(each, self.resolve) for each in stay))
        return made

    def given_back(self) -> list[RatedLine]:
        """The parts of fees paid in advance that were not used, from what was really billed (SEMANTICS 22)."""
        if self.prepaid is None:
            return []
        plan = self.resolve(self.prepaid)
        names = {item.charge.key: item.charge.name for item in plan.charges}
        _, amounts = self._amounts(charge_spans(self.segments, self.prepaid, self.resolve))
        return [
            unused_line(each, plan.key, f"{self._label(plan)}{names[each.charge]}", amount, self._unused_part(each))
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
        assert self.prepaid is not None
        return unused_part(unused, self.resolve(self.prepaid), self.segments[0].span.zone)

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
            price_figure(amount) if span.share(rule) == 1 else f"{price_figure(amount)} x {share_text(span, rule)}"
            for amount, span in owed
        ]
        return [
            RatedLine(
                kind=LineKind.COMMITMENT,
                charge=COMMITMENT,
                description=f"{self._label(self.resolve(stay[0].pricing))}Minimum commitment, shortfall",
                period=whole.period,
                amount=Money.from_major(committed - exact, self.currency),
                explanation=f"{' + '.join(words)} - {price_figure(shown(exact))} charged",
                plan=stay[0].pricing.plan,
            )
        ]

    def _label(self, plan: Priced) -> str:
        """What tells the lines of several plans apart."""
        plans = {each.pricing.plan for each in self.segments} | ({self.prepaid.plan} if self.prepaid else set())
        return f"{plan.name}: " if len(plans) > 1 else ""


def _own_spans(charges: Sequence[ChargePeriod], resolve: Callable[[Pricing], Priced]) -> list[ChargeSpan]:
    """Charges with intervals of their own, as they are rated."""
    plans = [(each, resolve(each.pricing)) for each in charges]
    return [
        ChargeSpan(next(item for item in plan.charges if item.charge.key == each.charge), plan, each.span, False)
        for each, plan in plans
    ]


def _own_lines(
    run: BillingRun, resolve: Callable[[Pricing], Priced], quantities: Quantities
) -> tuple[list[RatedLine], list[RatedLine]]:
    """The charges with intervals of their own that are due, and what is given back of such fees.

    What is charged and given back together is rounded together, so that no chain of changes makes a cent.
    """
    spans = _own_spans(run.charges, resolve)
    fees = [each for each in spans if each.item.meter is None]
    unused = [each for each in run.unused if each.pricing is not None]
    plans = [resolve(each.pricing) for each in unused if each.pricing is not None]
    zone = run.segments[0].span.zone if run.segments else "UTC"  # at a start nothing is given back
    parts = [unused_part(each, plan, zone) for each, plan in zip(unused, plans, strict=True)]
    exact = [fee(each) for each in fees]
    exact += [-Fraction(each.billed.major()) * part.share for each, part in zip(unused, parts, strict=True)]
    amounts = settled(exact, run.currency) if unused else [Money.from_major(each, run.currency) for each in exact]
    paid = dict(zip(fees, amounts, strict=False))
    made = [
        fee_line(each, paid[each])
        if each in paid
        else measured_line(each, quantities, run.cut.positions, run.rating_engine, run.currency)
        for each in spans
    ]
    names = [
        next(item.charge.name for item in plan.charges if item.charge.key == each.charge)
        for each, plan in zip(unused, plans, strict=True)
    ]
    returned = zip(unused, plans, names, amounts[len(fees) :], parts, strict=True)
    return made, [unused_line(each, plan.key, name, amount, part) for each, plan, name, amount, part in returned]


def _accrued(segment: Segment, resolve: Callable[[Pricing], Priced]) -> Fraction:
    """What fees of longer intervals count toward the commitment of a segment: an even part for each period."""
    plan = resolve(segment.pricing)
    made = Fraction(0)
    for item in plan.charges:
        if item.charge.interval is not None and item.meter is None:
            periods = multiple(item.charge.interval, plan.interval, Alignment.ANCHOR) or 1
            made += Fraction(rate(item.charge, NOTHING).amount) * item.quantity / periods
    return made * segment.span.share(plan.proration)


def _resolver(books: Books) -> Callable[[Pricing], Priced]:
    """`priced` under `books`, once for each pricing."""
    return cache(lambda pricing: priced(pricing, books))


def _needs(spans: Sequence[ChargeSpan], positions: tuple[PartitionPosition, ...]) -> list[Need]:
    return [need_of(each, each.item.meter, positions) for each in spans if each.item.meter is not None]


def _late_lines(
    late: LatePeriod, run: BillingRun, resolve: Callable[[Pricing], Priced], quantities: Quantities
) -> list[RatedLine]:
    """Rate the old period up to both cuts and bill the difference per charge, which may be negative (SEMANTICS 16)."""
    period = _Closed(late.segments, None, (), run.currency, resolve, late.rating_engine)
    own = [each for each in _own_spans(late.charges, resolve) if each.item.meter is not None]
    before, after = (
        {
            (line.charge, line.period): line
            for line in (
                *period.lines(quantities, positions),
                *(measured_line(each, quantities, positions, late.rating_engine, run.currency) for each in own),
            )
        }
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
