"""Pricing: what rates a subscription for a span of time, and the charges that this comes down to.

    Pricing (frozen on the run)  +  price book  -->  Priced: charges, their meters, the commitment

    plan in its currency -> phase -> the customer's own prices -> discounts -> add-ons

A run names its pricing in full, so that an invoice is a function of the log and never of what was sold later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from billing.catalog import PriceBookPublished
from billing.entitlement import Entitlement
from billing.errors import Rejected
from billing.metering import Meter
from billing.money import EXACT
from billing.period import multiple
from billing.plan import AddOn, CurrencyPrices, Phase, Plan, TrialUsage, prices_in
from billing.price import ZERO, Charge
from billing.proration import Proration

Books = Mapping[int, PriceBookPublished]
QUANTITY_MAX = 1_000_000  # far above any order, far below what could overflow an amount
_HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOnQuantity:
    """How many of an add-on a subscription has."""

    add_on: str
    """Key of the add-on."""
    quantity: int = 1
    """1 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOverride:
    """What one customer pays for a plan instead of its prices."""

    plan: str
    """Key of the plan."""
    currency: str | None = None
    """ISO 4217 code of the prices it replaces; null for the plan's own currency."""
    charges: tuple[Charge, ...] = ()
    """Instead of the plan's charges with the same key."""
    minimum_commitment: Decimal | None = None
    """Instead of the plan's; null leaves that."""
    discount_percent: Decimal = ZERO
    """Taken off every charge of the plan, 0 to 100, beside the charge's own discount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What rates a subscription."""

    plan: str
    """Key of the plan."""
    price_book_version: int
    """Version of the price book that has the plan and the add-ons."""
    currency: str
    """ISO 4217 code: which of their prices hold."""
    period_number: int = 1
    """1 for the first period on the plan, a partial one counts; says which phase holds. 0 in the trial before it."""
    add_ons: tuple[AddOnQuantity, ...] = ()
    """What was added, by key."""
    override: PriceOverride | None = None
    """The customer's own prices; null for those of the plan."""

    @property
    def in_trial(self) -> bool:
        """Whether nothing but usage may cost anything."""
        return self.period_number == 0


@dataclass(frozen=True, slots=True)
class PricedCharge:
    """A charge with the meter that it is about."""

    charge: Charge
    meter: Meter | None
    quantity: int = 1
    """How many times a fee is charged."""

    @property
    def in_advance(self) -> bool:
        """Whether it is a fee that is billed when each period of the subscription begins."""
        return self.charge.in_advance and self.charge.interval is None

    @property
    def rule(self) -> PricedCharge:
        """What decides its amounts: it is the same charge as long as this stays, whatever it is called."""
        return replace(self, charge=replace(self.charge, name=""))


@dataclass(frozen=True, slots=True)
class Priced:
    """What a pricing comes down to."""

    key: str
    """Key of the plan."""
    name: str
    """Name of the plan, for people."""
    charges: tuple[PricedCharge, ...]
    """In the order of the invoice's lines: those of the plan, then those of the add-ons."""
    minimum_commitment: Decimal | None
    """Least amount per full period in major units."""
    proration: Proration = Proration.SECOND
    """What a part of a period costs."""
    interval: str = "P1M"
    """Length of its periods."""


def priced(pricing: Pricing, books: Books) -> Priced:
    """The charges of `pricing`.

    Raises:
        Rejected: the price book has no such plan or add-on, or no prices for it in this currency.
    """
    book = books[pricing.price_book_version]
    plan = book.plan(pricing.plan)
    prices = _prices(plan, pricing.currency, "plan")
    phase = phase_at(prices.phases, pricing.period_number - plan.free_periods)
    charges, commitment = prices.charges, prices.minimum_commitment
    if phase is not None:
        charges = discounted(_replaced(charges, phase.charges), phase.discount_percent)
    own = pricing.override
    if own is not None:
        meters = {each.key: each.meter for each in charges}
        fitting = [each for each in own.charges if each.key in meters and meters[each.key] == each.meter]
        charges = discounted(_replaced(charges, fitting), own.discount_percent)
        commitment = own.minimum_commitment if own.minimum_commitment is not None else commitment
    if 1 <= pricing.period_number <= plan.free_periods:
        charges, commitment = _for_nothing(charges), None
    items = [(each, 1) for each in charges]
    for added in pricing.add_ons:
        items += [(each, added.quantity) for each in _of_add_on(book, added.add_on, pricing)]
    if pricing.in_trial:
        items, commitment = _on_trial(items, plan.trial_usage), None
    items = [(_with_the_plan(each, plan), quantity) for each, quantity in items]
    known = {meter.key: meter for meter in book.meters}
    return Priced(
        key=plan.key,
        name=plan.name,
        charges=tuple(
            PricedCharge(each, known[each.meter] if each.meter else None, 1 if each.meter else quantity)
            for each, quantity in items
        ),
        minimum_commitment=commitment,
        proration=plan.proration,
        interval=plan.interval,
    )


def check_quantities(add_ons: Sequence[AddOnQuantity]) -> None:
    """Refuse a number of add-ons that is none, and one that is named twice.

    Raises:
        Rejected: naming the field.
    """
    for index, each in enumerate(add_ons):
        check_quantity(each.quantity, f"add_ons[{index}].quantity")
        if each.add_on in [one.add_on for one in add_ons[:index]]:
            raise Rejected("duplicate", f"{each.add_on!r} stands there twice", field=f"add_ons[{index}].add_on")


def check_quantity(quantity: int, field: str) -> None:
    """Refuse a number of add-ons that is none.

    Raises:
        Rejected: naming `field`.
    """
    if not 1 <= quantity <= QUANTITY_MAX:
        raise Rejected("out_of_range", f"{quantity}: allowed are 1 to {QUANTITY_MAX}", field=field)


def phase_at(phases: Sequence[Phase], period_number: int) -> Phase | None:
    """The phase that holds in that period on the plan; None after the last."""
    for phase in phases:
        if period_number <= phase.periods:
            return phase
        period_number -= phase.periods
    return None


def discounted(charges: Iterable[Charge], percent: Decimal) -> tuple[Charge, ...]:
    """`charges` with `percent` off what is left of each after its own discount."""
    if not percent:
        return tuple(charges)

    def both(own: Decimal) -> Decimal:
        return EXACT.add(own, EXACT.multiply(EXACT.subtract(_HUNDRED, own), EXACT.multiply(percent, Decimal("0.01"))))

    return tuple(replace(each, discount_percent=both(each.discount_percent)) for each in charges)


def entitlements(pricing: Pricing, book: PriceBookPublished) -> tuple[Entitlement, ...]:
    """The features that `pricing` grants: those of the plan, and of its add-ons; limits of one feature add up."""
    made = {each.feature: each for each in book.plan(pricing.plan).entitlements}
    for added in pricing.add_ons:
        for each in book.add_on(added.add_on).entitlements:
            limit = None if each.limit is None else EXACT.multiply(each.limit, Decimal(added.quantity))
            known = made.get(each.feature)
            if known is not None and known.limit is not None and limit is not None:
                limit = EXACT.add(limit, known.limit)
            made[each.feature] = replace(
                known or each, limit=limit if known is None or known.limit is not None else None
            )
    return tuple(made.values())


def _with_the_plan(charge: Charge, plan: Plan) -> Charge:
    """`charge` without an interval if that is the plan's own."""
    if charge.interval is None or multiple(charge.interval, plan.interval, plan.alignment) != 1:
        return charge
    return replace(charge, interval=None)


def _for_nothing(charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """`charges` in a free period: shown with their arithmetic, at zero. A least amount would hold in spite of that."""
    return tuple(replace(each, discount_percent=_HUNDRED, minimum=None) for each in charges)


def _on_trial(items: Sequence[tuple[Charge, int]], usage: TrialUsage) -> list[tuple[Charge, int]]:
    """What a trial charges of `items`: no fees, nothing that is owed whatever was used, usage only if it is billed."""
    billed = [each for each in items if each[0].meter is not None and usage is TrialUsage.BILLED]
    return [(replace(charge, minimum=None, commitment=None, interval=None), quantity) for charge, quantity in billed]


def _of_add_on(book: PriceBookPublished, key: str, pricing: Pricing) -> list[Charge]:
    add_on = book.add_on(key)
    if add_on.plans and pricing.plan not in add_on.plans:
        said = f"add-on {key!r} cannot be added to plan {pricing.plan!r}; allowed: {', '.join(add_on.plans)}"
        raise Rejected("add_on_of_other_plan", said, field="add_on")
    prices = _prices(add_on, pricing.currency, "add_on")
    return [replace(each, key=f"{key}.{each.key}") for each in prices.charges]


def _prices(item: Plan | AddOn, currency: str, field: str) -> CurrencyPrices:
    found = prices_in(item, currency)
    if found is None:
        known = ", ".join([item.currency, *(each.currency for each in item.prices)])
        said = f"{item.key!r} has prices in {known}; the subscription is billed in {currency}"
        raise Rejected("currency_mismatch", said, field=field)
    return found


def _replaced(charges: Sequence[Charge], by: Sequence[Charge]) -> tuple[Charge, ...]:
    """`charges` with those of the same key replaced, and the others of `by` after them."""
    instead = {each.key: each for each in by}
    kept = [instead.pop(each.key, each) for each in charges]
    return (*kept, *instead.values())
