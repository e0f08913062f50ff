"""Keeps the entitlements in Redis as Postgres has them.

Consumes the projections `entitlements` (by each tenant's sequence) and `usage_changed` (by transaction); produces
absolute values in Redis. Owns those keys and the marks beside them. Repeats safely because a value carries the version
of its rows and an older one is refused; a Redis that was emptied has lost the marks too, and is told everything again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from infra import postgres, telemetry
from infra.errors import Conflict, Transient
from infra.failpoints import failpoint
from infra.redis_cache import RedisCache
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import beating
from projections import entitlements, generation, tenants, usage_read
from projections.entitlements import Key
from services.entitlements import entries

log = telemetry.logger("services.entitlement_publisher")

PUBLISHED = telemetry.counter("entitlements_published_total", "Entitlements written to Redis.")
CONFIRMED = telemetry.gauge(
    "entitlements_confirmed_timestamp_seconds",
    "Everything counted and granted by this instant (seconds since the epoch) is in Redis.",
)
MOVED = "tallybook_moved"
"""Where each transaction that moves a projection says so."""
POLL = timedelta(milliseconds=100)  # behind a pooler nothing is heard
LISTEN = timedelta(milliseconds=500)
TROUBLE_S = 1.0
CONFIRM = timedelta(seconds=1)
AT_ONCE = 500
"""Values in one round trip to Redis."""


@dataclass(slots=True)
class _Told:
    """How far a Redis has been told."""

    epoch: str
    tenants: dict[str, int]
    usage: int
    seen: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Positions of both sets at the last look: while they stand, nothing changes."""
    as_of: datetime | None = None
    """The moment it was told of last."""


class Publisher:
    """Publishes what changed; `step` may be called for ever."""

    def __init__(self, pool: postgres.Pool, cache: RedisCache) -> None:
        self._pool = pool
        self._cache = cache
        self._told: _Told | None = None

    def step(self) -> int:
        """Publish what changed since the marks; returns how many values were written.

        Raises:
            Transient: Postgres or Redis is away; call again after a pause.
        """
        epoch = self._cache.epoch()
        if self._told is None or self._told.epoch != epoch:
            of_tenants, usage = self._cache.marks()
            log.info("entitlements published from the mark on", tenants=len(of_tenants), redis=epoch)
            self._told = _Told(epoch, of_tenants, usage)
        told = self._told
        with postgres.transaction(self._pool) as tx:
            tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            generation.enter_all(tx)
            seen, as_of = _positions(tx), _snapshot_at(tx)
            if seen == told.seen:
                self._confirm(told, as_of)
                return 0
            moved = _moved(tx, told.tenants)
            changed, usage = usage_read.changed(tx, told.usage)
            keys = {*_of_grants(tx, told.tenants, moved), *_of_usage(tx, changed)}
            written = self._publish(tx, sorted(keys))
        failpoint("entitlements.after_publish")
        self._cache.mark(told.epoch, moved, usage, as_of)
        told.as_of = as_of
        CONFIRMED.set(as_of.timestamp())
        told.tenants.update(moved)
        told.usage, told.seen = usage, seen
        PUBLISHED.inc(written)
        return written

    def _confirm(self, told: _Told, as_of: datetime) -> None:
        """Say that nothing is newer than what was told, every second."""
        if told.as_of is None or as_of - told.as_of >= CONFIRM:
            self._cache.mark(told.epoch, {}, told.usage, as_of)
            told.as_of = as_of
            CONFIRMED.set(as_of.timestamp())

    def _publish(self, tx: postgres.Cursor, keys: Sequence[Key]) -> int:
        written = 0
        for start in range(0, len(keys), AT_ONCE):
            written += self._cache.publish(entries(tx, keys[start : start + AT_ONCE]))
        return written


def _positions(tx: postgres.Cursor) -> dict[tuple[str, str], int]:
    """Where both sets stand; generation numbers included, so that a swap counts as a change."""
    rows = tx.execute(
        """
        SELECT c.projection, c.topic || '/' || c.partition || '@' || c.generation, c.next_offset
          FROM app.checkpoint c
          JOIN app.generation g ON g.projection_set = c.projection AND g.current = c.generation
        """
    ).fetchall()
    return {(projection, place): next_offset for projection, place, next_offset in rows}


def _snapshot_at(tx: postgres.Cursor) -> datetime:
    """A moment by which everything committed is in the snapshot of `tx`."""
    row = tx.execute("SELECT now()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def _moved(tx: postgres.Cursor, marks: Mapping[str, int]) -> dict[str, int]:
    """Tenants with events after their mark -> sequence of the last."""
    return {tenant: last for tenant, last in tenants.all_sequences(tx).items() if last > marks.get(tenant, 0)}


def _of_grants(tx: postgres.Cursor, marks: Mapping[str, int], moved: Iterable[str]) -> Iterator[Key]:
    for tenant in moved:
        for customer, feature in entitlements.changed_since(tx, tenant, marks.get(tenant, 0)):
            yield tenant, customer, feature


def _of_usage(tx: postgres.Cursor, changed: Iterable[usage_read.Changed]) -> list[Key]:
    return entitlements.counted_by(tx, [(each.tenant, each.customer, each.meter) for each in changed])


def main(settings: Settings) -> int:
    """Publish until SIGTERM."""
    stop = on_signals()
    cache = RedisCache(settings)
    listener = None if settings.postgres_pooler else postgres.Listener(postgres.worker_url(settings), MOVED)
    with postgres.worker_pool(settings) as pool:
        publisher = Publisher(pool, cache)
        pulse = beating(settings)
        while not stop.is_set():
            pulse.beat()
            try:
                if publisher.step():
                    continue
                if listener is None:
                    stop.wait(POLL.total_seconds())
                else:
                    listener.wait(LISTEN)
            except (Transient, Conflict) as error:
                log.warning("entitlements not published", reason=str(error))
                stop.wait(TROUBLE_S)
    if listener is not None:
        listener.close()
    cache.close()
    return 0
