"""What a line of a timeline can ask for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from billing.money import Money


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Put a customer, who is created if need be, on a plan."""

    customer: str
    plan: str
    subscription: str
    """The customer's id unless named."""
    starts_at: datetime | None = None
    """Local; None for the present time of the scenario."""
    ends_at: datetime | None = None
    """Local; None for never."""
    trial: str | None = None
    """None for that of the plan."""
    billing_day: int | None = None
    zone: str | None = None
    """None for the tenant's."""
    currency: str | None = None
    """None for that of the plan."""
    add_ons: tuple[tuple[str, int], ...] = ()
    """Key and quantity of what it includes from the start."""


@dataclass(frozen=True, slots=True)
class Change:
    """Put a subscription on another plan."""

    subscription: str
    plan: str
    at_period_end: bool = True


@dataclass(frozen=True, slots=True)
class Migrate:
    """Put a subscription on the newest version of its plan."""

    subscription: str
    at_period_end: bool = True


@dataclass(frozen=True, slots=True)
class Add:
    """Have a subscription include an add-on, in a quantity."""

    subscription: str
    add_on: str
    quantity: int = 1
    at_period_end: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """Take an add-on off a subscription."""

    subscription: str
    add_on: str
    at_period_end: bool = True


@dataclass(frozen=True, slots=True)
class Override:
    """Have a customer pay own prices for a plan; they stand below, and none takes them back."""

    customer: str
    plan: str


@dataclass(frozen=True, slots=True)
class Use:
    """Usage that arrives now. Each of `each` is one event's properties."""

    customer: str
    type: str
    each: tuple[dict[str, str], ...]
    count: int = 1
    """How many events alike."""
    at: datetime | None = None
    """Local time of the usage itself; None for the present time of the scenario."""
    id: str = ""
    """Identity; empty for one of its own."""
    source: str = "scenario"


@dataclass(frozen=True, slots=True)
class Void:
    """Usage that arrived before is taken back."""

    id: str
    source: str = "scenario"


@dataclass(frozen=True, slots=True)
class Amend:
    """Usage that arrived before counts as `event`, which has its identity; without a time, at the time that it has."""

    event: Use


@dataclass(frozen=True, slots=True)
class Anchor:
    """Have the periods of a subscription begin at other times."""

    subscription: str
    to: datetime | None = None
    """Local; None for when it takes effect."""
    at_period_end: bool = True


@dataclass(frozen=True, slots=True)
class Zone:
    """Bill a subscription by another zone."""

    subscription: str
    zone: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a subscription."""

    subscription: str
    at_period_end: bool = True


@dataclass(frozen=True, slots=True)
class Redeem:
    """Give a customer a coupon's discount."""

    customer: str
    coupon: str


@dataclass(frozen=True, slots=True)
class TaxIn:
    """Have a customer be taxed in a jurisdiction."""

    customer: str
    jurisdiction: str


@dataclass(frozen=True, slots=True)
class Give:
    """Grant a customer credit."""

    customer: str
    amount: Money
    grant: str
    purchased: bool = False
    priority: int | None = None
    expires_at: datetime | None = None
    """Local; None for never."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the next version of the price book."""

    file: str
    """Empty: the sections stand below."""


@dataclass(frozen=True, slots=True)
class Pay:
    """An invoice was paid outside."""

    number: str


@dataclass(frozen=True, slots=True)
class Clock:
    """Let time pass; whatever falls due by then happens."""


Verb = (
    Subscribe
    | Change
    | Migrate
    | Add
    | Remove
    | Anchor
    | Zone
    | Override
    | Use
    | Void
    | Amend
    | Cancel
    | Redeem
    | TaxIn
    | Give
    | Publish
    | Pay
    | Clock
)
