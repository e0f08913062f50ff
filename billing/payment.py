"""Collecting an invoice: attempts at a payment provider, one at a time, each with its own idempotency key.

    Due(attempt n) --StartPaymentAttempt--> Pending(n) --succeeded--> Collected
         ^                                     | |
         |                                     | +--unknown--> Unknown(n) --asked again--> Collected / declined
         +---- declined, retry at a later day -+
                                               +--declined for good--> Exhausted

While an attempt is pending or unknown nothing else may touch the invoice (SEMANTICS 27). An unknown outcome is
resolved by asking the provider with the same key, never by a new charge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from billing.customer import PaymentMethod, Provider
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, InvoiceId, payment_key
from billing.money import Money


class DeclineKind(StrEnum):
    """Whether another attempt with the same payment method can work."""

    SOFT = "soft"
    HARD = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPaymentAttempt:
    """Claim the right to ask the provider for money, before asking."""

    invoice_id: InvoiceId
    """The invoice."""
    attempt: int
    """1, 2, 3, ...; only the next one is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPaymentSuccess:
    """Tell that the provider collected an attempt."""

    OBSERVED = ("reference",)

    invoice_id: InvoiceId
    """The invoice."""
    attempt: int
    """The attempt."""
    amount: Money
    """What was collected."""
    reference: str
    """The provider's name for the payment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPaymentDecline:
    """Tell that the provider declined an attempt."""

    invoice_id: InvoiceId
    """The invoice."""
    attempt: int
    """The attempt."""
    kind: DeclineKind
    """Whether another attempt can work."""
    code: str
    """The provider's reason, such as `insufficient_funds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPaymentUnknown:
    """Tell that the provider's answer to an attempt was lost."""

    OBSERVED = ("detail",)

    invoice_id: InvoiceId
    """The invoice."""
    attempt: int
    """The attempt."""
    detail: str
    """What happened instead of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordManualPayment:
    """Tell that an invoice was paid outside, such as by bank transfer."""

    invoice_id: InvoiceId
    """The invoice."""
    reference: str
    """Where it can be found, such as a bank statement."""


Command = StartPaymentAttempt | RecordPaymentSuccess | RecordPaymentDecline | RecordPaymentUnknown | RecordManualPayment


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentDue:
    """An invoice is to be collected."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who pays."""
    amount: Money
    """What is to be collected."""
    method: PaymentMethod
    """How."""
    attempt: int
    """The first attempt's number, 1."""
    due_at: datetime
    """When it may be tried first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentAttemptStarted:
    """An attempt owns the invoice until its outcome is known."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who pays."""
    attempt: int
    """1, 2, 3, ..."""
    key: str
    """Idempotency key at the provider; every repetition of the call uses it."""
    amount: Money
    """What is to be collected."""
    method: PaymentMethod
    """How."""
    started_at: datetime
    """First use of the key, by the wall clock; a provider forgets keys after a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSucceeded:
    """The provider collected an attempt."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who paid."""
    attempt: int
    """The attempt; 0 for a payment outside."""
    amount: Money
    """What was collected."""
    reference: str
    """The provider's name for the payment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentDeclined:
    """The provider declined an attempt."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who was to pay."""
    attempt: int
    """The attempt."""
    kind: DeclineKind = DeclineKind.SOFT
    """Whether another attempt can work."""
    code: str
    """The provider's reason."""
    retry_at: datetime | None = None
    """When the next attempt is due by the tenant's clock; null if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcomeUnknown:
    """The provider's answer to an attempt was lost; it will be asked again."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who is to pay."""
    attempt: int
    """The attempt."""
    detail: str
    """What happened instead of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DunningExhausted:
    """No further attempt will be made by itself."""

    invoice_id: InvoiceId
    """The invoice."""
    customer_id: CustomerId
    """Who was to pay."""
    attempts: int
    """How many were made."""


Event = (
    PaymentDue | PaymentAttemptStarted | PaymentSucceeded | PaymentDeclined | PaymentOutcomeUnknown | DunningExhausted
)


@dataclass(frozen=True, slots=True)
class Due:
    """To be collected with the next attempt."""

    due: PaymentDue
    attempt: int


@dataclass(frozen=True, slots=True)
class Pending:
    """An attempt is under way, or its outcome is unknown."""

    due: PaymentDue
    attempt: int
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """Paid."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Not collected; a person decides."""

    due: PaymentDue
    attempts: int


State = Due | Pending | Collected | Exhausted


def decide(
    state: State | None,
    command: Command,
    method: PaymentMethod,
    retry_days: Sequence[int],
    now: datetime,
    wall: datetime,
) -> Sequence[Event]:
    """The facts that follow from `command`; none if it changes nothing. `method` is the customer's present one.

    Raises:
        Rejected: the command is not allowed in this state.
    """
    match state, command:
        case Due(due=due, attempt=n), StartPaymentAttempt(attempt=asked) if asked == n:
            return [_started(due, n, method, wall)]
        case Pending(attempt=n), StartPaymentAttempt(attempt=asked) if asked == n:
            return []
        case Pending(due=due, attempt=n), RecordPaymentSuccess(attempt=asked) as c if asked == n:
            if c.amount != due.amount:
                raise Rejected("amount_differs", f"{c.amount} was collected, {due.amount} was due", field="amount")
            return [_succeeded(due, n, c.reference)]
        case Collected(attempt=n), RecordPaymentSuccess(attempt=asked) if asked == n:
            return []
        case Pending(due=due, attempt=n), RecordPaymentDecline(attempt=asked) as c if asked == n:
            return _declined(due, n, c, retry_days, now)
        case Pending(due=due, attempt=n, unknown=False), RecordPaymentUnknown(attempt=asked) as c if asked == n:
            return [
                PaymentOutcomeUnknown(
                    invoice_id=due.invoice_id, customer_id=due.customer_id, attempt=n, detail=c.detail
                )
            ]
        case Pending(attempt=n, unknown=True), RecordPaymentUnknown(attempt=asked) if asked == n:
            return []
        case Due(due=due) | Exhausted(due=due), RecordManualPayment(reference=reference):
            return [_succeeded(due, 0, reference)]
        case Collected(), RecordManualPayment():
            raise Rejected("invalid_state", "the invoice is already paid")
        case None, _:
            raise Rejected("unknown_invoice", f"nothing is due for invoice {command.invoice_id!r}", field="invoice_id")
        case _:
            raise Rejected("invalid_state", _refusal(state, command))


def evolve(state: State | None, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case None, PaymentDue() as e:
            return Due(e, e.attempt)
        case Due() as s, PaymentAttemptStarted(attempt=n):
            return Pending(s.due, n)
        case Pending(attempt=n), PaymentSucceeded():
            return Collected(n)
        case Due() | Exhausted(), PaymentSucceeded():
            return Collected(0)
        case Pending() as s, PaymentOutcomeUnknown():
            return replace(s, unknown=True)
        case Pending() as s, PaymentDeclined(retry_at=datetime(), attempt=n):
            return Due(s.due, n + 1)
        case Pending(), PaymentDeclined():
            return state
        case Pending() as s, DunningExhausted(attempts=n):
            return Exhausted(s.due, n)
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def due(invoice: InvoiceId, customer: CustomerId, amount: Money, method: PaymentMethod, at: datetime) -> PaymentDue:
    """The fact that an invoice is to be collected."""
    return PaymentDue(invoice_id=invoice, customer_id=customer, amount=amount, method=method, attempt=1, due_at=at)


def _started(due: PaymentDue, attempt: int, method: PaymentMethod, wall: datetime) -> PaymentAttemptStarted:
    if method.provider is Provider.MANUAL:
        raise Rejected("manual_payment", "the customer pays outside; record the payment instead")
    return PaymentAttemptStarted(
        invoice_id=due.invoice_id,
        customer_id=due.customer_id,
        attempt=attempt,
        key=payment_key(due.invoice_id, attempt),
        amount=due.amount,
        method=method,
        started_at=wall,
    )


def _succeeded(due: PaymentDue, attempt: int, reference: str) -> PaymentSucceeded:
    return PaymentSucceeded(
        invoice_id=due.invoice_id,
        customer_id=due.customer_id,
        attempt=attempt,
        amount=due.amount,
        reference=reference,
    )


def _declined(
    due: PaymentDue, attempt: int, command: RecordPaymentDecline, retry_days: Sequence[int], now: datetime
) -> list[Event]:
    again = command.kind is DeclineKind.SOFT and attempt <= len(retry_days)
    retry_at = now + timedelta(days=retry_days[attempt - 1]) if again else None
    declined = PaymentDeclined(
        invoice_id=due.invoice_id,
        customer_id=due.customer_id,
        attempt=attempt,
        kind=command.kind,
        code=command.code,
        retry_at=retry_at,
    )
    if again:
        return [declined]
    return [declined, DunningExhausted(invoice_id=due.invoice_id, customer_id=due.customer_id, attempts=attempt)]


def _refusal(state: State | None, command: Command) -> str:
    allowed = {
        Due: "StartPaymentAttempt of the next attempt, RecordManualPayment",
        Pending: "RecordPaymentSuccess, RecordPaymentDecline, RecordPaymentUnknown of the attempt under way",
        Collected: "none",
        Exhausted: "RecordManualPayment",
    }[type(state)]
    return f"{type(command).__name__} is not allowed on {type(state).__name__}; allowed: {allowed}"
