"""The catalogue as code: one YAML or JSON file with a tenant, its prices, its customers and their subscriptions.

`read` checks everything that a file alone can show: the form of each field, every reference inside of the file, and
whether the price book could bill. Faults name line and field. Prices are read exactly as written.

    effective_at:   from when the prices hold for new subscriptions (local time); at once if it is left out
    tenant:         who sells: name, currency, zone, taxes, jurisdictions (taxes of customers elsewhere), bounds,
                    policies, test_clock (local time)
    meters:         what is measured
    plans:          what is charged; `model` of a charge says how, told apart by `type`
    add_ons:        what can be added to a subscription, in a quantity
    coupons:        discounts
    customers:      id, name, email, locale, payment_method, jurisdiction (where taxed), coupons to redeem, overrides
                    (own prices for a plan)
    subscriptions:  id, customer, plan, starts_at, ends_at (local time), trial, billing_day, currency, add_ons, zone (by
                    default the tenant's)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from billing import tenant
from billing.catalog import Plan, PriceBookPublished, PublishPriceBook, check_price_book
from billing.customer import PaymentMethod
from billing.discount import Coupon
from billing.errors import Rejected
from billing.metering import Meter
from billing.override import checked_override
from billing.period import Cadence, check_day, check_zone
from billing.plan import AddOn
from billing.pricing import AddOnQuantity, PriceOverride, Pricing, check_quantities, priced
from billing.tax import check_jurisdiction
from billing.tenant import RegisterTenant
from infra.money_format import check_locale
from services.catalog_sections import (
    CatalogSections,
    CustomerSection,
    OverrideSection,
    SubscriptionSection,
    TenantSection,
)
from services.meter_expressions import check_expressions
from services.positioned_yaml import Document, Unreadable, load
from services.shapes import Fault, faults, value_of

_SOME_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # of a price book that is only looked things up in


@dataclass(frozen=True, slots=True)
class NamedCustomer:
    """A customer of the file, with what stays out of the log."""

    id: str
    name: str
    email: str
    locale: str
    """How amounts are written on its invoices; empty for plain figures."""
    payment_method: PaymentMethod
    jurisdiction: str | None
    """Where it is taxed; None leaves it where it is."""
    coupons: tuple[str, ...]
    overrides: tuple[PriceOverride, ...]


@dataclass(frozen=True, slots=True)
class NamedSubscription:
    """A subscription of the file; `starts_at` and `ends_at` are still local times."""

    id: str
    customer: str
    plan: str
    starts_at: datetime | None
    currency: str | None
    add_ons: tuple[AddOnQuantity, ...]
    ends_at: datetime | None
    trial: str | None
    billing_day: int | None
    zone: str | None


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """What a file asks for."""

    sha256: str
    tenant_id: str | None
    tenant: RegisterTenant | None
    effective_at: datetime | None
    """From when the price book holds; still a local time."""
    price_book: PublishPriceBook | None
    customers: tuple[NamedCustomer, ...]
    subscriptions: tuple[NamedSubscription, ...]


class BadCatalog(Exception):
    """The file cannot be applied; each fault has its line (1 is the first)."""

    def __init__(self, found: Sequence[tuple[int, Fault]]) -> None:
        super().__init__("; ".join(f"line {line}: {each.field}: {each.detail}" for line, each in found))
        self.found = list(found)


def read(content: bytes) -> CatalogFile:
    """What `content` asks for.

    Raises:
        BadCatalog: with every fault that was found.
    """
    try:
        document = load(content)
    except Unreadable as e:
        raise BadCatalog([(e.line, e.fault)]) from e
    try:
        sections = CatalogSections.model_validate(document.data)
    except ValidationError as e:
        raise _bad(document, faults(e, document.data)) from e
    book = None
    if sections.meters or sections.plans or sections.coupons or sections.add_ons:
        book = PublishPriceBook(
            meters=value_of(tuple[Meter, ...], sections.meters),
            plans=value_of(tuple[Plan, ...], sections.plans),
            coupons=value_of(tuple[Coupon, ...], sections.coupons),
            add_ons=value_of(tuple[AddOn, ...], sections.add_ons),
        )
    found = [*_unique(sections.customers, "customers"), *_unique(sections.subscriptions, "subscriptions")]
    seller = _seller(sections.tenant, found)
    found += _impossible_times(sections.subscriptions, seller.zone if seller is not None else None)
    if seller is not None and sections.effective_at is not None:
        found += _impossible(sections.effective_at, seller.zone, "effective_at")
    for index, each in enumerate(sections.customers):
        if each.jurisdiction:
            found += _refusals(partial(check_jurisdiction, each.jurisdiction, f"customers[{index}].jurisdiction"), "")
        if each.locale:
            found += _refusals(partial(check_locale, each.locale), f"customers[{index}].")
    if book is not None:
        refused = _refusals(lambda: _checked(book), "")
        found += [*refused, *_references(sections, book)]
        found += [] if refused else _terms(sections, book)
    if found:
        raise _bad(document, found)
    return CatalogFile(
        sha256=hashlib.sha256(content).hexdigest(),
        tenant_id=sections.tenant.id if sections.tenant else None,
        tenant=seller,
        effective_at=sections.effective_at,
        price_book=book,
        customers=tuple(_customer(each) for each in sections.customers),
        subscriptions=tuple(_subscription(each) for each in sections.subscriptions),
    )


def override(plan: str, content: bytes) -> PriceOverride:
    """A customer's own prices for `plan`, written as in a file; nothing changes nothing.

    Raises:
        BadCatalog: with every fault that was found.
    """
    try:
        document = load(content)
    except Unreadable as e:
        raise BadCatalog([(e.line, e.fault)]) from e
    data = {} if document.data is None else document.data
    try:
        section = OverrideSection.model_validate({"plan": plan, **data} if isinstance(data, dict) else data)
    except ValidationError as e:
        raise _bad(document, faults(e, data)) from e
    made: PriceOverride = value_of(PriceOverride, section)
    if made.plan != plan:
        raise _bad(document, [Fault("unexpected", f"these are the prices of {plan!r}", "plan")])
    return made


def _checked(book: PublishPriceBook) -> None:
    check_price_book(book)
    check_expressions(book.meters)


def to_utc(local: datetime, zone: str) -> datetime:
    """The instant at which the clocks of `zone` show `local`; one with an offset needs no zone.

    Raises:
        Rejected: they never do (`nonexistent_local_time`), or do so twice (`ambiguous_local_time`).
    """
    if local.tzinfo is not None:
        return local.astimezone(UTC)
    here = ZoneInfo(zone)
    first, second = (local.replace(tzinfo=here, fold=fold).astimezone(UTC) for fold in (0, 1))
    shown = [at for at in (first, second) if at.astimezone(here).replace(tzinfo=None) == local]
    if not shown:
        raise Rejected("nonexistent_local_time", f"clocks in {zone} skip {local.isoformat(' ')}")
    if first != second:
        raise Rejected("ambiguous_local_time", f"clocks in {zone} show {local.isoformat(' ')} twice; add an offset")
    return first


def _seller(section: TenantSection | None, found: list[Fault]) -> RegisterTenant | None:
    if section is None:
        return None
    made = value_of(RegisterTenant, section.model_copy(update={"test_clock": None}))
    refused = _refusals(lambda: tenant.decide(tenant.initial, made), "tenant.")
    found += refused
    if refused:
        return None
    if section.test_clock is None:
        return made  # type: ignore[no-any-return]
    try:
        clock = to_utc(section.test_clock, section.zone)
    except Rejected as e:
        found.append(Fault(e.code, e.detail, "tenant.test_clock"))
        return None
    return value_of(RegisterTenant, section.model_copy(update={"test_clock": clock}))  # type: ignore[no-any-return]


def _customer(section: CustomerSection) -> NamedCustomer:
    method = value_of(PaymentMethod, section.payment_method)
    overrides = value_of(tuple[PriceOverride, ...], section.overrides)
    return NamedCustomer(
        id=section.id,
        name=section.name,
        email=section.email,
        locale=section.locale,
        payment_method=method,
        jurisdiction=section.jurisdiction,
        coupons=tuple(section.coupons),
        overrides=overrides,
    )


def _subscription(section: SubscriptionSection) -> NamedSubscription:
    return NamedSubscription(
        id=section.id,
        customer=section.customer,
        plan=section.plan,
        starts_at=section.starts_at,
        currency=section.currency,
        add_ons=value_of(tuple[AddOnQuantity, ...], section.add_ons),
        ends_at=section.ends_at,
        trial=section.trial,
        billing_day=section.billing_day,
        zone=section.zone,
    )


def _references(sections: CatalogSections, book: PublishPriceBook) -> Iterable[Fault]:
    """Plans and coupons that customers and subscriptions name are in the file: apply publishes exactly these."""
    plans, coupons = [each.key for each in book.plans], [each.code for each in book.coupons]
    for index, each in enumerate(sections.subscriptions):
        if each.plan not in plans:
            said = f"there is no plan {each.plan!r}; known: {', '.join(plans) or 'none'}"
            yield Fault("unknown_plan", said, f"subscriptions[{index}].plan")
    for index, buyer in enumerate(sections.customers):
        for place, code in enumerate(buyer.coupons):
            if code not in coupons:
                said = f"there is no coupon {code!r}; known: {', '.join(coupons) or 'none'}"
                yield Fault("unknown_coupon", said, f"customers[{index}].coupons[{place}]")


def _terms(sections: CatalogSections, book: PublishPriceBook) -> Iterable[Fault]:
    """Currencies, add-ons and own prices fit the plans of the file, which could bill by themselves."""
    published = PriceBookPublished(
        version=1, effective_at=_SOME_TIME, meters=book.meters, plans=book.plans, add_ons=book.add_ons
    )
    plans = [each.key for each in book.plans]
    for index, each in enumerate(sections.subscriptions):
        if each.plan in plans:
            yield from _refusals(partial(_check_terms, _subscription(each), published), f"subscriptions[{index}].")
    for index, buyer in enumerate(sections.customers):
        for place, own in enumerate(value_of(tuple[PriceOverride, ...], buyer.overrides)):
            for fault in _refusals(partial(checked_override, own, published), ""):
                where = fault.field.replace("override", f"customers[{index}].overrides[{place}]", 1)
                yield Fault(fault.code, fault.detail, where)


def _check_terms(wish: NamedSubscription, book: PriceBookPublished) -> None:
    """Refuse a subscription whose times, billing day, currency or add-ons do not fit the plan."""
    plan = book.plan(wish.plan)
    check_quantities(wish.add_ons)
    check_day(Cadence("UTC", _SOME_TIME, plan.interval, plan.alignment, wish.billing_day), "billing_day")
    if wish.starts_at and wish.ends_at and not _is_before(wish.starts_at, wish.ends_at):
        said = f"{wish.ends_at} is not after the start, {wish.starts_at}; allowed is any later time"
        raise Rejected("end_before_start", said, field="ends_at")
    currency = wish.currency or plan.currency
    try:
        priced(Pricing(plan=wish.plan, price_book_version=1, currency=currency), {1: book})
    except Rejected as e:
        raise Rejected(e.code, e.detail, field="currency") from e
    for index, each in enumerate(wish.add_ons):
        try:
            priced(Pricing(plan=wish.plan, price_book_version=1, currency=currency, add_ons=(each,)), {1: book})
        except Rejected as e:
            raise Rejected(e.code, e.detail, field=f"add_ons[{index}].add_on") from e


def _is_before(start: datetime, end: datetime) -> bool:
    """As far as it can be told: one of them may have an offset and the other be local."""
    return start < end if (start.tzinfo is None) is (end.tzinfo is None) else True


def _impossible_times(sections: Sequence[SubscriptionSection], zone: str | None) -> Iterable[Fault]:
    """Zones that there are not, and local times that clocks skip or show twice; `zone` is that of the file's tenant."""
    for index, each in enumerate(sections):
        path = f"subscriptions[{index}]"
        unknown = [] if each.zone is None else _refusals(partial(check_zone, each.zone, "zone"), f"{path}.")
        yield from unknown
        here = each.zone or zone
        if unknown or here is None:
            continue
        for name, local in (("starts_at", each.starts_at), ("ends_at", each.ends_at)):
            if local is not None:
                yield from _impossible(local, here, f"{path}.{name}")


def _impossible(local: datetime, zone: str, field: str) -> Iterable[Fault]:
    try:
        to_utc(local, zone)
    except Rejected as e:
        yield Fault(e.code, e.detail, field)


def _unique(sections: Sequence[CustomerSection | SubscriptionSection], where: str) -> Iterable[Fault]:
    seen: set[str] = set()
    for index, each in enumerate(sections):
        if each.id in seen:
            yield Fault("duplicate", f"{each.id!r} stands there twice", f"{where}[{index}].id")
        seen.add(each.id)


def _refusals(check: Any, prefix: str) -> list[Fault]:
    try:
        check()
    except Rejected as e:
        return [Fault(e.code, e.detail, f"{prefix}{e.field}" if e.field else prefix.rstrip("."))]
    return []


def _bad(document: Document, found: Sequence[Fault]) -> BadCatalog:
    return BadCatalog([(document.line(each.field), each) for each in found])
