"""Usage for the tests: events, records as they stand in the log, and what a tenant measures by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from billing.ids import TenantId
from billing.metering import (
    Aggregation,
    Filter,
    Meter,
    UsageAmended,
    UsageBatch,
    UsageControl,
    UsageEvent,
    UsageVoided,
)
from billing.tenant import UsageBounds
from infra.kafka import Record
from schemas.codec import UsageMessage, encode_usage
from services.usage_placing import Layout

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
TENANT = "acme"

CALLS = Meter(key="calls", event_type="api", dimensions=("region",))
BYTES = Meter(key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region", "kind"))
PEAK = Meter(key="peak", event_type="api", aggregation=Aggregation.MAX, value="bytes")
LEAST = Meter(key="least", event_type="api", aggregation=Aggregation.MIN, value="bytes")
LAST = Meter(key="last", event_type="api", aggregation=Aggregation.LATEST, value="bytes")
USERS = Meter(key="users", event_type="api", aggregation=Aggregation.UNIQUE, value="user", dimensions=("region",))
EU_CALLS = Meter(key="eu", event_type="api", filters=(Filter(property="region", values=("eu", "ch")),))
MEAN = Meter(key="mean", event_type="api", aggregation=Aggregation.AVERAGE, value="bytes", dimensions=("region",))
LEVEL = Meter(key="level", event_type="api", aggregation=Aggregation.WEIGHTED_SUM, value="bytes")
MEDIAN = Meter(key="median", event_type="api", aggregation=Aggregation.PERCENTILE, value="bytes", percent=Decimal(50))
METERS = (CALLS, BYTES, PEAK, LEAST, LAST, USERS, EU_CALLS, MEAN, LEVEL, MEDIAN)


def event(id: str, at: datetime = NOON, customer: str = "c1", type: str = "api", **properties: str) -> UsageEvent:
    """An event of source `test`; `bytes` is 1 unless given."""
    return UsageEvent(
        id=id, source="test", type=type, customer=customer, time=at, properties={"bytes": "1", **properties}
    )


def control(version: int = 1, meters: Sequence[Meter] = METERS, tenant: str = TENANT, **more: Any) -> UsageControl:
    """Measures by `meters`; `clock` and `bounds` may be given."""
    return UsageControl(
        tenant=TenantId(tenant),
        version=version,
        meters=tuple(meters),
        bounds=more.pop("bounds", UsageBounds()),
        **more,
    )


def batch(*events: UsageEvent, tenant: str = TENANT) -> UsageBatch:
    """One record's events."""
    return UsageBatch(tenant=TenantId(tenant), events=events)


def void(id: str, tenant: str = TENANT) -> UsageVoided:
    """Voids the event of source `test`."""
    return UsageVoided(tenant=TenantId(tenant), source="test", id=id, reason="sent by mistake")


def amendment(amended: UsageEvent, tenant: str = TENANT) -> UsageAmended:
    """Amends the event with the identity of `amended`."""
    return UsageAmended(tenant=TenantId(tenant), event=amended, reason="wrong amount")


@dataclass(frozen=True, slots=True)
class Home(Layout):
    """A log whose partition `home_at` is the home of every tenant."""

    home_at: int = 0

    def home(self, tenant: str) -> int:
        return self.home_at


class Log:
    """One partition of usage.events, written by hand."""

    def __init__(self, partition: int = 0, topic: str = "usage.events") -> None:
        self.partition = partition
        self.topic = topic
        self.records: list[Record] = []

    def append(
        self,
        content: UsageMessage | bytes | None,
        *,
        key: bytes | None = TENANT.encode(),
        headers: Mapping[str, bytes] | None = None,
        repeated: tuple[str, ...] = (),
        at: datetime = NOON,
        skip: int = 0,
    ) -> Record:
        """The next record; `skip` offsets before it hold transaction markers."""
        value = content if content is None or isinstance(content, bytes) else encode_usage(content)
        tenant = b"" if content is None or isinstance(content, bytes) else content.tenant.encode()
        record = Record(
            self.topic,
            self.partition,
            (self.records[-1].offset + 1 if self.records else 0) + skip,
            key,
            value,
            {"tenant": tenant} if headers is None else headers,
            repeated,
            at,
        )
        self.records.append(record)
        return record


def opened(**more: Any) -> Log:
    """A log whose tenant is registered."""
    log = Log()
    log.append(control(**more))
    return log


def hours(number: float) -> timedelta:
    """`number` hours, exact to the microsecond."""
    return timedelta(microseconds=round(number * 3_600_000_000))
