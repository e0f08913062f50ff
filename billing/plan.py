"""What is sold: plans and the add-ons beside them, with their prices in one or more currencies.

period             1       2       3       4 ...
phases     |-trial-|- free |-- launch: half price --|-- then what the plan says
           a phase replaces or adds charges by key, or takes a percentage off all of them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from billing.entitlement import Entitlement
from billing.period import Alignment
from billing.price import ZERO, Charge
from billing.proration import Proration


class LatePolicy(StrEnum):
    """What happens with usage that arrives after its period was closed (SEMANTICS 16)."""

    NEXT_INVOICE = "next_invoice"


class TrialUsage(StrEnum):
    """What usage within a trial costs."""

    FREE = "free"
    BILLED = "billed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A number of periods in which a plan costs something else, counted from the first period on the plan."""

    name: str
    """For people."""
    periods: int
    """How many periods it lasts; a first partial period counts."""
    charges: tuple[Charge, ...] = ()
    """Instead of the plan's charges with the same key, or beside them."""
    discount_percent: Decimal = ZERO
    """Taken off every charge of the plan, 0 to 100, beside the charge's own discount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyPrices:
    """The prices of a plan or an add-on in a further currency."""

    currency: str
    """ISO 4217 code."""
    charges: tuple[Charge, ...]
    """The same charges, by key, with other prices."""
    minimum_commitment: Decimal | None = None
    """As that of the plan, in this currency; null for none."""
    phases: tuple[Phase, ...] = ()
    """As those of the plan, in this currency; may be left out if they only take off a percentage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a customer can subscribe to."""

    key: str
    """Unique in the price book."""
    name: str
    """For people."""
    currency: str
    """ISO 4217 code of its prices."""
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
    phases: tuple[Phase, ...] = ()
    """One after the other from the first period on; then the plan's own prices hold."""
    prices: tuple[CurrencyPrices, ...] = ()
    """Prices in further currencies; a subscription names one of them, or takes the plan's own."""
    proration: Proration = Proration.SECOND
    """Whether a partial period is charged by elapsed seconds, by calendar days, or in full."""
    trial: str | None = None
    """Length of the trial before the first period, an ISO 8601 duration such as P14D; null for none."""
    trial_usage: TrialUsage = TrialUsage.FREE
    """Whether usage within the trial is billed when the trial ends; fees never are."""
    free_periods: int = 0
    """How many periods cost nothing, counted from the first one on the plan; phases begin after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOn:
    """What can be added to a subscription, in a quantity, billed with its periods."""

    key: str
    """Unique in the price book."""
    name: str
    """For people."""
    currency: str
    """ISO 4217 code of its prices."""
    charges: tuple[Charge, ...]
    """What is charged; fees times the quantity, usage as it is measured."""
    prices: tuple[CurrencyPrices, ...] = ()
    """Prices in further currencies."""
    plans: tuple[str, ...] = ()
    """Keys of the plans it can be added to; empty for all."""
    entitlements: tuple[Entitlement, ...] = ()
    """Features that it grants; limits times the quantity, added to those of the plan."""


def own_prices(item: Plan | AddOn) -> CurrencyPrices:
    """The prices of `item` in its first currency."""
    if isinstance(item, AddOn):
        return CurrencyPrices(currency=item.currency, charges=item.charges)
    return CurrencyPrices(
        currency=item.currency,
        charges=item.charges,
        minimum_commitment=item.minimum_commitment,
        phases=item.phases,
    )


def prices_in(item: Plan | AddOn, currency: str) -> CurrencyPrices | None:
    """The prices of `item` in `currency`; None if it has none. Phases that only take off a percentage hold in each."""
    first = own_prices(item)
    found = next((each for each in (first, *item.prices) if each.currency == currency), None)
    if found is None or found.phases or any(phase.charges for phase in first.phases):
        return found
    return replace(found, phases=first.phases)
