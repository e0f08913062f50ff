"""An invoice: issued once for each run, numbered, and never changed.

    (absent) --SubscriptionActivated / BillingPeriodClosed--> Awaited --IssueInvoice--> Open --payment--> Paid
                                                                            |
                                                                            +-- nothing due --> Paid
                                                                            +-- no lines --> Omitted

The order of SEMANTICS 23: lines, coupons, tax, credit. The number is given here, at finalization, so that
numbers have no gaps (SEMANTICS 24).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from billing.credit import Credit, spend
from billing.discount import Coupon, discounts
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, InvoiceId, SubscriptionId
from billing.invoicing import BillingRun, LineKind, RatedLine
from billing.ledger import Account, Posting, entry
from billing.money import Money, half_up
from billing.prepaid import CreditApplied
from billing.tax import TaxAmount, charged_taxes


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueInvoice:
    """Issue the invoice of a run with its rated lines."""

    invoice_id: InvoiceId
    """The invoice, named by the run."""
    lines: tuple[RatedLine, ...]
    """What the run's usage and fees amount to."""


Command = IssueInvoice


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One line of an issued invoice."""

    rated: RatedLine
    """What is billed, before discounts."""
    discount: Money
    """What coupons take off this line; zero or above for a positive line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceDiscount:
    """What one coupon took off an invoice."""

    coupon: str
    """Its code."""
    amount: Money
    """Above zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceFinalized:
    """An invoice was issued. It never changes."""

    invoice_id: InvoiceId
    """The invoice."""
    number: str
    """Gapless per tenant, with the tenant's prefix."""
    serial: int
    """1, 2, 3, ... in the tenant's series of invoices."""
    subscription_id: SubscriptionId
    """The subscription that is billed."""
    customer_id: CustomerId
    """Who pays."""
    run: BillingRun
    """Every input of the invoice but the quantities."""
    lines: tuple[InvoiceLine, ...]
    """What is billed."""
    discounts: tuple[InvoiceDiscount, ...]
    """What coupons took off."""
    taxes: tuple[TaxAmount, ...]
    """Tax by rate, each rounded once."""
    subtotal: Money
    """Sum of the lines."""
    discount: Money
    """Sum of the discounts."""
    tax: Money
    """Sum of the taxes that are charged on top."""
    total: Money
    """Subtotal less discounts plus tax."""
    credit_applied: Money
    """What the customer's credit pays of it."""
    amount_due: Money
    """What remains to be paid; zero for a negative total."""
    issued_at: datetime
    """When, by the tenant's clock."""
    due_at: datetime
    """When payment falls due."""
    seller: str
    """The tenant's legal name."""
    postings: tuple[Posting, ...]
    """The journal entry; sums to zero."""
    credits: tuple[CreditApplied, ...] = ()
    """What each grant paid, in the order of spending; the rest of `credit_applied` is credit of negative invoices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicePaid:
    """Nothing of an invoice is due any more."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who paid."""
    amount: Money
    """What a payment provider or a person paid; zero if nothing was due."""
    paid_at: datetime
    """When, by the tenant's clock."""
    postings: tuple[Posting, ...] = ()
    """The journal entry; empty if nothing was paid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceOmitted:
    """Nothing was to be billed, not even at zero: the run has no invoice, and no number was used."""

    invoice_id: InvoiceId
    """What the invoice would have been."""
    subscription_id: SubscriptionId
    """The subscription."""
    customer_id: CustomerId
    """Who would have paid."""
    omitted_at: datetime
    """When, by the tenant's clock."""


Event = InvoiceFinalized | InvoicePaid | InvoiceOmitted


@dataclass(frozen=True, slots=True)
class Awaited:
    """A run was fixed; its usage is being rated."""

    run: BillingRun


@dataclass(frozen=True, slots=True)
class Open:
    """Issued and to be paid."""

    customer_id: CustomerId
    amount_due: Money
    fees: tuple[tuple[str, Money], ...]
    """Net amount billed per charge for fees in advance, for the credit of unused time."""


@dataclass(frozen=True, slots=True)
class Paid:
    """Settled."""

    customer_id: CustomerId
    fees: tuple[tuple[str, Money], ...]


@dataclass(frozen=True, slots=True)
class Omitted:
    """There was nothing to bill."""


State = Awaited | Open | Paid | Omitted


@dataclass(frozen=True, slots=True)
class Terms:
    """What the tenant and the customer bring to an invoice at the moment of issue."""

    seller: str
    serial: int
    number: str
    coupons: tuple[Coupon, ...]
    left: Mapping[str, Money]
    """What remains of coupons that carry over, by code."""
    credits: tuple[Credit, ...]
    """What may pay; one without an id is what negative invoices left."""
    now: datetime
    payment_terms_days: int


def issue(state: State | None, command: IssueInvoice, terms: Terms) -> Sequence[Event]:
    """The facts that follow from issuing; none if the invoice is already issued, or was omitted.

    Raises:
        Rejected: no run waits for this invoice, or a line has another currency than the run.
    """
    match state:
        case Open() | Paid() | Omitted():
            return []
        case Awaited(run=run) if not command.lines and run.rating_engine != "1":  # which made an empty one
            subscription, customer = run.subscription_id, run.customer_id
            return [
                InvoiceOmitted(
                    invoice_id=run.invoice_id, subscription_id=subscription, customer_id=customer, omitted_at=terms.now
                )
            ]
        case Awaited(run=run):
            _check_lines(command.lines, run)
            finalized = _finalized(run, command.lines, terms)
            if finalized.amount_due.minor:
                return [finalized]
            return [finalized, _paid_without_payment(finalized)]
        case _:
            raise Rejected("unknown_invoice", f"no run waits for invoice {command.invoice_id!r}", field="invoice_id")


def evolve(state: State | None, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case Awaited(), InvoiceFinalized() as e:
            return Open(e.customer_id, e.amount_due, _net_fees(e))
        case Awaited(), InvoiceOmitted():
            return Omitted()
        case Open(customer_id=customer, fees=fees), InvoicePaid():
            return Paid(customer, fees)
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def paid(state: Open, invoice: InvoiceId, now: datetime) -> InvoicePaid:
    """The fact that an open invoice was paid in full."""
    return InvoicePaid(
        invoice_id=invoice,
        customer_id=state.customer_id,
        amount=state.amount_due,
        paid_at=now,
        postings=entry((Account.CASH, state.amount_due), (Account.RECEIVABLE, -state.amount_due)),
    )


def _check_lines(lines: Sequence[RatedLine], run: BillingRun) -> None:
    for index, line in enumerate(lines):
        if line.amount.currency != run.currency:
            raise Rejected(
                "currency_mismatch",
                f"{line.amount.currency} on an invoice in {run.currency}",
                field=f"lines[{index}].amount",
            )


def _finalized(run: BillingRun, lines: tuple[RatedLine, ...], terms: Terms) -> InvoiceFinalized:
    zero = Money.zero(run.currency)
    amounts = [line.amount for line in lines]
    plans = [line.plan or run.plan for line in lines]
    charges = [line.charge for line in lines]
    taken = discounts(terms.coupons, amounts, charges, terms.left, plans=plans, order=run.coupon_order)
    per_line = [sum((each.amounts[i] for each in taken), zero) for i in range(len(lines))]
    net = [amount - off for amount, off in zip(amounts, per_line, strict=True)]
    charged = charged_taxes(run.taxes, net, run.currency, run.tax_rounding)
    subtotal = sum(amounts, zero)
    discount = sum(per_line, zero)
    tax = sum((each.amount for each in charged if not each.rate.inclusive), zero)
    total = subtotal - discount + tax
    paying = spend(terms.credits, total, covers_until=run.cut.until)
    credit_applied = sum((amount for _, amount in paying.consumed), zero)
    amount_due = total - credit_applied if total.minor > 0 else zero
    return InvoiceFinalized(
        invoice_id=run.invoice_id,
        number=terms.number,
        serial=terms.serial,
        subscription_id=run.subscription_id,
        customer_id=run.customer_id,
        run=run,
        lines=tuple(InvoiceLine(rated=line, discount=off) for line, off in zip(lines, per_line, strict=True)),
        discounts=tuple(
            InvoiceDiscount(coupon=each.coupon.code, amount=sum(each.amounts, zero))
            for each in taken
            if sum(each.amounts, zero).minor
        ),
        taxes=charged,
        subtotal=subtotal,
        discount=discount,
        tax=tax,
        total=total,
        credit_applied=credit_applied,
        amount_due=amount_due,
        issued_at=terms.now,
        due_at=terms.now + timedelta(days=terms.payment_terms_days),
        seller=terms.seller,
        postings=_postings(run, lines, net, charged, total, credit_applied),
        credits=tuple(CreditApplied(grant_id=id, amount=amount) for id, amount in paying.consumed if id),
    )


def _postings(
    run: BillingRun,
    lines: Sequence[RatedLine],
    net: Sequence[Money],
    charged: Sequence[TaxAmount],
    total: Money,
    credit_applied: Money,
) -> tuple[Posting, ...]:
    """Revenue for what was used, deferred revenue for fees in advance, tax, and who owes the total."""
    zero = Money.zero(total.currency)
    earned = {Account.REVENUE: zero, Account.DEFERRED_REVENUE: zero}
    for line, amount in zip(lines, net, strict=True):
        earned[Account.DEFERRED_REVENUE if _is_deferred(line, run) else Account.REVENUE] += amount
    contained = sum((each.amount for each in charged if each.rate.inclusive), zero)
    sides = [(account, -amount) for account, amount in _without(contained, earned).items()]
    sides += [(Account.TAX_PAYABLE, -each.amount) for each in charged]
    if total.minor < 0:
        sides.append((Account.CUSTOMER_CREDIT, total))
    else:
        sides.append((Account.RECEIVABLE, total - credit_applied))
        sides.append((Account.CUSTOMER_CREDIT, credit_applied))
    return entry(*sides)


def _without(contained: Money, earned: Mapping[Account, Money]) -> dict[Account, Money]:
    """`earned` freed of the tax inside its prices, taken from each account by its share of the gross."""
    gross = sum(amount.minor for amount in earned.values())
    if not gross:
        return dict(earned)
    revenue, deferred = earned[Account.REVENUE], earned[Account.DEFERRED_REVENUE]
    part = Money(half_up(Fraction(contained.minor * revenue.minor, gross)), contained.currency)
    return {Account.REVENUE: revenue - part, Account.DEFERRED_REVENUE: deferred - (contained - part)}


def _paid_without_payment(finalized: InvoiceFinalized) -> InvoicePaid:
    """A total of zero or below is settled without asking a provider (SEMANTICS 26)."""
    return InvoicePaid(
        invoice_id=finalized.invoice_id,
        customer_id=finalized.customer_id,
        amount=finalized.amount_due,
        paid_at=finalized.issued_at,
    )


def _is_deferred(line: RatedLine, run: BillingRun) -> bool:
    """Whether a line bills service that is still to come, or gives such a fee back."""
    return line.kind is LineKind.UNUSED_FEE or _is_fee_in_advance(line, run)


def _is_fee_in_advance(line: RatedLine, run: BillingRun) -> bool:
    if line.kind is not LineKind.FEE:
        return False
    own = any((each.charge, each.span.period) == (line.charge, line.period) for each in run.charges)
    ahead = own and line.period.end > run.cut.until
    return ahead or (run.advance is not None and line.period == run.advance.period)


def _net_fees(event: InvoiceFinalized) -> tuple[tuple[str, Money], ...]:
    return tuple(
        (line.rated.charge, line.rated.amount - line.discount)
        for line in event.lines
        if _is_fee_in_advance(line.rated, event.run)
    )
