"""The API as a client sees it: real routes, real Postgres with the API's own role, real rules deciding in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
from fastapi.testclient import TestClient

from billing.catalog import Plan, PublishPriceBook
from billing.discount import Coupon
from billing.entitlement import NOT_GRANTED, Access, Entitlement, EntitlementKind, WhenUnknown
from billing.envelope import EventEnvelope
from billing.metering import Aggregation, Meter, UsageAmended, UsageEvent, UsageVoided
from billing.price import Charge, Flat, PerUnit
from billing.tenant import RegisterTenant
from infra import postgres
from infra.clock import SystemClock
from infra.kafka import Record
from infra.settings import Settings
from projections import generation
from projections.billing_set import apply_all
from projections.usage_events import Place
from services import api_keys
from services.api.app import create_app
from services.api.cursors import Cursors
from services.api.parts import Parts
from services.api.server import cursor_secret
from services.entitlements import Answer
from services.reservations import Reservations
from services.usage_backfilling import LogTooShort
from services.usage_log import RawEvent, event_in
from services.usage_placing import Layout, Spreads
from tests.invoicing.handler import MemoryHandler
from tests.usage.making import Log

BOOK = PublishPriceBook(
    meters=(
        Meter(key="calls", event_type="call"),
        Meter(key="bytes", event_type="call", aggregation=Aggregation.SUM, value="bytes"),
    ),
    plans=(
        Plan(
            key="pro",
            name="Pro",
            currency="USD",
            charges=(
                Charge(key="base", name="Base fee", model=Flat(amount=Decimal("20.00")), in_advance=True),
                Charge(key="calls", name="Calls", model=PerUnit(unit=Decimal("0.005")), meter="calls"),
            ),
            entitlements=(
                Entitlement(feature="calls", kind=EntitlementKind.METERED, meter="calls", limit=Decimal(10)),
            ),
        ),
    ),
    coupons=(Coupon(code="TEN", percent=Decimal(10)),),
)
SELLER = RegisterTenant(name="Harbour Air", currency="USD", zone="America/New_York")


@dataclass
class Broker:
    """Remembers the usage that was published, and acknowledges it."""

    published: list[tuple[str, UsageEvent]] = field(default_factory=list)
    error: Exception | None = None
    corrections: list[UsageVoided | UsageAmended] = field(default_factory=list)
    corrected_in: list[int] = field(default_factory=list)
    """The partition of each."""

    def correct(self, correction: UsageVoided | UsageAmended, partition: int) -> None:
        if self.error is not None:
            raise self.error
        self.corrections.append(correction)
        self.corrected_in.append(partition)

    def publish(self, tenant: str, events: Sequence[UsageEvent], spread: Spreads = ()) -> None:
        if self.error is not None:
            raise self.error
        self.published += [(tenant, each) for each in events]


@dataclass
class Records:
    """Reads usage again from logs that were written by hand."""

    logs: list[Log] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)
    """By partition: the first offset that is left; 0 unless given."""

    def events(self, places: Iterable[Place]) -> dict[Place, RawEvent]:
        records = {(log.partition, record.offset): record for log in self.logs for record in log.records}
        found = {each: event_in(records[each[:2]], each.batch_index) for each in places if each[:2] in records}
        return {place: event for place, event in found.items() if event is not None}

    def between(self, partition: int, start: int, end: int) -> Iterator[Sequence[Record]]:
        if start < self.first.get(partition, 0):
            raise LogTooShort(f"it begins at {self.first[partition]}")
        (log,) = (each for each in self.logs if each.partition == partition)
        yield [each for each in log.records if start <= each.offset < end]

    def record(self, partition: int, offset: int) -> Record | None:
        found = (each for log in self.logs if log.partition == partition for each in log.records)
        return next((each for each in found if each.offset == offset), None)

    def starts(self, partitions: Iterable[int]) -> dict[int, int]:
        return {each: self.first.get(each, 0) for each in partitions}


@dataclass
class Granted:
    """Answers entitlements from a table."""

    answers: dict[tuple[str, str, str], Access] = field(default_factory=dict)

    at_hand: dict[tuple[str, str, str], Access] = field(default_factory=dict)
    """What is answered without a thread."""

    async def at_once(self, tenant: str, customer: str, feature: str) -> Answer | None:
        access = self.at_hand.get((tenant, customer, feature))
        return access and Answer(access, "cache", False, datetime(2013, 1, 1, tzinfo=UTC), "1-0", WhenUnknown.CLOSED)

    def access(self, tenant: str, customer: str, feature: str) -> Answer:
        access = self.answers.get((tenant, customer, feature), NOT_GRANTED)
        return Answer(access, "cache", False, datetime(2013, 1, 1, tzinfo=UTC), "1-0", WhenUnknown.CLOSED)


class Edge:
    """An application and what it stands on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers = postgres.worker_pool(settings)
        self.pool = postgres.api_pool(settings)
        self.handler = MemoryHandler(SystemClock().now)
        self.broker = Broker()
        self.usage_log = Records()
        self.entitlements = Granted()
        self.lagging = False
        """True: what is decided from now on is not projected."""
        self.handler.listeners.append(self._project)
        self.parts = Parts(
            pool=self.pool,
            commands=self.handler,  # type: ignore[arg-type]  # it names its parameters alike
            usage=self.broker,
            layout=Layout(settings.usage_partitions),
            usage_log=self.usage_log,
            entitlements=self.entitlements,
            reservations=Reservations(self.pool),
            cursors=Cursors(cursor_secret(self.pool)),
            clock=SystemClock(),
            position_wait_s=0.2,
        )
        self.http = TestClient(create_app(self.parts), raise_server_exceptions=False)
        self._numbers = itertools.count()

    def close(self) -> None:
        self.http.close()
        self.pool.close()
        self.workers.close()

    def seller(self, tenant: str, **changes: Any) -> Client:
        """A registered tenant with a price book, as its application."""
        self.handler.must(tenant, RegisterTenant(**{"name": "Harbour Air", "currency": "USD", "zone": "UTC"} | changes))
        self.handler.must(tenant, BOOK)
        return self.client(tenant)

    def client(self, tenant: str) -> Client:
        with postgres.transaction(self.workers) as tx:
            key = api_keys.create(tx, tenant, "test")
        return Client(self, tenant, key)

    def number(self) -> int:
        return next(self._numbers)

    def _project(self, envelope: EventEnvelope) -> None:
        if self.lagging:
            return
        with postgres.transaction(self.workers) as tx:
            generation.enter(tx, "billing", writes=True)
            apply_all(tx, envelope)


@dataclass
class Client:
    """An application of one tenant."""

    edge: Edge
    tenant: str
    key: str

    def send(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str
    ) -> httpx.Response:
        """A request with the key; commands get a new idempotency key, unless one is given (empty: none)."""
        given = {"Authorization": f"Bearer {self.key}"}
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if content is not None:
            given["Content-Type"] = "application/json"
            given["Idempotency-Key"] = f"test-{self.edge.number()}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in (given | named).items() if value is not None}
        return self.edge.http.request(method, path, content=content, headers=sent)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.send("POST", path, body, **headers)
