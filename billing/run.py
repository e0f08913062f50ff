"""A billing run: one invoice to be made, with every input but the quantities, which its cut fixes.

`SubscriptionActivated` and `BillingPeriodClosed` carry it, so an invoice is a function of the log (promise 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from billing.discount import CouponOrder
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.money import Money
from billing.period import Period
from billing.pricing import Pricing
from billing.segments import BilledSpan, Segment, union
from billing.tax import TaxRate, TaxRounding


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
class LatePeriod:
    """A closed period that is rated again, for usage that came after its last cut."""

    segments: tuple[Segment, ...]
    """The closed period and what it was billed under."""
    since: tuple[PartitionPosition, ...]
    """Up to where it is already billed."""
    rating_engine: str = "1"
    """Version of the arithmetic that it was billed with, and is rated with again."""

    @property
    def span(self) -> BilledSpan:
        """The closed period."""
        return union(self.segments)


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

    @property
    def arrears(self) -> BilledSpan | None:
        """The period whose usage is billed; None at a subscription's start."""
        return union(self.segments) if self.segments else None

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
