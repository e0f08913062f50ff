"""Charges with an interval of their own: a yearly fee on a monthly subscription, usage that is billed by the quarter.

subscription    |--- Jan ---|--- Feb ---|--- Mar ---|--- Apr ---|
fee, P1Y        ^ billed in advance, for the year
usage, P3M      |------------ quarter --------------^ billed here

A charge is due in the closing whose boundary is its own. Its period ends sooner when its price, its plan or the anchor
changes, or when the subscription ends: then that closing bills what was used, gives the unused part of a fee in advance
back, and begins another period. So the periods of a charge adjoin, whatever happens (SEMANTICS 10, 22).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from billing.ids import InvoiceId
from billing.money import Money
from billing.period import Cadence, Period, full_period
from billing.pricing import Priced, PricedCharge, Pricing
from billing.proration import Proration
from billing.run import ChargePeriod, UnusedFee
from billing.segments import BilledSpan


def span_from(cadence: Cadence, start: datetime, ends_at: datetime | None) -> BilledSpan:
    """The period that begins at `start`, up to the next boundary or the end, and the full period it is part of."""
    whole = full_period(cadence, start)
    return BilledSpan(period=Period(start, min(whole.end, ends_at or whole.end)), whole=whole, zone=cadence.zone)


@dataclass(slots=True)
class OwnCharges:
    """The charges with an interval of their own of one subscription, on their way through a closing."""

    resolve: Callable[[Pricing], Priced]
    net_of: Callable[[ChargePeriod], Money]
    """What was billed for one in advance, after discounts, before tax."""
    ends_at: datetime | None
    """The agreed end of the subscription."""
    running: dict[str, ChargePeriod]
    """By key of the charge."""
    billed: list[ChargePeriod] = field(default_factory=list)
    """What ended and is billed now, then what begins and is billed in advance."""
    unused: list[UnusedFee] = field(default_factory=list)

    def go_on(self, at: datetime, pricing: Pricing, cadence: Cadence, *, anew: bool = False) -> None:
        """From `at` on `pricing` holds: a charge that it does not have just so ends, what is new begins."""
        plan = self.resolve(pricing)
        wanted = {item.charge.key: item for item in plan.charges if item.charge.interval is not None}
        for known in list(self.running.values()):
            now, (was_plan, was) = wanted.get(known.charge), self.found(known)
            same = now is not None and now.rule == was.rule and plan.key == was_plan.key
            if anew or not same or known.span.period.end <= at:
                self.end(known, at)
        for key, item in wanted.items():
            if key not in self.running:
                own = replace(cadence, interval=item.charge.interval or cadence.interval)
                self.running[key] = ChargePeriod(charge=key, pricing=pricing, span=span_from(own, at, self.ends_at))

    def end(self, known: ChargePeriod, at: datetime) -> None:
        """Its period ends at `at`: bill it, or give back what was billed for later."""
        del self.running[known.charge]
        plan, item = self.found(known)
        start, end = known.span.period.start, known.span.period.end
        if known.invoice_id is None and start < at:
            self.billed.append(replace(known, span=replace(known.span, period=Period(start, at))))
        elif known.invoice_id is not None and at < end and item.charge.prorate and plan.proration is not Proration.NONE:
            net = self.net_of(known)
            if net.minor > 0:
                period, unused = known.span.period, Period(at, end)
                fee = UnusedFee(charge=known.charge, billed=net, period=period, unused=unused, pricing=known.pricing)
                self.unused.append(fee)

    def bill_ahead(self, invoice: InvoiceId) -> None:
        """Bill the fees in advance that are not billed yet, with `invoice`."""
        for known in list(self.running.values()):
            if known.invoice_id is None and self.found(known)[1].charge.in_advance:
                self.billed.append(known)
                self.running[known.charge] = replace(known, invoice_id=invoice)

    def found(self, known: ChargePeriod) -> tuple[Priced, PricedCharge]:
        """The plan under which it began, and the charge."""
        plan = self.resolve(known.pricing)
        return plan, next(item for item in plan.charges if item.charge.key == known.charge)
