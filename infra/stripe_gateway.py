"""Collects through Stripe; the only module that knows its library.

The library makes no attempt of its own accord: a repetition is decided from the log, with the key that the log holds.
A customer's token is a payment method (`pm_...`), or `cus_.../pm_...` where Stripe keeps it under a customer.
"""

from __future__ import annotations

from typing import Any

import stripe

from billing.money import Money, exponent
from infra.collection import Collected, Collection, Declined, declined, is_method_missing, outcome_of
from infra.errors import Misconfigured, Poison, Transient

TIMEOUT_S = 20  # well inside the lease of a payment row; the library's default of 80 s would outlive it

# docs.stripe.com/currencies: which currencies Stripe counts without decimals. MGA has two in ISO 4217, none here;
# ISK and UGX have none in ISO 4217, two here.
_WITHOUT_DECIMALS = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
_THREE_DECIMALS = frozenset(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"))  # the last digit has to be 0


class StripeGateway:
    """Stripe as a payment gateway. Safe to share between threads."""

    def __init__(self, key: str, *, url: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        if not key:
            raise Misconfigured("TALLYBOOK_STRIPE_KEY is not set, and a customer pays through Stripe")
        addresses: Any = {"api": url} if url else None
        self._http = stripe.RequestsClient(timeout=timeout_s)
        self._client = stripe.StripeClient(key, base_addresses=addresses, max_network_retries=0, http_client=self._http)

    def collect(self, wanted: Collection) -> Collected | Declined:
        """Try once to collect. Repeating a key repeats its first answer, for at least a day.

        Raises:
            Transient: the outcome is unknown; ask again with the same key.
            Poison: Stripe refuses the request itself; it will never work.
            Misconfigured: Stripe refuses the API key.
        """
        amount = stripe_amount(wanted.amount)
        if amount is None:
            return declined("amount_not_chargeable")
        customer, _, method = wanted.token.rpartition("/")
        params: dict[str, Any] = {
            "amount": amount,
            "currency": wanted.amount.currency.lower(),
            "confirm": True,
            "off_session": True,
            "payment_method": method,
            "metadata": wanted.metadata(),
        }
        if customer:
            params["customer"] = customer
        try:
            intent = self._client.v1.payment_intents.create(
                params=params,  # type: ignore[arg-type]  # a TypedDict of 60 keys there
                options={"idempotency_key": wanted.key},
            )
        except stripe.CardError as e:
            return declined(str((e.error and e.error.decline_code) or e.code or "unknown"))
        except stripe.StripeError as e:
            if is_method_missing(e.code, getattr(e, "param", None)):
                return declined("payment_method_missing")
            raise _trouble(e) from e
        return _outcome(intent.to_dict())

    def look_up(self, wanted: Collection) -> Collected | Declined | None:
        """What became of the attempt; None if Stripe never heard of it. Moves no money.

        Stripe's search may lag a minute behind its writes: None of a young attempt proves nothing.

        Raises:
            Transient: no answer, or the attempt is still at work.
            Misconfigured: Stripe refuses the API key.
        """
        query = f"metadata['key']:'{wanted.key}' AND metadata['tenant_id']:'{wanted.tenant_id}'"
        try:
            found = self._client.v1.payment_intents.search(params={"query": query})
        except stripe.StripeError as e:
            raise _trouble(e) from e
        return _outcome(found.data[0].to_dict()) if found.data else None

    def close(self) -> None:
        """Give this thread's connections back."""
        self._http.close()  # type: ignore[no-untyped-call]


def stripe_amount(amount: Money) -> int | None:
    """`amount` in Stripe's smallest unit; None if Stripe cannot charge exactly that."""
    shift = _exponent(amount.currency) - exponent(amount.currency)
    if shift >= 0:
        charged = amount.minor * 10**shift
    else:
        charged, rest = divmod(amount.minor, 10**-shift)
        if rest:
            return None
    return None if amount.currency in _THREE_DECIMALS and charged % 10 else charged


def _from_stripe(amount: int, currency: str) -> Money:
    shift = exponent(currency) - _exponent(currency)
    return Money(amount * 10**shift if shift >= 0 else amount // 10**-shift, currency)


def _exponent(currency: str) -> int:
    if currency in _WITHOUT_DECIMALS:
        return 0
    return 3 if currency in _THREE_DECIMALS else 2


def _outcome(intent: dict[str, Any]) -> Collected | Declined:
    return outcome_of(intent, _from_stripe(int(intent["amount_received"]), str(intent["currency"]).upper()))


def _trouble(error: stripe.StripeError) -> Exception:
    """The error class of the reaction that `error` calls for. Never carries the request, which names a customer."""
    told = f"Stripe: {type(error).__name__} {error.http_status or ''} {error.code or ''}, request {error.request_id}"
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return Misconfigured(f"{told}: TALLYBOOK_STRIPE_KEY was refused")
    if isinstance(error, stripe.IdempotencyError) and error.http_status != 409:
        return Poison(f"{told}: the key was used with other parameters")
    if isinstance(error, stripe.InvalidRequestError) and error.http_status in (400, 404):
        return Poison(f"{told}: {error.user_message or ''}")
    return Transient(f"{told}, outcome unknown")
