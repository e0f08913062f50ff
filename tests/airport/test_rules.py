"""The rules alone, without any server: the airport's year by the deciders equals the independent calculation."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from hashlib import sha256
from typing import Any

import pytest

from billing.catalog import Plan, PublishPriceBook
from billing.customer import CreateCustomer, RedeemCoupon
from billing.decision import TenantState, chain, facts, record
from billing.discount import Coupon
from billing.envelope import CommandEnvelope, CommandMeta, EventEnvelope
from billing.ids import CustomerId, SubscriptionId, TenantId
from billing.invoice import InvoiceFinalized, IssueInvoice
from billing.invoicing import BillingRun, Need, PartitionPosition, lines, needs
from billing.ledger import imbalance
from billing.metering import Aggregation, Measured, Meter
from billing.price import Cell, Charge, Flat, Graduated, Matrix, Package, Tier, Volume
from billing.subscription import ActivateSubscription, Active, CloseBillingPeriod, CreateSubscription, Scheduled
from billing.tax import TaxRate
from billing.tenant import AdvanceClock, RegisterTenant
from tests.airport import independent

WALL = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = TenantId("airport")


def money(text: str) -> Decimal:
    return Decimal(text)


AIRSIDE = Plan(
    key="airside",
    name="Airside",
    currency="USD",
    minimum_commitment=money("1500.00"),
    charges=(
        Charge(key="base", name="Base fee", model=Flat(amount=money("500.00")), in_advance=True),
        Charge(
            key="departures",
            name="Departures",
            meter="departures",
            model=Graduated(
                tiers=(
                    Tier(up_to=money("1000"), unit=money("12.00")),
                    Tier(up_to=money("3000"), unit=money("9.50")),
                    Tier(unit=money("7.25")),
                )
            ),
        ),
        Charge(
            key="miles",
            name="Miles",
            meter="miles",
            model=Volume(
                tiers=(
                    Tier(up_to=money("1000000"), unit=money("0.0110")),
                    Tier(up_to=money("3000000"), unit=money("0.0095")),
                    Tier(unit=money("0.0080")),
                )
            ),
        ),
        Charge(
            key="aircraft", name="Aircraft", meter="aircraft", model=Package(size=money("10"), price=money("25.00"))
        ),
        Charge(
            key="gate",
            name="Gate",
            meter="departures",
            model=Matrix(
                dimensions=("origin",),
                cells=(
                    Cell(values=("EWR",), unit=money("3.10")),
                    Cell(values=("JFK",), unit=money("4.25")),
                    Cell(values=("LGA",), unit=money("5.05")),
                ),
            ),
        ),
    ),
)
BOOK = PublishPriceBook(
    meters=(
        Meter(key="departures", event_type="flight.departed", dimensions=("origin",)),
        Meter(key="miles", event_type="flight.departed", aggregation=Aggregation.SUM, value="distance"),
        Meter(key="aircraft", event_type="flight.departed", aggregation=Aggregation.UNIQUE, value="tailnum"),
    ),
    plans=(AIRSIDE,),
    coupons=(Coupon(code="welcome", percent=money("10"), invoices=3),),
)


class Office:
    """One tenant in memory: sends commands, closes what is due and issues every invoice at once."""

    def __init__(self) -> None:
        self.state = TenantState(TENANT)
        self.flights = independent.flights()
        self.flights["utc"] = self.flights["local"].dt.tz_localize("America/New_York").dt.tz_convert("UTC")
        self.own = dict(list(self.flights.groupby("carrier")))
        self.invoices: list[InvoiceFinalized] = []

    def send(self, command: Any) -> list[EventEnvelope]:
        meta = CommandMeta(
            command_id="c", tenant=TENANT, idempotency_key=repr(command), actor="test", correlation_id="c", sent_at=WALL
        )
        cause = CommandEnvelope(meta, command)
        chained = chain(self.state, facts(self.state, command, WALL), cause, b"", WALL, _hash)
        record(self.state, chained)
        made = [each.envelope for each in chained]
        self.invoices += [each.event for each in made if isinstance(each.event, InvoiceFinalized)]
        return made

    def work(self, now: datetime) -> None:
        """What scheduler and invoicing do until nothing is due at `now`."""
        for key in sorted(self.state.subscriptions):
            while (command := self._due(key, now)) is not None:
                for made in self.send(command):
                    run = getattr(made.event, "run", None)
                    if isinstance(run, BillingRun):
                        self._issue(run)

    def _due(self, key: SubscriptionId, now: datetime) -> ActivateSubscription | CloseBillingPeriod | None:
        match self.state.subscriptions[key]:
            case Scheduled(terms=terms) if terms.starts_at <= now:
                return ActivateSubscription(subscription_id=key)
            case Active() as active if active.boundary <= now:
                positions = (PartitionPosition(partition=0, offset=1),)
                return CloseBillingPeriod(subscription_id=key, period_end=active.boundary, positions=positions)
        return None

    def _issue(self, run: BillingRun) -> None:
        books = {book.version: book for book in self.state.catalog.books}
        quantities = {need: self._measure(run.customer_id, need) for need in needs(run, books, ())}
        self.send(IssueInvoice(invoice_id=run.invoice_id, lines=lines(run, books, (), quantities)))

    def _measure(self, customer: str, need: Need) -> Measured:
        own = self.own[customer]
        own = own[(own["utc"] >= need.period.start) & (own["utc"] < need.period.end)]
        match need.meter.key:
            case "departures":
                cells = tuple(sorted(((origin,), Decimal(n)) for origin, n in own["origin"].value_counts().items()))
                return Measured(Decimal(len(own)), cells, events=len(own))
            case "miles":
                return Measured(Decimal(int(own["distance"].sum())), events=len(own))
            case _:
                return Measured(Decimal(own["tailnum"].nunique()), events=len(own))


def _hash(envelope: EventEnvelope) -> bytes:
    return sha256(repr(envelope).encode()).digest()


@cache
def the_year() -> Office:
    office = Office()
    new_year = independent.NEW_YEAR.replace(tzinfo=independent.NEW_YORK).astimezone(UTC)
    office.send(
        RegisterTenant(
            name="Port Authority",
            currency="USD",
            zone="America/New_York",
            taxes=(TaxRate(code="sales", percent=money("8.875")),),
            test_clock=new_year,
        )
    )
    office.send(BOOK)
    for airline in sorted(office.own):
        office.send(CreateCustomer(customer_id=CustomerId(airline)))
        starts = independent.STARTS.get(airline, independent.NEW_YEAR).replace(tzinfo=independent.NEW_YORK)
        office.send(
            CreateSubscription(
                subscription_id=SubscriptionId(f"sub_{airline}"),
                customer_id=CustomerId(airline),
                plan="airside",
                starts_at=starts.astimezone(UTC),
            )
        )
    office.send(RedeemCoupon(customer_id=CustomerId("HA"), coupon="welcome"))
    office.work(new_year)
    for month in independent.MONTHS[1:]:
        now = month.replace(tzinfo=independent.NEW_YORK).astimezone(UTC)
        office.send(AdvanceClock(to=now))
        office.work(now)
    return office


def test_every_invoice_equals_the_independent_calculation() -> None:
    office = the_year()
    expected = defaultdict(list)
    for total in independent.invoices(office.flights):
        expected[total.airline].append(total.cents)
    made = defaultdict(list)
    for invoice in office.invoices:
        made[str(invoice.customer_id)].append(invoice.total.minor)
    assert made == expected
    assert len(office.invoices) == 205


def test_numbers_are_gapless_and_every_entry_balances() -> None:
    office = the_year()
    assert [invoice.serial for invoice in office.invoices] == list(range(1, 206))
    assert not any(imbalance(invoice.postings) for invoice in office.invoices)


@pytest.mark.parametrize(("airline", "invoices"), [("UA", 13), ("YV", 12), ("OO", 11)])
def test_an_airline_gets_an_invoice_at_its_start_and_at_each_period_end(airline: str, invoices: int) -> None:
    assert sum(invoice.customer_id == airline for invoice in the_year().invoices) == invoices
