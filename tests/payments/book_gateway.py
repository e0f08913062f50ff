"""The sandbox's book without HTTP, as a gateway whose answers can be lost."""

from __future__ import annotations

from typing import Any

from billing.money import Money
from infra.collection import Collected, Collection, Declined, declined, outcome_of
from infra.errors import Transient
from infra.sandbox_book import Answer, Book


class BookGateway:
    """Faults are taken one by one, by `collect` only: `before`, `after`, `500`, `500_charged`."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.faults: list[str] = []
        self.posts: list[str] = []
        """Keys of every request for money."""
        self.lookups = 0

    def collect(self, wanted: Collection) -> Collected | Declined:
        fault = self.faults.pop(0) if self.faults else ""
        self.posts.append(wanted.key)
        if fault == "before":
            raise Transient("connection refused")
        params = {
            "amount": str(wanted.amount.minor),
            "currency": wanted.amount.currency,
            "confirm": "true",
            "payment_method": wanted.token,
            **{f"metadata[{name}]": value for name, value in wanted.metadata().items()},
        }
        answer = self.book.saved(wanted.key, params)
        if answer is None:
            answer = self.book.charge(wanted.key, params, fail=fault == "500", lose=fault == "500_charged")
        if fault == "after":
            raise Transient("answer lost")
        return _read(answer)

    def look_up(self, wanted: Collection) -> Collected | Declined | None:
        self.lookups += 1
        found = self.book.search(f"metadata['key']:'{wanted.key}'").body["data"]
        return _outcome(found[0]) if found else None


def _read(answer: Answer) -> Collected | Declined:
    if answer.status == 402:
        return declined(answer.body["error"]["decline_code"])
    if answer.status != 200:
        raise Transient(f"{answer.status}")
    return _outcome(answer.body)


def _outcome(intent: dict[str, Any]) -> Collected | Declined:
    return outcome_of(intent, Money(intent["amount_received"], intent["currency"].upper()))
