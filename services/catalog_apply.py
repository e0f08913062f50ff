"""Makes a tenant be what a catalogue file says: commands in order, each harmless if repeated.

A file describes a wish, not a change: what is so already stays unchanged, so applying it again, or after a crash in
the middle, is free. Nothing is removed by leaving it out, except from the price book, which is published whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from billing.customer import AttachPaymentMethod, CreateCustomer, RedeemCoupon, SetJurisdiction, SetPriceOverride
from billing.envelope import CommandResult, Outcome
from billing.errors import Rejected
from billing.ids import CustomerId, SubscriptionId
from billing.subscription import CreateSubscription
from billing.tenant import ChangeTenantSettings, RegisterTenant
from services.catalog_file import CatalogFile, NamedCustomer, NamedSubscription, to_utc
from services.customer_profile import Profile
from services.read_rows import SubscriptionRow
from services.shapes import plain

CREATED, CHANGED, UNCHANGED = "created", "changed", "unchanged"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one thing that the file names."""

    what: str
    """`tenant`, `price book`, `customer`, `coupon`, `own prices` or `subscription`."""
    id: str
    outcome: str
    """`created`, `changed` or `unchanged`."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """What applying needs of the world."""

    ask: Callable[[Any, str], CommandResult]
    """Send a command under an idempotency key; its result."""
    write_profile: Callable[[str, Profile], bool]
    """Store a customer's name and address; whether that changed anything."""
    zone: Callable[[], str]
    """The tenant's zone, for local times, when the file does not say it."""
    subscription: Callable[[str], SubscriptionRow | None]
    """A subscription as far as it is known."""


def apply(file: CatalogFile, world: World) -> Iterator[Change]:
    """Do what `file` asks for, one change after the other.

    Raises:
        Rejected: the rules say no; what was reported before is done.
        Transient: something is unreachable; run it again.
    """
    if file.tenant is not None:
        yield _tenant(file.tenant, world)
    if file.price_book is not None:
        yield _publish(file, world)
    for customer in file.customers:
        yield _customer(customer, world)
        for code in customer.coupons:
            command = RedeemCoupon(customer_id=CustomerId(customer.id), coupon=code)
            result = _accepted(world.ask(command, _once("coupon")))
            yield Change("coupon", f"{code} for {customer.id}", _outcome(result))
        for own in customer.overrides:
            result = _accepted(
                world.ask(SetPriceOverride(customer_id=CustomerId(customer.id), override=own), _once("prices"))
            )
            yield Change("own prices", f"{own.plan} for {customer.id}", _outcome(result))
    if file.subscriptions:
        zone = _zone(file, world)
        for subscription in file.subscriptions:
            yield _subscription(subscription, zone, world)


def planned(file: CatalogFile) -> list[Change]:
    """What `apply` would ask for, without asking."""
    made = [Change("tenant", file.tenant.name, "would register")] if file.tenant else []
    if file.price_book is not None:
        book = file.price_book
        said = f"{len(book.meters)} meters, {len(book.plans)} plans, {len(book.coupons)} coupons"
        made.append(Change("price book", "next version", "would publish", said))
    for each in file.customers:
        made.append(Change("customer", each.id, "would create"))
        made += [Change("coupon", f"{code} for {each.id}", "would redeem") for code in each.coupons]
        made += [Change("own prices", f"{own.plan} for {each.id}", "would set") for own in each.overrides]
    for wish in file.subscriptions:
        made.append(Change("subscription", wish.id, "would create", f"{wish.customer} on {wish.plan}"))
    return made


def effective_at(file: CatalogFile, zone: Callable[[], str]) -> datetime | None:
    """From when the file's prices hold; None for at once. `zone` says where, if the file does not."""
    if file.effective_at is None:
        return None
    return to_utc(file.effective_at, file.tenant.zone if file.tenant is not None else zone())


def _zone(file: CatalogFile, world: World) -> str:
    return file.tenant.zone if file.tenant is not None else world.zone()


def _tenant(wish: RegisterTenant, world: World) -> Change:
    result = world.ask(wish, _key("tenant", wish))
    if result.outcome is Outcome.REJECTED and result.code == "tenant_settings_differ":
        settings = ChangeTenantSettings(taxes=wish.taxes, jurisdictions=wish.jurisdictions, policies=wish.policies)
        _accepted(world.ask(settings, _once("tenant-settings")))
        return Change("tenant", wish.name, CHANGED, "other taxes or policies from now on")
    return Change("tenant", wish.name, _outcome(_accepted(result)))


def _publish(file: CatalogFile, world: World) -> Change:
    assert file.price_book is not None
    # Not derived from the content: going back to an earlier catalogue is a wish of its own, and a repetition of
    # the newest one is no change anyway.
    command = replace(file.price_book, effective_at=effective_at(file, world.zone))
    result = _accepted(world.ask(command, _once(f"catalog:{file.sha256[:16]}")))
    return Change("price book", f"sha256 {file.sha256[:12]}", _outcome(result))


def _customer(customer: NamedCustomer, world: World) -> Change:
    method, id = customer.payment_method, CustomerId(customer.id)
    wish = CreateCustomer(customer_id=id, payment_method=method, jurisdiction=customer.jurisdiction or "")
    result = world.ask(wish, _once("customer"))
    if result.outcome is Outcome.REJECTED and result.code == "customer_exists":
        outcome, detail = _changed_customer(customer, world)
    else:
        outcome, detail = _outcome(_accepted(result)), ""
    renamed = world.write_profile(customer.id, Profile(customer.name, customer.email, customer.locale))
    if renamed and outcome == UNCHANGED:
        outcome, detail = CHANGED, "another name, email or locale"
    return Change("customer", customer.id, outcome, detail)


def _changed_customer(customer: NamedCustomer, world: World) -> tuple[str, str]:
    id = CustomerId(customer.id)
    attach = AttachPaymentMethod(customer_id=id, payment_method=customer.payment_method)
    done = {"pays with another method": _accepted(world.ask(attach, _once("payment-method")))}
    if customer.jurisdiction is not None:
        moved = SetJurisdiction(customer_id=id, jurisdiction=customer.jurisdiction)
        done["is taxed elsewhere"] = _accepted(world.ask(moved, _once("jurisdiction")))
    said = [what for what, result in done.items() if _outcome(result) == CREATED]
    return (CHANGED, ", ".join(said)) if said else (UNCHANGED, "")


def _subscription(wish: NamedSubscription, zone: str, world: World) -> Change:
    zone = wish.zone or zone
    starts_at = to_utc(wish.starts_at, zone) if wish.starts_at is not None else None
    command = CreateSubscription(
        subscription_id=SubscriptionId(wish.id),
        customer_id=CustomerId(wish.customer),
        plan=wish.plan,
        starts_at=starts_at,
        currency=wish.currency,
        add_ons=wish.add_ons,
        trial=wish.trial,
        ends_at=to_utc(wish.ends_at, zone) if wish.ends_at is not None else None,
        billing_day=wish.billing_day,
        zone=wish.zone,
    )
    result = world.ask(command, _key("subscription", command))
    if result.outcome is Outcome.REJECTED and result.code == "subscription_exists":
        known = world.subscription(wish.id)
        if known is not None and _same(known, wish, starts_at):
            moved = f"is on {known.plan} since; `subscriptions change` moves it" if known.plan != wish.plan else ""
            return Change("subscription", wish.id, UNCHANGED, moved)
    return Change("subscription", wish.id, _outcome(_accepted(result)))


def _same(known: SubscriptionRow, wish: NamedSubscription, starts_at: datetime | None) -> bool:
    """Whether it is the subscription that the file names; what it was changed to since is not the file's to undo."""
    wanted = (wish.customer, starts_at or known.starts_at, wish.currency or known.currency)
    return (known.customer, known.starts_at, known.currency) == wanted


def _accepted(result: CommandResult) -> CommandResult:
    if result.outcome is Outcome.REJECTED:
        raise Rejected(result.code, result.detail, field=result.field)
    return result


def _outcome(result: CommandResult) -> str:
    return CREATED if result.last_sequence and not result.replayed else UNCHANGED


def _once(what: str) -> str:
    """A key for a command that changes nothing when its wish is fulfilled already."""
    return f"cli:{what}:{uuid4().hex}"


def _key(what: str, command: Any) -> str:
    """A key that the same wish has on every run."""
    content = json.dumps(plain(command), sort_keys=True).encode()
    return f"cli:{what}:{hashlib.sha256(content).hexdigest()[:32]}"
