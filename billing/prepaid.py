"""Credit that a customer is granted: it pays invoices before a provider is asked, in a stated order, while it lasts.

    GrantCredit ──► left 20.00 ── invoice ──► left 7.50 ── invoice ──► left 0.00
                                                └── expires_at, and no invoice waits ──► CreditExpired (breakage)

Which grant pays first is said in `billing/credit.py`; credit left by negative invoices is spent among them, with the
customer's own money. A grant that expires at a period's end still pays that period's invoice (SEMANTICS 28).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from billing.credit import Credit, CreditKind
from billing.errors import CorruptHistory, Rejected
from billing.ids import CustomerId, check_id
from billing.ledger import Account, Posting, entry
from billing.money import Money, exponent

PRIORITY_MAX = 1_000
BALANCE_PRIORITY = 50  # of credit that negative invoices left; what a grant has unless it says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantCredit:
    """Give a customer credit that pays invoices of its currency."""

    customer_id: CustomerId
    """The customer."""
    grant_id: str
    """Chosen by the tenant, unique for the customer."""
    amount: Money
    """Above zero."""
    priority: int = BALANCE_PRIORITY
    """0 to 1,000: lower numbers are spent first; credit of negative invoices has 50."""
    kind: CreditKind = CreditKind.GRANTED
    """Whether it is a gift, or was paid for outside."""
    expires_at: datetime | None = None
    """From when it can no longer be spent; null for never."""
    reason: str = ""
    """For people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireCredit:
    """Write off what is left of a grant whose time is over."""

    customer_id: CustomerId
    """The customer."""
    grant_id: str
    """The grant."""


Command = GrantCredit | ExpireCredit


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditGranted:
    """A customer was given credit."""

    customer_id: CustomerId
    """The customer."""
    grant_id: str
    """The grant."""
    amount: Money
    """Above zero."""
    priority: int
    """Lower numbers are spent first."""
    kind: CreditKind = CreditKind.GRANTED
    """Whether it is a gift, or was paid for outside."""
    expires_at: datetime | None = None
    """From when it can no longer be spent (UTC); null for never."""
    reason: str = ""
    """For people."""
    granted_at: datetime
    """When, by the tenant's clock."""
    postings: tuple[Posting, ...]
    """The journal entry: what the tenant owes the customer, against promotion or cash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditExpired:
    """What was left of a grant is lost to the customer: breakage."""

    customer_id: CustomerId
    """The customer."""
    grant_id: str
    """The grant."""
    amount: Money
    """What was left; above zero."""
    expired_at: datetime
    """When it was written off, by the tenant's clock; not before its last invoice was issued."""
    postings: tuple[Posting, ...]
    """The journal entry: a gift takes its promotion back, what was paid for is breakage income."""


Event = CreditGranted | CreditExpired


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditApplied:
    """What one grant paid of an invoice."""

    grant_id: str
    """The grant."""
    amount: Money
    """Above zero."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant, and what is left of it. One that is used up is kept, so that its id stays taken."""

    fact: CreditGranted
    left: Money

    @property
    def credit(self) -> Credit:
        """It, as something to be spent."""
        fact = self.fact
        return Credit(
            id=fact.grant_id,
            left=self.left,
            priority=fact.priority,
            kind=fact.kind,
            created_at=fact.granted_at,
            expires_at=fact.expires_at,
        )

    def over(self, now: datetime) -> bool:
        """Whether its time is over and something is left."""
        return self.fact.expires_at is not None and self.fact.expires_at <= now and self.left.minor > 0


def grant(known: Sequence[Grant], command: GrantCredit, now: datetime) -> Sequence[Event]:
    """The facts that follow; none if it was granted just so before.

    Raises:
        Rejected: it cannot be spent, or its id names another grant.
    """
    expires_at = _checked(command)
    made = CreditGranted(
        customer_id=command.customer_id,
        grant_id=command.grant_id,
        amount=command.amount,
        priority=command.priority,
        kind=command.kind,
        expires_at=expires_at,
        reason=command.reason,
        granted_at=now,
        postings=_entry(command.kind, command.amount, Account.CASH),
    )
    for each in known:
        if each.fact.grant_id == command.grant_id:
            if replace(each.fact, granted_at=now) == made:
                return []
            raise Rejected("grant_exists", f"grant {command.grant_id!r} exists with other terms", field="grant_id")
    if expires_at is not None and expires_at <= now:
        raise Rejected("out_of_range", f"{expires_at} is over; the tenant's clock stands at {now}", field="expires_at")
    return [made]


def expired(each: Grant, left: Money, now: datetime) -> CreditExpired:
    """The fact that what is `left` of a grant is written off."""
    return CreditExpired(
        customer_id=each.fact.customer_id,
        grant_id=each.fact.grant_id,
        amount=left,
        expired_at=now,
        postings=tuple(
            replace(posting, amount=-posting.amount) for posting in _entry(each.fact.kind, left, Account.BREAKAGE)
        ),
    )


def evolve(known: tuple[Grant, ...], event: Event) -> tuple[Grant, ...]:
    """The grants after `event`."""
    match event:
        case CreditGranted():
            return (*known, Grant(event, event.amount))
        case CreditExpired(grant_id=grant_id, amount=amount):
            return spent(known, {grant_id: amount})


def spent(known: tuple[Grant, ...], taken: Mapping[str, Money]) -> tuple[Grant, ...]:
    """The grants once `taken`, by grant, is gone."""
    if missing := taken.keys() - {each.fact.grant_id for each in known}:
        raise CorruptHistory(f"{', '.join(sorted(missing))} was never granted")
    return tuple(
        replace(each, left=each.left - taken[each.fact.grant_id]) if each.fact.grant_id in taken else each
        for each in known
    )


def _entry(kind: CreditKind, amount: Money, paid: Account) -> tuple[Posting, ...]:
    """Credit is owed to the customer; a gift is the tenant's promotion, anything else was `paid`."""
    against = Account.PROMOTION if kind is CreditKind.GRANTED else paid
    return entry((against, amount), (Account.CUSTOMER_CREDIT, -amount))


def _checked(command: GrantCredit) -> datetime | None:
    check_id(command.grant_id, "grant_id")
    exponent(command.amount.currency, "amount.currency")
    if command.amount.minor <= 0:
        raise Rejected("out_of_range", f"{command.amount}: allowed is above 0", field="amount")
    if not 0 <= command.priority <= PRIORITY_MAX:
        raise Rejected("out_of_range", f"{command.priority}: allowed are 0 to {PRIORITY_MAX:,}", field="priority")
    if command.expires_at is None:
        return None
    if command.expires_at.tzinfo is None:
        said = "a time needs an offset, such as 2026-02-01T00:00:00Z"
        raise Rejected("invalid_time", said, field="expires_at")
    return command.expires_at.astimezone(UTC)
