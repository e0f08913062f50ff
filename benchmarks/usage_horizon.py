"""What a full dedupe horizon costs a writer, and what pruning does: `python -m benchmarks.usage_horizon [--before N]`.

Applies batches as a worker does, without Kafka, in one run: to an empty horizon, to one with N identities before
(COPY), and to that one while half of them are pruned without a pause. Prints events a second and how long a batch
took to commit. TALLYBOOK_POSTGRES names the owner of a server; without it an embedded one is started.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import uuid_utils

from benchmarks.machine import busy, description
from benchmarks.usage_load import encode_batch
from benchmarks.usage_preload import preload
from benchmarks.usage_queries import percentile, prepared, server
from billing.ids import TenantId
from billing.metering import Aggregation, Meter, UsageControl
from billing.tenant import UsageBounds
from infra import postgres
from infra.faust_app import Batch
from infra.kafka import Record
from projections import generation, usage, usage_pruning
from schemas.codec import encode_usage
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from services.usage_pruning import STEP_PAGES

TENANT = "acme"
METER = Meter(key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",))
PARTITIONS_BEFORE = range(4)
HALF = timedelta(days=17)
"""Of the days over which `preload` spreads what was before."""


class Writer:
    """A worker of one partition that has its batches ready."""

    def __init__(self, pool: postgres.Pool, events: int) -> None:
        self._store = UsageStore(pool, Layout(1), None)
        self._at = 0
        self._chance = random.Random(5)
        self._events = events
        control = UsageControl(tenant=TenantId(TENANT), version=1, meters=(METER,), bounds=UsageBounds(oldest_days=35))
        self._apply([encode_usage(control)])

    def ready(self, batches: int) -> list[list[bytes]]:
        """So many batches of records of 500 events."""
        return [
            [encode_batch(TENANT, [self._event() for _ in range(500)]) for _ in range(self._events // 500)]
            for _ in range(batches)
        ]

    def _event(self) -> dict[str, object]:
        size = self._chance.randrange(100_000)
        return {
            "id": str(uuid_utils.uuid7()),
            "source": "bench",
            "type": "api",
            "customer": f"c{self._chance.randrange(4_000)}",
            "time": int(time.time() * 1_000_000),
            "properties": {"bytes": str(size), "region": f"eu-{size % 4}"},
        }

    def _apply(self, values: list[bytes]) -> float:
        key, headers, now = TENANT.encode(), {"tenant": TENANT.encode()}, datetime.now(UTC)
        records = [
            Record(usage.TOPIC, 0, self._at + place, key, value, headers, (), now) for place, value in enumerate(values)
        ]
        began = time.perf_counter()
        self._store.apply(Batch(records, self._at))
        self._at += len(records)
        return time.perf_counter() - began

    def measure(self, name: str, seconds: float) -> float:
        """Apply for so long; prints the figures, returns events a second."""
        ready = self.ready(12)
        taken = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            taken += [self._apply(each) for each in ready]
            ready = self.ready(12)
        rate = len(taken) * self._events / sum(taken)
        shown = sorted(each * 1000 for each in taken)
        print(
            f"{name:<42}{len(taken):>8}{rate:>12,.0f}{percentile(shown, 50):>9.0f}{percentile(shown, 99):>9.0f}"
            f"{shown[-1]:>9.0f}",
            flush=True,
        )
        return rate


def prune_at_once(pool: postgres.Pool, stop: threading.Event, pruned: list[int]) -> None:
    """Steps of pruning, one after the other, until `stop` is set or all is done."""
    before = (datetime.now(UTC) - HALF).replace(minute=0, second=0, microsecond=0)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, usage.SET, writes=True)
        marks = [("earlier", each, before) for each in PARTITIONS_BEFORE]
        tx.executemany("INSERT INTO usage_pruned (tenant_id, partition, before) VALUES (%s, %s, %s)", marks)
        pages = {table: usage_pruning.pages(tx, table) for table in usage_pruning.TABLES}
    for table, count in pages.items():
        for first in range(0, count, STEP_PAGES):
            if stop.is_set():
                return
            with postgres.transaction(pool) as tx:
                generation.enter(tx, usage.SET, writes=True)
                pruned.append(usage_pruning.step(tx, table, first, first + STEP_PAGES))


def main() -> int:
    """Fill, apply, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=int, default=1_000_000, help="identities in the horizon")
    parser.add_argument("--events", type=int, default=10_000, help="of a batch")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--random-ids", action="store_true", help="of the identities before")
    chosen = parser.parse_args()
    print(f"{description()}; {busy()}")
    print(f"batches of {chosen.events:,} events, one writer, {chosen.before:,} identities before")
    print(f"{'':<42}{'batches':>8}{'events/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    with server() as owner, prepared(owner) as settings, postgres.worker_pool(settings, size=3) as pool:
        writer = Writer(pool, chosen.events)
        empty = writer.measure("an empty horizon", chosen.seconds)
        superuser = settings.postgres.replace("tallybook_owner", "postgres", 1)
        began = time.perf_counter()
        preload(superuser, chosen.before, random_ids=chosen.random_ids, said=lambda _: None)
        print(f"filled in {time.perf_counter() - began:.0f} s")
        full = writer.measure("a full horizon", chosen.seconds)
        stop, pruned = threading.Event(), [0]
        thread = threading.Thread(target=prune_at_once, args=(pool, stop, pruned))
        thread.start()
        during = writer.measure("a full horizon, pruned meanwhile", chosen.seconds)
        stop.set()
        thread.join()
        print(f"pruned meanwhile: {sum(pruned):,} identities in {len(pruned) - 1} steps; load {os.getloadavg()[0]:.1f}")
        print(f"ratio: full to empty {full / empty:.2f}, while pruning {during / empty:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
