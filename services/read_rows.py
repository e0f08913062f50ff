"""What is read, as values: the rows that HTTP answers with and the command line prints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from billing.invoice import InvoiceFinalized
from billing.money import Money
from services.customer_profile import Profile


@dataclass(frozen=True, slots=True)
class Amount:
    """Money, exactly and for people."""

    minor: int
    """Minor units (ISO 4217), such as cents."""
    currency: str
    """ISO 4217 code."""
    decimal: str
    """The same in major units, such as `1234.56`."""

    @classmethod
    def of(cls, minor: int, currency: str) -> Amount:
        """`minor` units of `currency`."""
        return cls(minor, currency, format(Money(minor, currency).major(), "f"))


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A seller."""

    tenant: str
    name: str
    currency: str
    zone: str
    test_clock: datetime | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class CouponRow:
    """A redeemed coupon."""

    code: str
    redeemed_at: datetime
    invoices: int
    """On how many invoices it gave a discount."""


@dataclass(frozen=True, slots=True)
class GrantRow:
    """Credit that was granted."""

    id: str
    amount: Amount
    left: Amount
    priority: int
    """Lower numbers are spent first."""
    kind: str
    """`granted` or `purchased`."""
    expires_at: datetime | None
    reason: str
    granted_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """Who pays."""

    id: str
    name: str
    email: str
    locale: str
    """How amounts are written on its invoices; empty for plain figures."""
    provider: str
    payment_token: str
    jurisdiction: str
    """Where taxed; empty for the tenant's own rates."""
    coupons: list[CouponRow]
    credit: list[Amount]
    """Unused credit, grants included."""
    grants: list[GrantRow]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WaitingChange:
    """A plan, version or add-on that a subscription will be on."""

    effective_at: datetime
    plan: str | None
    """Null for an add-on."""
    price_book_version: int | None
    add_on: str | None
    quantity: int | None
    """0 removes the add-on."""


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A customer on a plan."""

    id: str
    customer: str
    plan: str
    price_book_version: int
    currency: str
    status: str
    """`scheduled`, `trialing`, `active` or `ended`."""
    zone: str
    starts_at: datetime
    trial_ends_at: datetime | None
    period_start: datetime | None
    period_end: datetime | None
    ends_at: datetime | None
    ended_at: datetime | None
    add_ons: dict[str, int]
    """Quantity by key."""
    changes: list[WaitingChange]
    """Changes that have not taken effect yet, in their order."""


@dataclass(frozen=True, slots=True)
class Subscribers:
    """How many subscriptions that have not ended are on one version of a plan."""

    plan: str
    price_book_version: int
    subscriptions: int


@dataclass(frozen=True, slots=True)
class PriceBookRow:
    """A version of the price book, in brief."""

    version: int
    effective_at: datetime
    published_at: datetime
    meters: list[str]
    plans: list[str]
    coupons: list[str]


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    """An invoice, in brief."""

    id: str
    number: str
    customer: str
    subscription: str
    reason: str
    period_start: datetime
    period_end: datetime
    status: str
    """`open` or `paid`."""
    subtotal: Amount
    discount: Amount
    tax: Amount
    total: Amount
    amount_due: Amount
    issued_at: datetime
    due_at: datetime
    paid_at: datetime | None
    serial: int


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try at a payment provider."""

    attempt: int
    provider: str
    state: str
    decline_kind: str | None
    decline_code: str | None
    reference: str | None
    started_at: datetime
    answered_at: datetime | None
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """What is collected for one invoice."""

    invoice: str
    customer: str
    amount: Amount
    state: str
    """`due`, `pending`, `unknown`, `declined`, `collected` or `exhausted`."""
    provider: str
    next_attempt_at: datetime | None
    reference: str | None
    settled_at: datetime | None
    attempts: list[AttemptRow]


@dataclass(frozen=True, slots=True)
class BalanceRow:
    """One account of the books."""

    account: str
    debit: Amount
    credit: Amount
    balance: Amount
    """Debits less credits."""


@dataclass(frozen=True, slots=True)
class IssuedInvoice:
    """An invoice with everything it was made of, who pays it, and how that goes."""

    row: InvoiceRow
    document: InvoiceFinalized
    canonical_hash: str
    zone: str
    buyer: Profile
    payment: PaymentRow | None
