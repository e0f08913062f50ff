"""Collects through the sandbox provider, over plain HTTP. Amounts travel in ISO 4217 minor units."""

from __future__ import annotations

from typing import Any

import httpx

from billing.money import Money
from infra.collection import Collected, Collection, Declined, declined, is_method_missing, outcome_of
from infra.errors import Misconfigured, Poison, Transient

TIMEOUT_S = 20  # well inside the lease of a payment row, so that no second worker asks while the first still waits


class SandboxGateway:
    """The sandbox provider as a payment gateway. Safe to share between threads."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers={"Authorization": "Bearer sk_test_sandbox"})

    def collect(self, wanted: Collection) -> Collected | Declined:
        """Try once to collect. Repeating a key repeats its first answer, for a day.

        Raises:
            Transient: the outcome is unknown; ask again with the same key.
            Poison: the provider refuses the request itself; it will never work.
            Misconfigured: the provider refuses our credentials.
        """
        form = {
            "amount": str(wanted.amount.minor),
            "currency": wanted.amount.currency.lower(),
            "confirm": "true",
            "off_session": "true",
            "payment_method": wanted.token,
            **{f"metadata[{name}]": value for name, value in wanted.metadata().items()},
        }
        status, body = self._call("POST", "/v1/payment_intents", data=form, headers={"Idempotency-Key": wanted.key})
        if status == 200:
            return _outcome(body)
        error = body.get("error") or {}
        if status == 402:
            return declined(str(error.get("decline_code") or error.get("code") or "unknown"))
        if is_method_missing(error.get("code"), error.get("param")):
            return declined("payment_method_missing")
        raise _trouble(status, error)

    def look_up(self, wanted: Collection) -> Collected | Declined | None:
        """What became of the attempt; None if the provider never heard of it. Moves no money.

        Raises:
            Transient: no answer, or the attempt is still at work.
            Misconfigured: the provider refuses our credentials.
        """
        query = f"metadata['key']:'{wanted.key}' AND metadata['tenant_id']:'{wanted.tenant_id}'"
        status, body = self._call("GET", "/v1/payment_intents/search", params={"query": query})
        if status != 200:
            raise _trouble(status, body.get("error") or {})
        return _outcome(body["data"][0]) if body["data"] else None

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def _call(self, method: str, path: str, **request: Any) -> tuple[int, dict[str, Any]]:
        try:
            response = self._http.request(method, path, **request)
            body = response.json()
        except httpx.HTTPError as e:
            raise Transient(f"sandbox: {type(e).__name__}, outcome unknown") from e
        except ValueError as e:
            raise Transient("sandbox: half an answer, outcome unknown") from e
        return response.status_code, body if isinstance(body, dict) else {}


def _outcome(intent: dict[str, Any]) -> Collected | Declined:
    return outcome_of(intent, Money(int(intent["amount_received"]), str(intent["currency"]).upper()))


def _trouble(status: int, error: dict[str, Any]) -> Exception:
    told = f"sandbox: {status} {error.get('code') or error.get('type') or ''}: {error.get('message', '')}"
    if status in (409, 429) or status >= 500:
        return Transient(told)
    if status in (401, 403):
        return Misconfigured(told)
    return Poison(told)
