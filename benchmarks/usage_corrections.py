"""What corrections of usage cost a writer: `python -m benchmarks.usage_corrections [--run N] [--runs N]`.

Counts events of the last 24 hours, of which the older half is in the sums by day, then voids and amends some of them,
as a worker does, without Kafka. Prints the time of a correction that is alone in its batch, of those that stand
together, of those with an event between any two, and of an event that is counted for the first time.
TALLYBOOK_POSTGRES names the owner of a server; without it an embedded one is started.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import uuid_utils

from benchmarks.machine import busy, description
from benchmarks.usage_queries import percentile, prepared, server
from billing.ids import TenantId
from billing.metering import Aggregation, Meter, UsageAmended, UsageBatch, UsageControl, UsageEvent, UsageVoided
from billing.tenant import UsageBounds
from infra import postgres
from infra.faust_app import Batch
from infra.kafka import Record
from projections import usage
from schemas.codec import UsageMessage, encode_usage
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from services.usage_rolling import roll

TENANT = "acme"
METER = Meter(key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",))
HORIZON = timedelta(hours=24)

Correct = Callable[[UsageEvent], UsageMessage]


class Writer:
    """A worker of one partition, and the events that it counted and nobody corrected."""

    def __init__(self, pool: postgres.Pool, customers: int) -> None:
        self._customers = customers
        self._store = UsageStore(pool, Layout(1), None)
        self._chance = random.Random(5)
        self._at = 0
        self._now = datetime.now(UTC)
        self._counted: list[UsageEvent] = []
        self.apply([UsageControl(tenant=TenantId(TENANT), version=1, meters=(METER,), bounds=UsageBounds())])

    def count(self, events: int) -> None:
        """Count so many, in batches of 10,000."""
        for _ in range(events // 10_000):
            made = [self.some_event() for _ in range(10_000)]
            self.apply([_batch(*made[at : at + 500]) for at in range(0, len(made), 500)])
            self._counted += made
        self._chance.shuffle(self._counted)

    def some_event(self) -> UsageEvent:
        """One that comes for the first time."""
        size = self._chance.randrange(100_000)
        return UsageEvent(
            id=str(uuid_utils.uuid7()),
            source="bench",
            type="api",
            customer=f"c{self._chance.randrange(self._customers)}",
            time=self._now - self._chance.random() * HORIZON,
            properties={"bytes": str(size), "region": f"eu-{size % 4}"},
        )

    def known(self, number: int) -> list[UsageEvent]:
        """So many of those that were counted, each handed out once."""
        taken, self._counted = self._counted[:number], self._counted[number:]
        return taken

    def apply(self, contents: list[UsageMessage]) -> float:
        """One batch; how many seconds it took."""
        key, headers, now = TENANT.encode(), {"tenant": TENANT.encode()}, datetime.now(UTC)
        records = [
            Record(usage.TOPIC, 0, self._at + place, key, encode_usage(content), headers, (), now)
            for place, content in enumerate(contents)
        ]
        began = time.perf_counter()
        self._store.apply(Batch(records, self._at))
        self._at += len(records)
        return time.perf_counter() - began


def void(event: UsageEvent) -> UsageMessage:
    """Takes it back."""
    return UsageVoided(tenant=TenantId(TENANT), source=event.source, id=event.id, reason="a faulty deploy")


def amend(event: UsageEvent) -> UsageMessage:
    """Doubles it."""
    doubled = {**event.properties, "bytes": str(2 * int(str(event.properties["bytes"])))}
    return UsageAmended(tenant=TenantId(TENANT), event=replace(event, properties=doubled), reason="a faulty deploy")


def _batch(*events: UsageEvent) -> UsageMessage:
    return UsageBatch(tenant=TenantId(TENANT), events=events)


def batches(writer: Writer, correct: Correct, run: int, runs: int, *, between: bool) -> Iterator[list[UsageMessage]]:
    """`runs` times so many corrections; `between`: each with an event behind it."""
    for _ in range(runs):
        made: list[UsageMessage] = []
        for each in writer.known(run):
            made.append(correct(each))
            if between:
                made.append(_batch(writer.some_event()))
        yield made


def main() -> int:
    """Fill, correct, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="that are counted before")
    parser.add_argument("--customers", type=int, default=4_000, help="whose events they are")
    parser.add_argument("--run", type=int, default=1_000, help="corrections that stand together")
    parser.add_argument("--runs", type=int, default=5, help="so many of them")
    chosen = parser.parse_args()
    print(f"{description()}; {busy()}")
    print(f"{chosen.events:,} events of {chosen.customers:,} customers counted before, one meter of four regions")
    print(f"{'microseconds a correction, of each batch':<52}{'batches':>8}{'p50':>10}{'worst':>10}")
    with server() as owner, prepared(owner) as settings, postgres.worker_pool(settings, size=3) as pool:
        writer = Writer(pool, chosen.customers)
        writer.count(chosen.events)
        roll(pool, threading.Event(), datetime.now(UTC) - HORIZON / 2)
        new = [[_batch(*(writer.some_event() for _ in range(chosen.run)))] for _ in range(chosen.runs)]
        _show(
            f"the ceiling: events, {chosen.run:,} in a record", [writer.apply(each) * 1e6 / chosen.run for each in new]
        )
        correction: Correct
        for name, correction in (("voids", void), ("amendments", amend)):
            for shown, run, runs, between in (
                ("one in a batch", 1, 40, False),
                (f"{chosen.run:,} together", chosen.run, chosen.runs, False),
                ("20 in a batch, events between", 20, 5, True),
            ):
                took = [
                    writer.apply(each) * 1_000_000 / run
                    for each in batches(writer, correction, run, runs, between=between)
                ]
                _show(f"{name}, {shown}", took)
    print(busy())
    return 0


def _show(name: str, took: list[float]) -> None:
    print(f"{name:<52}{len(took):>8}{percentile(sorted(took), 50):>10,.0f}{max(took):>10,.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
