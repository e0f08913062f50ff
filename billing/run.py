"""A billing run: one invoice to be made, with every input but the quantities, which its cut fixes.

`SubscriptionActivated` and `BillingPeriodClosed` carry it, so an invoice is a function of the log (promise 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from billing.discount import CouponOrder
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.money import Money
from billing.period import Period
from billing.pricing import Pricing
from billing.segments import BilledSpan, Segment, union
from billing.tax import TaxRate, TaxRounding

LATE_PERIODS = 13  # closed periods in which late usage is still looked for: 13 months, the retention of the usage log


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
class ChargePeriod:
    """A charge with an interval of its own, for as long as it goes on unchanged within one of its own periods."""

    charge: str
    """Key of the charge."""
    pricing: Pricing
    """What rated the subscription when it began."""
    span: BilledSpan
    """What is billed of it, and the full period by its own interval."""
    invoice_id: InvoiceId | None = None
    """The invoice that billed it in advance; null if none did yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatePeriod:
    """A closed period that is rated again, for usage that came after its last cut."""

    segments: tuple[Segment, ...]
    """The closed period and what it was billed under."""
    since: tuple[PartitionPosition, ...]
    """Up to where it is already billed."""
    rating_engine: str = "1"
    """Version of the arithmetic that it was billed with, and is rated with again."""

    charges: tuple[ChargePeriod, ...] = ()
    """Charges with intervals of their own that were billed with it, and may reach further back."""

    @property
    def period(self) -> Period:
        """Whose usage was billed."""
        closed = union(self.segments).period
        return Period(min([closed.start, *(each.span.period.start for each in self.charges)]), closed.end)


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
    pricing: Pricing | None = None
    """Under which a charge with an interval of its own was billed; null for the fees of the subscription's period."""


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
    rating_engine: str
    """Version of the arithmetic that rates it."""
    segments: tuple[Segment, ...] = ()
    """The closed period, cut where its pricing changed; empty at a subscription's start."""
    prepaid: Pricing | None = None
    """Under which the fees of the closed period were billed in advance; null if none were."""
    advance: Segment | None = None
    """The period whose fees are billed in advance; null at a subscription's end."""
    unused: tuple[UnusedFee, ...] = ()
    """Fees given back because the subscription ended, or changed, within the period that they paid."""
    late: tuple[LatePeriod, ...] = ()
    """Earlier periods in which usage may have arrived since."""
    cut: Cut
    """Bounds of the usage that is billed."""
    taxes: tuple[TaxRate, ...] = ()
    """Tax rates of the customer at the time."""
    coupon_order: CouponOrder = CouponOrder.STANDARD
    """In which order coupons apply."""
    tax_rounding: TaxRounding = TaxRounding.PER_RATE
    """Where tax is rounded."""
    charges: tuple[ChargePeriod, ...] = ()
    """Charges with intervals of their own that are due: what ended in arrears, what begins in advance."""

    @property
    def arrears(self) -> BilledSpan | None:
        """The period whose usage is billed; None at a subscription's start."""
        return union(self.segments) if self.segments else None

    @property
    def ended_charges(self) -> tuple[ChargePeriod, ...]:
        """Those of its charges with intervals of their own that are billed for time that is over."""
        return tuple(each for each in self.charges if each.span.period.end <= self.cut.until)

    @property
    def pricing(self) -> Pricing:
        """What the invoice is headed with: the pricing at the end of the closed period, else of the one ahead."""
        if self.segments:
            return self.segments[-1].pricing
        assert self.advance is not None
        return self.advance.pricing

    @property
    def plan(self) -> str:
        """Key of the plan that the invoice is headed with."""
        return self.pricing.plan

    @property
    def price_book_version(self) -> int:
        """Version of the price book that has it."""
        return self.pricing.price_book_version


def late_after(known: tuple[LatePeriod, ...], run: BillingRun) -> tuple[LatePeriod, ...]:
    """The periods to look for late usage in once `run` has billed what it closed."""
    since = run.cut.positions
    earlier = tuple(replace(each, since=since) for each in known)
    engine, charges = run.rating_engine, run.ended_charges
    closed = LatePeriod(segments=run.segments, since=since, rating_engine=engine, charges=charges)
    return (*earlier, closed)[-LATE_PERIODS:]
