"""Parts of a hard limit, promised before they are used: whatever races, what is granted never exceeds the limit.

reserve ---> commit, with the usage event that uses it up: the promise ends when that event is counted
   +-------> release, if it is not needed; or it lapses after its `ttl`
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from tallybook_sdk.event import UsageEvent, new_id
from tallybook_sdk.http_calls import HttpCalls, NoAnswer
from tallybook_sdk.living import watch

_PATH: Final = "/v1/entitlements/reservations"
_BUSY: Final = 500
_MINUTE: Final = timedelta(minutes=1)


class OutcomeUnknown(Exception):
    """Nobody answers, or not in a way that says anything: the call may have been taken. Repeat it, with its key."""


class NotReserved(Exception):
    """The wish was refused, and nothing came of it. Asking again at once gets the same answer."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        """Stable, for programs: `not_granted`, `not_metered`, `invalid_state`, `not_found`, `unauthorized`, ..."""


class LimitExceeded(NotReserved):
    """Less is left of the limit than was asked for. Says how much is."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A promise."""

    id: str
    customer: str
    feature: str
    quantity: Decimal
    state: str
    """`held`, `committed`, `counted` (its event is), `released` or `expired`."""
    expires_at: datetime
    source: str | None
    """Of the usage event that uses it up; None until it is committed."""
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Granted:
    """A promise that was made."""

    reservation: Reservation
    remaining: Decimal | None
    """What can still be promised; None without a hard limit."""
    replayed: bool
    """It had been made before, under the same key."""


class ReservationClient:
    """Reservations of one tenant's customers, over HTTP. Safe to share between threads and with forks.

    >>> client = ReservationClient("https://tallybook", api_key=key)
    >>> granted = client.reserve("c-1", "export", 5)
    >>> usage.send(event)
    >>> client.commit(granted.reservation.id, event, source="api-gateway")

    Every method is free to repeat. `OutcomeUnknown`: nobody knows what became of the call; repeat it.
    """

    def __init__(self, http: str, *, api_key: str, timeout: timedelta = timedelta(seconds=5)) -> None:
        """`http`: address of Tallybook's API. `timeout`: of each call. Raises `ValueError`: `http` is no address."""
        self._calls = HttpCalls(http, api_key, timeout)
        watch(self)

    def reserve(
        self,
        customer: str,
        feature: str,
        quantity: Decimal | int,
        *,
        ttl: timedelta = _MINUTE,
        key: str | None = None,
    ) -> Granted:
        """Promise `quantity`, in the unit of the feature's limit, for `ttl` (whole seconds, up to a day).

        The same `key` and wish gets the same promise again. Without a key each call is a wish of its own: give one if
        you may have to repeat it, for after `OutcomeUnknown` the promise may have been made, and hold until its `ttl`.

        Raises:
            LimitExceeded: less than that is left.
            NotReserved: the customer does not have the feature, it has no limit, or the wish is wrong.
            OutcomeUnknown: nobody knows; repeat it with its key.
            TypeError: `quantity` is a float, which is not exact.
        """
        wish = {
            "customer": customer,
            "feature": feature,
            "quantity": _text(quantity),
            "ttl_seconds": int(ttl.total_seconds()),
        }
        told, replayed = self._asked("POST", _PATH, wish, key or new_id())
        return Granted(_reservation(told["reservation"]), _exact(told["remaining"]), replayed)

    def commit(self, reservation: str, event: UsageEvent | str, *, source: str | None = None) -> Reservation:
        """Say which usage event uses the promise up: sent already, or about to be. It ends when that event is counted.

        It waits for the event an hour at least. `event`: it, or its id; `source`: needed where `event` tells none.

        Raises:
            NotReserved: it lapsed, was released, or was committed to another event.
            OutcomeUnknown: nobody knows; repeat it.
        """
        named = event.source if isinstance(event, UsageEvent) else None
        told = named or source
        if not told:
            raise ValueError("source: the event tells none; give the producer's")
        wish = {"source": told, "event_id": event.id if isinstance(event, UsageEvent) else event}
        return _reservation(self._ask("POST", f"{_PATH}/{quote(reservation, safe='')}/commit", wish))

    def release(self, reservation: str) -> Reservation:
        """Give the promise back unused; one that lapsed is as good as released.

        Raises:
            NotReserved: it was committed: its event may be on the way.
            OutcomeUnknown: nobody knows; repeat it.
        """
        return _reservation(self._ask("POST", f"{_PATH}/{quote(reservation, safe='')}/release", {}))

    def find(self, reservation: str) -> Reservation:
        """The promise as it stands.

        Raises:
            NotReserved: there is none, or it ended days ago.
            OutcomeUnknown: nobody answers.
        """
        return _reservation(self._ask("GET", f"{_PATH}/{quote(reservation, safe='')}", None))

    def forget(self) -> None:
        """In the child of a fork: the connections are the parent's."""
        self._calls.forget()

    def close(self, timeout: timedelta = timedelta(0)) -> None:
        """Close all connections; nobody may be in a call. Reservations stay as they are."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, method: str, path: str, wish: dict[str, Any] | None) -> Any:
        return self._asked(method, path, wish)[0]

    def _asked(self, method: str, path: str, wish: dict[str, Any] | None, key: str = "") -> tuple[Any, bool]:
        """The answer, and whether it repeats an earlier one."""
        body = None if wish is None else json.dumps(wish).encode()
        try:
            status, answer, headers = self._calls.call(method, path, body, {"Idempotency-Key": key} if key else None)
        except NoAnswer as e:
            raise OutcomeUnknown(str(e)) from e
        if status >= _BUSY:
            raise OutcomeUnknown(f"HTTP: {status} {answer[:200].decode(errors='replace')}")
        try:
            told = json.loads(answer)
            if status < 300:
                return told, headers.get("Idempotency-Replayed") == "true"
            code, detail = str(told["code"]), str(told["detail"])
        except (ValueError, KeyError, TypeError) as e:
            raise OutcomeUnknown(f"HTTP: an answer that is none of ours: {answer[:100]!r}") from e
        raise (LimitExceeded if code == "limit_exceeded" else NotReserved)(code, detail)


class AsyncReservationClient:
    """As `ReservationClient`, for an event loop: calls wait in threads of the loop's executor."""

    def __init__(self, http: str, *, api_key: str, timeout: timedelta = timedelta(seconds=5)) -> None:
        """As that of `ReservationClient`."""
        self._client = ReservationClient(http, api_key=api_key, timeout=timeout)

    async def reserve(
        self,
        customer: str,
        feature: str,
        quantity: Decimal | int,
        *,
        ttl: timedelta = _MINUTE,
        key: str | None = None,
    ) -> Granted:
        """As `ReservationClient.reserve`; if the wait is cancelled, the promise may be made all the same."""
        return await asyncio.to_thread(self._client.reserve, customer, feature, quantity, ttl=ttl, key=key)

    async def commit(self, reservation: str, event: UsageEvent | str, *, source: str | None = None) -> Reservation:
        """As `ReservationClient.commit`."""
        return await asyncio.to_thread(self._client.commit, reservation, event, source=source)

    async def release(self, reservation: str) -> Reservation:
        """As `ReservationClient.release`."""
        return await asyncio.to_thread(self._client.release, reservation)

    async def find(self, reservation: str) -> Reservation:
        """As `ReservationClient.find`."""
        return await asyncio.to_thread(self._client.find, reservation)

    async def close(self) -> None:
        """As `ReservationClient.close`."""
        self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def _reservation(told: dict[str, Any]) -> Reservation:
    return Reservation(
        id=told["id"],
        customer=told["customer"],
        feature=told["feature"],
        quantity=Decimal(told["quantity"]),
        state=told["state"],
        expires_at=datetime.fromisoformat(told["expires_at"]),
        source=told["source"],
        event_id=told["event_id"],
    )


def _text(quantity: object) -> str:
    if isinstance(quantity, bool) or not isinstance(quantity, Decimal | int):
        raise TypeError(f"quantity: {quantity!r} is not exact; give an int or a Decimal")
    return format(quantity, "f") if isinstance(quantity, Decimal) else str(quantity)


def _exact(told: Any) -> Decimal | None:
    return None if told is None else Decimal(told)
