"""Projects billing events into the tables that everybody reads.

Consumes `billing.events`, from its own checkpoints; produces nothing but rows. Owns the projection set `billing` and
its checkpoints. Repeats safely because a batch's rows and its checkpoint are one Postgres transaction, and the
checkpoint moves by compare-and-set: a batch that comes again lies below it, and a worker that lost its partition
cannot write. A gap in a tenant's sequence ends the process; nothing is projected around a missing event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from infra import faust_app, postgres, telemetry
from infra.errors import Misconfigured
from infra.failpoints import failpoint
from infra.faust_app import App, Batch
from infra.kafka import Position, Record
from infra.settings import Settings
from projections import billing_set, generation
from schemas.codec import decode_event
from schemas.errors import DecodeError

log = telemetry.logger("services.projector")

APPLIED = telemetry.counter("projected_events_total", "Events whose rows are committed.", "projection")
BATCH_MAX = 500


def main(settings: Settings) -> int:
    """Project until SIGTERM; exit code 0, or 70 if it broke down."""
    with_generations(settings)
    pool = postgres.worker_pool(settings)
    return faust_app.run(build(settings, pool))


def build(settings: Settings, pool: postgres.Pool) -> App:
    """The projector's app; starts nothing."""

    def stored(_assigned: set[Position]) -> Mapping[Position, int]:
        with postgres.transaction(pool) as tx:
            return generation.positions(tx, billing_set.NAME, generation.current(tx, billing_set.NAME))

    app = faust_app.create_app("projector", settings, topics=[billing_set.TOPIC], stored_offsets=stored)

    @app.agent(faust_app.source(app), concurrency=1)
    async def project(stream: Any) -> None:
        async for batch in faust_app.micro_batches(stream, BATCH_MAX):
            failpoint("projector.after_poll")
            await faust_app.apply_or_exit(partial(apply, pool), batch)
            faust_app.report_lag(app, batch)

    return app


def apply(pool: postgres.Pool, batch: Batch, *, into: int | None = None) -> None:
    """Apply the events of a batch that are new, in one transaction, to the current generation or the one given.

    Raises:
        CorruptHistory: the log cannot be what a command handler wrote.
        Stale: another worker moved the checkpoint while this one held the batch.
        Transient: nothing was applied, or nobody knows; try again.
    """
    with postgres.transaction(pool) as tx:
        number = generation.enter(tx, billing_set.NAME, into, writes=True)
        stored = generation.checkpoints(tx, billing_set.NAME, number, batch.topic).get(batch.partition, 0)
        new = [record for record in batch if record.offset >= stored]
        applied = 0
        if new:
            if stored < batch.follows:
                raise generation.Stale(
                    f"{batch.topic}/{batch.partition} stands at {stored}, the batch follows {batch.follows}"
                )
            # The checkpoint first: a worker that lost the partition waits here, and writes nothing.
            moved_to = new[-1].offset + 1
            generation.advance(tx, billing_set.NAME, number, batch.topic, batch.partition, stored, moved_to)
            applied = billing_set.apply_batch(tx, decoded(new))
        failpoint("projector.after_rows")
    failpoint("projector.after_commit")
    APPLIED.labels(billing_set.NAME).inc(applied)


def decoded(records: Sequence[Record]) -> list[EventEnvelope]:
    """The events in `records`.

    Raises:
        CorruptHistory: one cannot be read, or is keyed to another tenant. Only a handler writes this log, so
            there is nobody to send it back to.
    """
    events = []
    for record in records:
        try:
            event = decode_event(record.value)
        except DecodeError as error:
            raise CorruptHistory(f"{record.topic}/{record.partition} @ {record.offset}: {error}") from error
        if record.key != event.meta.tenant.encode():
            raise CorruptHistory(f"{record.topic}/{record.partition} @ {record.offset}: keyed to {record.key!r}")
        events.append(event)
    return events


def with_generations(settings: Settings) -> None:
    """Create the first generations where there are none.

    Raises:
        Misconfigured: there are none, and no owner's address is configured to create them with.
    """
    with postgres.connect(postgres.worker_url(settings)) as connection, postgres.translated():
        known = {name for (name,) in connection.execute("SELECT projection_set FROM app.generation").fetchall()}
    if known.issuperset(generation.SETS):
        return
    if not settings.postgres:
        raise Misconfigured("TALLYBOOK_POSTGRES: there are no projections yet; the owner's address is needed once")
    with postgres.connect(postgres.owner_url(settings)) as connection, postgres.translated():
        made = generation.ensure(connection.cursor())
    log.info("projections created", schemas=made)
