"""Keeps the dedupe horizon: identities whose copies would be refused anyway are deleted, a little at a time.

Part of the usage aggregator; of several, the one that holds the lease. Owns `usage_pruned`, and deletes from
`usage_identity` and `usage_duplicate`. Repeats safely because marks only move forward and a deleted row stays deleted.
What is old is judged by the log's own clock, so that an aggregator that lags still finds every identity it needs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.metering import UsageControl
from infra import postgres, telemetry
from infra.errors import Conflict, Transient
from infra.settings import Settings
from projections import generation, usage, usage_backfill, usage_pruning
from schemas.codec import decode_usage
from services.usage_measuring import MICROSECOND, horizon_us

log = telemetry.logger("services.usage_pruning")

PRUNED = telemetry.counter("usage_identities_pruned_total", "Identities deleted because they passed the horizon.")
LEASE = "usage pruning"
STEP_PAGES = 512  # 4 MB, up to 35,000 identities: a transaction of some 50 ms
SWEEP = timedelta(days=1)  # to look at everything once
PAUSE_S_MIN = 0.2
LOOK = timedelta(minutes=10)
"""How often is looked whether there is something to prune."""


@dataclass(slots=True)
class Swept:
    """What one sweep did."""

    steps: int = 0
    identities: int = 0


def prune(pool: postgres.Pool, stop: threading.Event, *, over: timedelta = SWEEP) -> Swept:
    """Delete all identities that passed the horizon, spread `over` some time. Returns early once `stop` is set."""
    done = Swept()
    with postgres.transaction(pool) as tx:
        number = generation.enter(tx, usage.SET, writes=True)
        if not usage_pruning.mark(tx, _marks(tx)):
            return done
        marks = usage_pruning.marks(tx)
        pages = {table: usage_pruning.pages(tx, table) for table in usage_pruning.TABLES}
    steps = [(table, first) for table, count in pages.items() for first in range(0, count, STEP_PAGES)]
    pause_s = max(over.total_seconds() / max(len(steps), 1), PAUSE_S_MIN if over else 0)
    for table, first in steps:
        if stop.wait(pause_s if done.steps else 0):
            return done
        with postgres.transaction(pool) as tx:
            generation.enter(tx, usage.SET, number, writes=True)
            deleted = usage_pruning.step(tx, table, first, first + STEP_PAGES)
        done.steps += 1
        if table in usage_pruning.IDENTITIES:
            done.identities += deleted
            PRUNED.inc(deleted)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, usage.SET, number)
        usage_pruning.swept(tx, marks)
    return done


def _marks(tx: postgres.Cursor) -> dict[tuple[str, int], datetime]:
    """For each tenant and partition: the whole hour before which copies of what was appended are refused."""
    found = {}
    held = usage_backfill.oldest_pending(tx)
    for partition, hour in usage_pruning.reached(tx).items():
        for each in usage.controls(tx, partition):
            control = decode_usage(each.control)
            assert isinstance(control, UsageControl)
            # Against a test clock an event never grows old.
            if control.clock is None:
                # What is to be counted again is still known one by one.
                before = min(hour, held.get((each.tenant, partition), hour)) - horizon_us(control.bounds) * MICROSECOND
                found[each.tenant, partition] = before.replace(minute=0, second=0, microsecond=0)
    return found


def run(settings: Settings, stop: threading.Event) -> None:
    """Prune until `stop` is set, whenever this process holds the lease."""
    connection = None
    with postgres.worker_pool(settings, size=1) as pool:
        while not stop.is_set():
            try:
                if connection is None or connection.closed:
                    connection = postgres.connect(postgres.worker_url(settings), autocommit=True)
                if postgres.try_lease(connection, LEASE) is not None:
                    done = prune(pool, stop)
                    if done.steps:
                        log.info("identities pruned", steps=done.steps, identities=done.identities)
            except (Transient, Conflict, generation.Stale, generation.NoGeneration) as error:
                log.warning("pruning put off", reason=str(error))
                if connection is not None:
                    connection.close()
            stop.wait(LOOK.total_seconds())
    if connection is not None:
        connection.close()
