"""Where usage belongs on the log: the tenants' spreads as they were published, and the partition of each event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import tallybook_sdk
from billing.metering import UsageControl, UsageEvent
from billing.placing import Spread, partition_of, touched, width_at
from infra import postgres
from infra.kafka import partition_for
from infra.postgres import Cursor
from infra.settings import Settings

Spreads = tuple[Spread, ...]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Layout:
    """The usage log: how many partitions it has, and whose home each is."""

    partitions: int

    def home(self, tenant: str) -> int:
        """The partition of the tenant's key."""
        return partition_for(tenant, self.partitions)

    def place(self, tenant: str, spread: Spreads, event: UsageEvent) -> int:
        """The partition of an event, in every version of the spread that will ever be."""
        return partition_of(self.home(tenant), self.partitions, width_at(spread, event.time), event.source, event.id)

    def place_at(self, control: UsageControl, time_us: int, source: str, id: str) -> int:
        """The same of an event told by its time, in microseconds since 1970, source and id."""
        width = width_at(control.spread, _EPOCH + timedelta(microseconds=time_us))
        return partition_of(self.home(control.tenant), self.partitions, width, source, id)

    def touched(self, tenant: str, spread: Spreads) -> tuple[int, ...]:
        """Every partition in which usage of the tenant may lie."""
        return touched(self.home(tenant), self.partitions, spread)

    def candidates(self, tenant: str, spread: Spreads, source: str, id: str) -> tuple[int, ...]:
        """Where the event (`source`, `id`) lies, if its time is not known: one for each way in which it was spread."""
        home, widths = self.home(tenant), {1, *(each.partitions for each in spread)}
        return tuple(sorted({partition_of(home, self.partitions, width, source, id) for width in widths}))

    def divided(self, tenant: str, spread: Spreads, events: Sequence[UsageEvent]) -> dict[int, list[UsageEvent]]:
        """`events` by the partition of each, their order kept."""
        if not spread:
            return {self.home(tenant): list(events)}
        found: dict[int, list[UsageEvent]] = {}
        for each in events:
            found.setdefault(self.place(tenant, spread, each), []).append(each)
        return found


def spreads(tx: Cursor, tenants: Iterable[str]) -> dict[str, Spreads]:
    """The published spread of each of `tenants` that has one. `tx` reads as a worker, or as one of them."""
    rows = tx.execute(
        "SELECT tenant_id, effective_from, partitions FROM app.usage_spread WHERE tenant_id = ANY(%s) ORDER BY 1, 2",
        (sorted(set(tenants)),),
    ).fetchall()
    found: dict[str, Spreads] = {}
    for tenant, since, partitions in rows:
        found[tenant] = (*found.get(tenant, ()), Spread(effective_from=since, partitions=partitions))
    return found


def spread_of(tx: Cursor, tenant: str) -> Spreads:
    """The published spread of `tenant`."""
    return spreads(tx, [tenant]).get(tenant, ())


def published_to(settings: Settings, tenant: str) -> tallybook_sdk.Spread | None:
    """The tenant's spread as the SDK takes it; None if there is none.

    Where only Kafka is known, no spread is: usage that belongs elsewhere is refused then, and can be requeued.
    """
    if not settings.postgres and not settings.postgres_worker:
        return None
    url = postgres.worker_url(settings)
    with postgres.connect(url) as connection, connection.cursor() as tx, postgres.translated():
        spread = spread_of(tx, tenant)
    versions = tuple((each.effective_from, each.partitions) for each in spread)
    return tallybook_sdk.Spread(settings.usage_partitions, versions) if versions else None
