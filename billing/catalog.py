"""The catalogue: meters, plans and coupons, published as immutable price-book versions.

    (empty) --PublishPriceBook--> version 1 --PublishPriceBook--> version 2 ...

A version is never edited. Subscriptions name the version they are billed under; usage of a period is rated
by the version that the period was closed with (SEMANTICS 25).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from billing.catalog_check import check_price_book as check_price_book
from billing.discount import Coupon
from billing.errors import Rejected
from billing.metering import Meter
from billing.plan import AddOn
from billing.plan import LatePolicy as LatePolicy
from billing.plan import Plan as Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishPriceBook:
    """Publish the next version of the tenant's price book."""

    effective_at: datetime | None = None
    """From when new subscriptions use it; null means at once."""
    meters: tuple[Meter, ...] = ()
    """All meters of the tenant."""
    plans: tuple[Plan, ...] = ()
    """All plans of the tenant."""
    coupons: tuple[Coupon, ...] = ()
    """All coupons of the tenant."""
    add_ons: tuple[AddOn, ...] = ()
    """All add-ons of the tenant."""


Command = PublishPriceBook


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBookPublished:
    """A version of the price book was published."""

    version: int
    """1, 2, 3, ... per tenant."""
    effective_at: datetime
    """From when new subscriptions use it."""
    meters: tuple[Meter, ...] = ()
    """All meters of the tenant."""
    plans: tuple[Plan, ...] = ()
    """All plans of the tenant."""
    coupons: tuple[Coupon, ...] = ()
    """All coupons of the tenant."""
    add_ons: tuple[AddOn, ...] = ()
    """All add-ons of the tenant."""

    def plan(self, key: str) -> Plan:
        """The plan called `key`.

        Raises:
            Rejected: this version has no such plan.
        """
        for plan in self.plans:
            if plan.key == key:
                return plan
        known = ", ".join(plan.key for plan in self.plans) or "none"
        raise Rejected("unknown_plan", f"price book {self.version} has no plan {key!r}; it has: {known}", field="plan")

    def add_on(self, key: str) -> AddOn:
        """The add-on called `key`.

        Raises:
            Rejected: this version has no such add-on.
        """
        for add_on in self.add_ons:
            if add_on.key == key:
                return add_on
        known = ", ".join(add_on.key for add_on in self.add_ons) or "none"
        said = f"price book {self.version} has no add-on {key!r}; it has: {known}"
        raise Rejected("unknown_add_on", said, field="add_on")

    def coupon(self, code: str) -> Coupon:
        """The coupon called `code`.

        Raises:
            Rejected: this version has no such coupon.
        """
        for coupon in self.coupons:
            if coupon.code == code:
                return coupon
        raise Rejected("unknown_coupon", f"price book {self.version} has no coupon {code!r}", field="coupon")


Event = PriceBookPublished


@dataclass(frozen=True, slots=True)
class State:
    """All versions, oldest first: version n is `books[n - 1]`."""

    books: tuple[PriceBookPublished, ...] = ()

    @property
    def by_version(self) -> dict[int, PriceBookPublished]:
        """Every version by its number."""
        return {book.version: book for book in self.books}

    def at(self, instant: datetime) -> PriceBookPublished:
        """The version in force at `instant`.

        Raises:
            Rejected: nothing is in force then.
        """
        for book in reversed(self.books):
            if book.effective_at <= instant:
                return book
        raise Rejected("no_price_book", f"no price book is in force at {instant}")


initial = State()


def decide(state: State, command: Command, now: datetime) -> Sequence[Event]:
    """The facts that follow from `command`; none if the newest version already says the same.

    Raises:
        Rejected: naming the field of the first mistake.
    """
    check_price_book(command)
    effective_at = command.effective_at or now
    newest = state.books[-1] if state.books else None
    if newest and _content(newest) == _content(command):
        return []
    if newest and effective_at < newest.effective_at:
        raise Rejected(
            "effective_before_newest",
            f"version {newest.version} is effective at {newest.effective_at}; allowed is that or later",
            field="effective_at",
        )
    return [
        PriceBookPublished(
            version=len(state.books) + 1,
            effective_at=effective_at,
            meters=command.meters,
            plans=command.plans,
            coupons=command.coupons,
            add_ons=command.add_ons,
        )
    ]


def _content(book: PriceBookPublished | PublishPriceBook) -> tuple[object, ...]:
    return book.meters, book.plans, book.coupons, book.add_ons


def evolve(state: State, event: Event) -> State:
    """The state after `event`."""
    return State((*state.books, event))
