"""Segments: a billing period cut where its pricing changed, and how long each charge went on unchanged.

    |------------------ period ------------------|
    |--- Starter ---|---------- Pro -------------|      segments tile the period
    |--- Starter ---|-- Pro 1 --|----- Pro 2 ----|      a charge that Pro 2 has just as Pro 1 had it goes on:
                    |------- one charge span ----|      neither its tiers nor its fee start again

An instant of change belongs to the new segment; of several changes at one instant the last counts (SEMANTICS 7, 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from billing.period import Period
from billing.price import Charge
from billing.pricing import Priced, PricedCharge, Pricing
from billing.proration import Proration, share


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledSpan:
    """A span that is billed, and the full period whose price it is a part of."""

    period: Period
    """What is billed."""
    whole: Period
    """The full billing period around it; equal to `period` unless the span is partial."""
    zone: str = "UTC"
    """IANA zone of the subscription, in which days are counted; UTC in spans from before plans could choose days."""

    def share(self, rule: Proration) -> Fraction:
        """The exact part of the full price that the span costs under a plan's rule (SEMANTICS 11)."""
        return share(self.period, self.whole, rule, self.zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A span in which one pricing holds."""

    span: BilledSpan
    """The span."""
    pricing: Pricing
    """What rates it."""

    @property
    def period(self) -> Period:
        """What is billed."""
        return self.span.period

    @property
    def whole(self) -> Period:
        """The full billing period around it."""
        return self.span.whole


Timeline = Sequence[tuple[datetime, Pricing]]
"""From when on what holds, in the order of decision at equal instants."""


def tiled(span: BilledSpan, timeline: Timeline) -> tuple[Segment, ...]:
    """The segments of `span`, which they tile without gap or overlap. `timeline` begins at its start or earlier."""
    made: list[Segment] = []
    ends = [at for at, _ in timeline[1:]] + [span.period.end]
    for (at, pricing), until in zip(timeline, ends, strict=True):
        start, end = max(at, span.period.start), min(until, span.period.end)
        if start >= end:
            continue
        if made and made[-1].pricing == pricing:
            start = made.pop().period.start
        made.append(Segment(span=replace(span, period=Period(start, end)), pricing=pricing))
    return tuple(made)


def union(segments: Sequence[Segment]) -> BilledSpan:
    """The span that adjoining `segments` make up."""
    first, last = segments[0], segments[-1]
    return replace(first.span, period=Period(first.period.start, last.period.end))


@dataclass(frozen=True, slots=True)
class ChargeSpan:
    """A charge for as long as it goes on unchanged under one plan."""

    item: PricedCharge
    plan: Priced
    span: BilledSpan
    prepaid: bool
    """Whether it was billed in advance with the fees of the period."""

    @property
    def charge(self) -> Charge:
        """The charge."""
        return self.item.charge

    @property
    def prorated(self) -> bool:
        """Whether a part of a period costs a part."""
        return self.charge.prorate and self.plan.proration is not Proration.NONE

    @property
    def share(self) -> Fraction:
        """The exact part of what is charged or promised for a full period."""
        return self.span.share(self.plan.proration) if self.charge.prorate else Fraction(1)


def charge_spans(
    segments: Sequence[Segment], prepaid: Pricing | None, resolve: Callable[[Pricing], Priced]
) -> list[ChargeSpan]:
    """Every charge of `segments` with its span, by its start and then in the order of its plan.

    `prepaid` is the pricing under which the fees of the period were billed in advance.
    """
    paid = {(plan.key, each.rule) for plan in map(resolve, [prepaid] if prepaid else []) for each in plan.charges}
    made: list[list[ChargeSpan]] = []
    for index, segment in enumerate(segments):
        plan = resolve(segment.pricing)
        going_on = {each.item.rule: each for each in made[-1] if each.plan.key == plan.key} if made else {}
        row: list[ChargeSpan] = []
        for item in plan.charges:
            if item.charge.interval is not None:
                continue  # it has periods of its own: `billing.own_interval`
            before = going_on.get(item.rule)
            if before is not None:
                joined = replace(before.span, period=Period(before.span.period.start, segment.period.end))
                row.append(ChargeSpan(item, before.plan, joined, before.prepaid))
                continue
            billed = index == 0 and item.charge.in_advance and (plan.key, item.rule) in paid
            row.append(ChargeSpan(item, plan, segment.span, billed))
        made.append(row)
    return _longest(made)


def _longest(rows: Sequence[Sequence[ChargeSpan]]) -> list[ChargeSpan]:
    """Each charge span once, as long as it became, where it began."""
    ends: dict[tuple[str, str, datetime], ChargeSpan] = {}
    for row in rows:
        for each in row:
            ends[each.plan.key, each.charge.key, each.span.period.start] = each
    return list(ends.values())


def used_until(charge: str, start: datetime, spans: Sequence[ChargeSpan]) -> datetime:
    """Until when the fee `charge`, paid in advance from `start` on, was used: `start` if not at all."""
    return next((each.span.period.end for each in spans if each.prepaid and each.charge.key == charge), start)
