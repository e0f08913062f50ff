"""The catalogue: meters, plans and coupons, published as immutable price-book versions.

    (empty) --PublishPriceBook--> version 1 --PublishPriceBook--> version 2 ...

A version is never edited. Subscriptions name the version they are billed under; usage of a period is rated
by the version that the period was closed with (SEMANTICS 25).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from billing.discount import Coupon
from billing.entitlement import Entitlement, EntitlementKind
from billing.errors import Rejected
from billing.metering import Aggregation, Meter, check_meter
from billing.money import exponent
from billing.period import Alignment, check_interval
from billing.price import Charge
from billing.price_check import check


class LatePolicy(StrEnum):
    """What happens with usage that arrives after its period was closed (SEMANTICS 16)."""

    NEXT_INVOICE = "next_invoice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a customer can subscribe to."""

    key: str
    """Unique in the price book."""
    name: str
    """For people."""
    currency: str
    """ISO 4217 code of all its prices."""
    interval: str = "P1M"
    """Length of a billing period, an ISO 8601 duration of whole days, weeks, months or years."""
    alignment: Alignment = Alignment.CALENDAR
    """Whether periods start with the calendar or on the subscription's anniversary."""
    charges: tuple[Charge, ...]
    """What is charged, in the order of the invoice's lines."""
    minimum_commitment: Decimal | None = None
    """Least amount per full period in major units, before tax; advance fees and usage count toward it."""
    late_policy: LatePolicy = LatePolicy.NEXT_INVOICE
    """What happens with late usage."""
    entitlements: tuple[Entitlement, ...] = ()
    """Features that it grants."""


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
    if newest and (newest.meters, newest.plans, newest.coupons) == (command.meters, command.plans, command.coupons):
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
        )
    ]


def evolve(state: State, event: Event) -> State:
    """The state after `event`."""
    return State((*state.books, event))


def check_price_book(book: PublishPriceBook) -> None:
    """Refuse a price book that could not bill: every reference resolves, every charge can be rated.

    Raises:
        Rejected: naming the field of the first mistake, such as `plans[0].charges[2].model.tiers[1].up_to`.
    """
    _unique([meter.key for meter in book.meters], "meters", "key")
    _unique([plan.key for plan in book.plans], "plans", "key")
    _unique([coupon.code for coupon in book.coupons], "coupons", "code")
    for index, meter in enumerate(book.meters):
        check_meter(meter, f"meters[{index}]")
    meters = {meter.key: meter for meter in book.meters}
    for index, plan in enumerate(book.plans):
        _check_plan(plan, meters, f"plans[{index}]")
    for index, coupon in enumerate(book.coupons):
        coupon.check(f"coupons[{index}]")


def _check_plan(plan: Plan, meters: dict[str, Meter], path: str) -> None:
    exponent(plan.currency, f"{path}.currency")
    check_interval(plan.interval, plan.alignment, f"{path}.interval")
    if not plan.charges:
        raise Rejected("missing", "a plan needs at least one charge", field=f"{path}.charges")
    _unique([charge.key for charge in plan.charges], f"{path}.charges", "key")
    if plan.minimum_commitment is not None and plan.minimum_commitment < 0:
        raise Rejected("out_of_range", "allowed is 0 or more", field=f"{path}.minimum_commitment")
    for index, charge in enumerate(plan.charges):
        where = f"{path}.charges[{index}]"
        check(charge, where)
        if charge.meter is None:
            continue
        if charge.meter not in meters:
            raise Rejected("unknown_meter", _known(charge.meter, meters), field=f"{where}.meter")
        missing = set(charge.dimensions) - set(meters[charge.meter].dimensions)
        if missing:
            raise Rejected(
                "unknown_dimension",
                f"meter {charge.meter!r} is not split by {', '.join(sorted(missing))}",
                field=f"{where}.model.dimensions",
            )
        if charge.dimensions and meters[charge.meter].aggregation is Aggregation.LATEST:
            raise Rejected("not_additive", "a latest value has no cells to price", field=f"{where}.model.dimensions")
        fewer = charge.dimensions and set(charge.dimensions) != set(meters[charge.meter].dimensions)
        if fewer and meters[charge.meter].aggregation not in (Aggregation.COUNT, Aggregation.SUM):
            raise Rejected(
                "not_additive",
                f"only counts and sums add up over the other dimensions of meter {charge.meter!r}; name all of them",
                field=f"{where}.model.dimensions",
            )
    _unique([each.feature for each in plan.entitlements], f"{path}.entitlements", "feature")
    for index, entitlement in enumerate(plan.entitlements):
        _check_entitlement(entitlement, meters, f"{path}.entitlements[{index}]")


def _check_entitlement(entitlement: Entitlement, meters: dict[str, Meter], path: str) -> None:
    if entitlement.kind is EntitlementKind.BOOLEAN:
        if entitlement.meter is not None or entitlement.limit is not None:
            raise Rejected("unexpected", "a boolean feature has neither meter nor limit", field=path)
        return
    if entitlement.meter is None or entitlement.meter not in meters:
        raise Rejected("unknown_meter", _known(entitlement.meter, meters), field=f"{path}.meter")
    if entitlement.limit is None or entitlement.limit < 0:
        raise Rejected("out_of_range", "a metered feature needs a limit of 0 or more", field=f"{path}.limit")


def _unique(names: list[str], path: str, field: str) -> None:
    for index, name in enumerate(names):
        if not name:
            raise Rejected("missing", "it needs a name", field=f"{path}[{index}].{field}")
        if name in names[:index]:
            raise Rejected("duplicate", f"{name!r} stands there twice", field=f"{path}[{index}].{field}")


def _known(key: str | None, meters: dict[str, Meter]) -> str:
    return f"there is no meter {key!r}; known: {', '.join(sorted(meters)) or 'none'}"
