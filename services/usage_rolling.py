"""Lets the sums by day follow (`projections.usage_rollup`), an hour behind: what answers about much usage are made of.

Part of the usage aggregator; of several, the one that holds the lease. Owns `usage_rolled`; writes `usage_day` and
`usage_total`, as the aggregators do for what comes late. Repeats safely because each step is one transaction that also
says how far it came. Once an hour the partitions stand still together for a moment, while their positions are noted.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

from infra import postgres, telemetry
from infra.errors import Conflict, Transient
from infra.settings import Settings
from projections import generation, usage, usage_rollup

log = telemetry.logger("services.usage_rolling")

LEASE = "usage sums"
LATE = timedelta(minutes=15)
"""How long after its end an hour follows: what comes later costs its writer a little more."""
LOOK = timedelta(minutes=1)
PAUSE_S_MIN = 0.1


def roll(pool: postgres.Pool, stop: threading.Event, now: datetime) -> int:
    """Let the sums follow up to the last hour that ended `LATE` before `now`; how many steps it took.

    Before, it lets answers find what is new by its time. Returns early once `stop` is set.
    """
    with postgres.transaction(pool) as tx:
        generation.enter(tx, usage.SET)
        usage_rollup.summarize(tx)
    until = (now - LATE).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    steps, rolled = 0, _aim(pool, until)
    while rolled.until < rolled.following and not stop.is_set():
        began = time.monotonic()
        with postgres.transaction(pool) as tx:
            generation.enter(tx, usage.SET, writes=True)
            rolled = usage_rollup.step(tx)
        steps += 1
        if rolled.until == rolled.following < until:  # what an earlier process had begun is done
            rolled = _aim(pool, until)
        elif rolled.until < rolled.following:  # at most half of the time: there are others
            stop.wait(max(PAUSE_S_MIN, time.monotonic() - began))
    return steps


def _aim(pool: postgres.Pool, until: datetime) -> usage_rollup.Rolled:
    with postgres.transaction(pool) as tx:
        number = generation.enter(tx, usage.SET, writes=True)
        if usage_rollup.rolled(tx).following >= until:
            return usage_rollup.rolled(tx)
        if usage_rollup.lock(tx).until == usage_rollup.rolled(tx).following:
            usage_rollup.begin(tx, generation.held_checkpoints(tx, usage.SET, number, usage.TOPIC), until)
        return usage_rollup.rolled(tx)


def run(settings: Settings, stop: threading.Event) -> None:
    """Roll until `stop` is set, whenever this process holds the lease."""
    connection = None
    with postgres.worker_pool(settings, size=1) as pool:
        while not stop.is_set():
            try:
                if connection is None or connection.closed:
                    connection = postgres.connect(postgres.worker_url(settings), autocommit=True)
                if postgres.try_lease(connection, LEASE) is not None:
                    began = time.monotonic()
                    if steps := roll(pool, stop, datetime.now(UTC)):
                        log.info("sums followed", steps=steps, seconds=round(time.monotonic() - began, 1))
            except (Transient, Conflict, generation.Stale, generation.NoGeneration) as error:
                log.warning("sums put off", reason=str(error))
                if connection is not None:
                    connection.close()
            stop.wait(LOOK.total_seconds())
    if connection is not None:
        connection.close()
