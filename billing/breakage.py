"""Breakage: when what is left of a grant is lost.

    period ......|  expires_at = end of the period
                 |··· grace, closing, rating ···| invoice issued: the grant paid it, the rest breaks now

A grant may break once its time is over and no invoice that it may pay can still come (SEMANTICS 28).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from billing import customer, prepaid
from billing.errors import Rejected
from billing.ids import CustomerId, InvoiceId
from billing.invoice import Awaited
from billing.prepaid import CreditExpired, ExpireCredit
from billing.subscription import Active, Scheduled

if TYPE_CHECKING:
    from billing.decision import TenantState


def expire(state: TenantState, command: ExpireCredit, now: datetime) -> Sequence[CreditExpired]:
    """The facts that follow; none if nothing is left.

    Raises:
        Rejected: there is no such grant, it is not over, or an invoice that it may pay is still to come.
    """
    payer = state.customers.get(command.customer_id, customer.initial)
    if not isinstance(payer, customer.Active):
        raise Rejected("unknown_customer", f"there is no customer {command.customer_id!r}", field="customer_id")
    found = next((each for each in payer.grants if each.fact.grant_id == command.grant_id), None)
    if found is None:
        raise Rejected("unknown_grant", f"there is no grant {command.grant_id!r}", field="grant_id")
    if not found.left.minor:
        return []
    if not found.over(now):
        ends = f"ends at {found.fact.expires_at}" if found.fact.expires_at else "never ends"
        raise Rejected("not_yet", f"it {ends}; the tenant's clock stands at {now}")
    if _payable(state, found, but=None):
        raise Rejected("awaiting_invoice", "an invoice that it may pay is still to come")
    return [prepaid.expired(found, found.left, now)]


def after(state: TenantState, payer: customer.Active, issued: InvoiceId, now: datetime) -> list[CreditExpired]:
    """What breaks of the grants of `payer`, as the invoice that is being issued leaves it."""
    over = [each for each in payer.grants if each.over(now)]
    return [prepaid.expired(each, each.left, now) for each in over if not _payable(state, each, but=issued)]


def _payable(state: TenantState, grant: prepaid.Grant, but: InvoiceId | None) -> bool:
    """Whether an invoice other than `but` that the grant may pay is awaited, or due to be fixed."""
    until, payer = grant.fact.expires_at, grant.fact.customer_id
    assert until is not None
    return any(
        isinstance(each, Awaited) and id != but and each.run.customer_id == payer and each.run.cut.until <= until
        for id, each in state.invoices.items()
    ) or _fixable(state, payer, until)


def _fixable(state: TenantState, payer: CustomerId, until: datetime) -> bool:
    for each in state.subscriptions.values():
        match each:
            case Active() if each.terms.customer_id == payer and each.boundary <= until:
                return True
            case Scheduled() if each.terms.customer_id == payer and each.terms.starts_at <= until:
                return True
    return False
