"""What is asked of a payment provider and what it answers, whichever provider it is.

An answer that did not come is no answer: adapters raise `Transient`, and the outcome is unknown until the provider is
asked again. A declined card is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing.ids import CustomerId, InvoiceId, TenantId
from billing.money import Money
from billing.payment import DeclineKind
from infra.errors import Transient

HARD = frozenset(
    {
        "expired_card",
        "lost_card",
        "stolen_card",
        "pickup_card",
        "restricted_card",
        "incorrect_number",
        "invalid_account",
        "card_not_supported",
        "currency_not_supported",
        "authentication_required",
        "revocation_of_authorization",
        "revocation_of_all_authorizations",
        "stop_payment_order",
        "transaction_not_allowed",
        "amount_not_chargeable",
        "payment_method_missing",
    }
)
"""Reasons after which another attempt with the same card cannot work or is forbidden by the card schemes; all others
may work on another day (Stripe, "Decline codes", column "Next steps")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One attempt to collect, as the log recorded its start. Built from that event alone, so every repetition of the
    call is byte for byte the same; a provider refuses a key that comes with other parameters."""

    tenant_id: TenantId
    invoice_id: InvoiceId
    customer_id: CustomerId
    attempt: int
    key: str
    """Idempotency key at the provider."""
    amount: Money
    token: str
    """The provider's name for the saved payment method."""

    def metadata(self) -> dict[str, str]:
        """What the provider keeps beside the payment, and finds it by when it has forgotten the key."""
        return {
            "tenant_id": self.tenant_id,
            "customer_id": self.customer_id,
            "invoice_id": self.invoice_id,
            "attempt": str(self.attempt),
            "key": self.key,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The provider has the money."""

    reference: str
    """The provider's name for the payment."""
    amount: Money
    """What it says that it collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The provider said no; nothing was collected and nothing will be under this key."""

    code: str
    kind: DeclineKind


def declined(code: str) -> Declined:
    """The refusal for the reason `code`, soft or hard."""
    return Declined(code=code, kind=DeclineKind.HARD if code in HARD else DeclineKind.SOFT)


def is_method_missing(code: str | None, param: str | None) -> bool:
    """Whether a refused request says that the provider does not know the payment method: the customer's to repair."""
    return code == "resource_missing" and param == "payment_method"


def outcome_of(intent: Mapping[str, Any], amount: Money) -> Collected | Declined:
    """What a PaymentIntent that was created and confirmed in one call says. `amount` is what it received.

    Raises:
        Transient: it is still at work; ask again.
    """
    status = intent["status"]
    if status == "succeeded":
        return Collected(reference=str(intent["id"]), amount=amount)
    if status == "requires_payment_method":
        error = intent.get("last_payment_error") or {}
        return declined(str(error.get("decline_code") or error.get("code") or "unknown"))
    if status == "requires_action":
        # The customer is not there to confirm anything: by itself this attempt will never succeed.
        return declined("authentication_required")
    if status == "canceled":
        return declined("canceled")
    raise Transient(f"payment {intent['id']} is {status}")
