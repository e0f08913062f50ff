"""A small tenant to bill: one meter, one plan with a fee in advance, a test clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from billing.catalog import Plan, PublishPriceBook
from billing.customer import CreateCustomer, PaymentMethod, Provider
from billing.ids import CustomerId, SubscriptionId
from billing.metering import Meter
from billing.price import Charge, Flat, PerUnit
from billing.subscription import CreateSubscription
from billing.tenant import AdvanceClock, Policies, RegisterTenant
from tests.invoicing.handler import MemoryHandler

TENANT = "airport"
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)
MARCH = datetime(2026, 3, 1, tzinfo=UTC)

DEPARTURES = Meter(key="departures", event_type="departure")

BOOK = PublishPriceBook(
    meters=(DEPARTURES,),
    plans=(
        Plan(
            key="airside",
            name="Airside",
            currency="USD",
            charges=(
                Charge(key="base", name="Base fee", model=Flat(amount=Decimal(500)), in_advance=True, prorate=True),
                Charge(key="departures", name="Departures", model=PerUnit(unit=Decimal(12)), meter="departures"),
            ),
        ),
    ),
)


def register(clock: datetime | None = JANUARY, retry_days: tuple[int, ...] = (1, 3)) -> RegisterTenant:
    return RegisterTenant(
        name="Airport", currency="USD", zone="UTC", policies=Policies(retry_days=retry_days), test_clock=clock
    )


def customer(name: str, token: str = "pm_card_visa", provider: Provider = Provider.SANDBOX) -> CreateCustomer:
    return CreateCustomer(
        customer_id=CustomerId(name),
        payment_method=PaymentMethod(provider=provider, token="" if provider is Provider.MANUAL else token),
    )


def subscription(name: str, starts_at: datetime = JANUARY) -> CreateSubscription:
    return CreateSubscription(
        subscription_id=SubscriptionId(f"sub-{name}"), customer_id=CustomerId(name), plan="airside", starts_at=starts_at
    )


def open_airport(
    handler: MemoryHandler, *, clock: datetime | None = JANUARY, retry_days: tuple[int, ...] = (1, 3)
) -> None:
    """Register the tenant and publish its prices."""
    handler.must(TENANT, register(clock, retry_days))
    handler.must(TENANT, BOOK)


def add_airline(handler: MemoryHandler, name: str, token: str = "pm_card_visa", **more: Provider) -> None:
    """A customer with a subscription from January on."""
    handler.must(TENANT, customer(name, token, **more))
    handler.must(TENANT, subscription(name))


def advance(handler: MemoryHandler, to: datetime) -> None:
    handler.must(TENANT, AdvanceClock(to=to))


class ManualClock:
    """A clock that a test moves; sleeping moves it, too."""

    def __init__(self, at: datetime = datetime(2026, 11, 21, tzinfo=UTC)) -> None:
        self.at = at
        self._start = at

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return (self.at - self._start).total_seconds()

    def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
