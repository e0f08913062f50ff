"""Counts usage, each event once.

Consumes `usage.events`, from its own checkpoints; produces `usage.rejected`. Owns the projection set `usage` and its
checkpoints. Repeats safely because everything that follows from a micro-batch (identities, values, windows, fates,
the checkpoint) is one Postgres transaction, and the checkpoint moves by compare-and-set: what comes again lies below
it, and a worker that lost its partition cannot write. Refused usage is sent, with the brokers' acknowledgement, before
the checkpoint moves: a crash in between sends it again, with the same position in it and in `ce_id`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from billing.metering import UsageControl
from infra import faust_app, postgres, telemetry
from infra.errors import Conflict, Misconfigured
from infra.failpoints import failpoint
from infra.faust_app import App, Batch
from infra.kafka import KafkaConfig, Position, Producer, Record, headers
from infra.settings import Settings
from projections import generation, usage, usage_backfill, usage_duplicates, usage_rollup, usage_rows
from schemas.codec import decode_usage, encode_rejected, fingerprint_of
from services import usage_backfilling, usage_correcting, usage_pruning, usage_rolling
from services.usage_backfilling import Backfilling, ReadLog
from services.usage_identity import SCHEME
from services.usage_intake import WHOLE_RECORD, judge
from services.usage_judged import Fates, Judged, Refusal
from services.usage_measuring import EPOCH, MICROSECOND, NEVER_US, Measuring
from services.usage_placing import Layout
from services.usage_scanning import Scanners

log = telemetry.logger("services.usage_aggregator")

EVENTS = telemetry.counter("usage_events_total", "Usage events by what became of them.", "fate")
BATCH_RECORDS_MAX = 10_000  # of one event each; of many, the bytes bound it
BATCH_BYTES_MAX = 8_000_000  # about 85,000 events in batches: a transaction of a second, where so much waits
WARY_BATCHES = 20  # after one with a repetition: where there is one there are more
REJECTED = "usage.rejected"
TEXT_SHOWN_MAX = 500  # of a refusal's texts in its row; the topic has them whole

Publish = Callable[[Sequence[Refusal]], None]
"""Sends refusals to those who want to know; returns when they are safe."""


def main(settings: Settings) -> int:
    """Count until SIGTERM; exit code 0, or 70 if it broke down."""
    # A batch makes 100,000 objects and no cycle: to look for cycles at the usual pace would double the work.
    gc.set_threshold(500_000, 20, 20)
    # The thread that talks to Postgres does little and often: it should not wait long for the one that judges.
    sys.setswitchinterval(0.001)
    pool = postgres.worker_pool(settings)
    producer = Producer(KafkaConfig.of(settings))
    read = usage_backfilling.reader(KafkaConfig.of(settings))
    for name, work in (("pruning", usage_pruning.run), ("rolling", usage_rolling.run)):
        threading.Thread(target=work, args=(settings, threading.Event()), name=name, daemon=True).start()
    return faust_app.run(
        build(settings, pool, UsageStore(pool, Layout(settings.usage_partitions), publisher(producer), read=read))
    )


def build(settings: Settings, pool: postgres.Pool, store: UsageStore) -> App:
    """The aggregator's app; starts nothing."""

    def stored(_assigned: set[Position]) -> Mapping[Position, int]:
        with postgres.transaction(pool) as tx:
            return generation.positions(tx, usage.SET, generation.current(tx, usage.SET))

    app = faust_app.create_app("usage-aggregator", settings, topics=[usage.TOPIC], stored_offsets=stored)

    async def apply(batch: Batch, foreseen: Foreseen | None) -> None:
        await faust_app.apply_or_exit(lambda each: store.apply(each, foreseen), batch)
        faust_app.report_lag(app, batch)

    @app.agent(faust_app.source(app), concurrency=1)
    async def aggregate(stream: Any) -> None:
        applying: asyncio.Future[None] | None = None
        # Ends are told, so that a cut at the end of a partition is passed even if a transaction's marker stands there.
        async for batch in faust_app.micro_batches(
            stream, BATCH_RECORDS_MAX, max_bytes=BATCH_BYTES_MAX, tell_ends=True
        ):
            failpoint("usage.after_poll")
            # Judged while Postgres takes the one before: each keeps a core busy.
            foreseen = await asyncio.to_thread(store.foresee, batch)
            if applying is not None:
                await applying
            if foreseen is None:  # the first batches of a partition
                foreseen = await asyncio.to_thread(store.foresee, batch)
            applying = asyncio.ensure_future(apply(batch, foreseen))

    return app


def publisher(producer: Producer) -> Publish:
    """Sends refusals to `usage.rejected`."""

    def publish(refusals: Sequence[Refusal]) -> None:
        for each in refusals:
            value = encode_rejected(each.usage)
            place = f"{each.usage.topic}/{each.usage.partition}/{each.usage.offset}"
            tenant = each.usage.tenant or UNKNOWN_TENANT
            producer.send(
                REJECTED,
                value,
                key=tenant,
                headers=headers(
                    id=place if each.usage.index is None else f"{place}/{each.usage.index}",
                    type="tallybook.rejected.RejectedUsage",
                    source="tallybook/usage-aggregator",
                    time=each.appended_at,
                    schema=fingerprint_of(value),
                    tenant=tenant,
                ),
            )
        producer.flush()

    return publish


UNKNOWN_TENANT = "unknown"  # key of refused records that tell no tenant: a key is never empty


@dataclass(slots=True)
class _Known:
    """What is known of a partition at `next_offset`, without asking Postgres again."""

    generation: int
    next_offset: int
    controls: dict[str, Measuring] = field(default_factory=dict)


@dataclass(slots=True)
class Foreseen:
    """A batch that was judged before its turn."""

    base: _Known
    """What it was judged by; it is of use if this proves true."""
    judged: Judged | None
    """Used once: settling changes it."""


class UsageStore:
    """Applies micro-batches to one generation of the projection set `usage`."""

    def __init__(
        self,
        pool: postgres.Pool,
        layout: Layout,
        publish: Publish | None,
        *,
        into: int | None = None,
        read: ReadLog = usage_backfilling.unread,
    ) -> None:
        """`into`: the generation to write; None follows the current one. `publish`: None while rebuilding. `read`: the
        log again, where a correction has to wait for a backfill."""
        self._pool = pool
        self._layout = layout
        self._publish = publish
        self._into = into
        self._backfilling = Backfilling(pool, read, into=into)
        self._known: dict[int, _Known] = {}
        self._ahead: dict[int, _Known] = {}
        """By partition: what will be known after the last batch that was foreseen."""
        self._scanners = Scanners(0, layout)
        self._months: set[date] = set()
        """Of the scanners' generation, those that have tables."""
        self._wary = 0
        """For how many batches more to expect events that came before."""

    def foresee(self, batch: Batch) -> Foreseen | None:
        """Judge `batch` while another is applied; None if too little is known yet. In the order of `apply`."""
        for base in (self._ahead.get(batch.partition), self._known.get(batch.partition)):
            if base is not None and batch and batch.follows <= base.next_offset <= batch[0].offset:
                judged = self._judge(batch, base)
                after = _Known(base.generation, batch.next_offset, base.controls | judged.controls)
                self._ahead[batch.partition] = after
                return Foreseen(base, judged)
        return None

    def apply(self, batch: Batch, foreseen: Foreseen | None = None) -> None:
        """Apply the records of a batch that are new, in one transaction. `foreseen`: of the same batch.

        Raises:
            RecordsMissing: the batch does not continue what is stored.
            Conflict: another worker moved the checkpoint meanwhile; call again.
            Transient: nothing was applied, or nobody knows; call again.
        """
        try:
            with postgres.transaction(self._pool) as tx:
                applied = self._apply(tx, batch, foreseen)
        except generation.Stale as e:
            raise Conflict(str(e)) from e
        except usage_backfilling.CorrectionWaits as waits:
            before, after = usage_backfilling.divided(batch, waits.offset)
            if before:
                self.apply(before)
            self._backfilling.finish(batch.partition, [waits.tenant])
            self.apply(after)
            return
        failpoint("usage.after_commit")
        if applied is not None:
            known, series, judged = applied
            self._known[batch.partition] = known
            self._remember(known.generation, series, judged)
            _count(judged)

    def _apply(
        self, tx: postgres.Cursor, batch: Batch, foreseen: Foreseen | None
    ) -> tuple[_Known, dict[usage.Series, int], Judged] | None:
        number = generation.enter(tx, usage.SET, self._into, writes=True)
        stored = generation.checkpoints(tx, usage.SET, number, usage.TOPIC).get(batch.partition, 0)
        if batch.next_offset <= stored:
            return None
        if stored < batch.follows:
            raise RecordsMissing(f"{usage.TOPIC}/{batch.partition} stands at {stored}; next came {batch.follows}")
        if stored == 0:
            usage_rollup.hold(tx)
        # The checkpoint first: a worker that lost the partition waits here, and neither writes nor sends.
        generation.advance(tx, usage.SET, number, usage.TOPIC, batch.partition, stored, batch.next_offset)
        known = self._known.get(batch.partition)
        if known is None or (known.generation, known.next_offset) != (number, stored):
            _check_scheme(tx, number)
            known = _Known(number, stored, _controls(tx, batch.partition))
        judged = self._judged_ahead(batch, foreseen, known)
        if judged is None:
            judged = self._judge([each for each in batch if each.offset >= stored], known)
        usage_backfilling.check(tx, batch.partition, judged)
        series = self._write(tx, number, batch.partition, judged)
        failpoint("usage.before_commit")
        return _Known(number, batch.next_offset, known.controls | judged.controls), series, judged

    def _judge(self, records: Sequence[Record], by: _Known) -> Judged:
        scanners = self._scanners
        return judge(records, by.controls, self._layout, scanners if scanners.generation == by.generation else None)

    def _judged_ahead(self, batch: Batch, foreseen: Foreseen | None, known: _Known) -> Judged | None:
        """What was foreseen, if it was judged by what is `known`: the log alone decides what that is at an offset."""
        if foreseen is not None and foreseen.judged is not None:
            base = foreseen.base
            if (base.generation, base.next_offset) == (known.generation, known.next_offset):
                judged, foreseen.judged = foreseen.judged, None
                return judged
        self._ahead.pop(batch.partition, None)
        return None

    def _write(self, tx: postgres.Cursor, number: int, partition: int, judged: Judged) -> dict[usage.Series, int]:
        """All rows, and the refusals; returns the series that were not known before."""
        is_known = self._scanners.generation == number
        months = _months(judged)
        usage.make_months(tx, months - self._months if is_known else months)
        wanted = judged.series()
        known = self._scanners.series.among(wanted) if is_known else {}
        new = usage.series_ids(tx, wanted - known.keys())
        for run in judged.runs():
            self._write_run(tx, partition, run, known | new)
        refusals = [each for run in judged.runs() for each in run.refusals]
        if self._publish is not None and refusals:
            self._publish(refusals)
        for run in judged.runs():
            usage.add_fates(tx, [_fate(tenant, hour, partition, each) for (tenant, hour), each in run.fates.items()])
            usage_duplicates.add(tx, partition, run.duplicates)
        usage.add_refused(tx, [_refused(each) for each in refusals])
        usage.set_controls(
            tx,
            [_control(tenant, partition, each) for tenant, each in judged.controls.items()],
        )
        usage_backfill.note(tx, usage_backfilling.asked(partition, judged))
        return new

    def _write_run(self, tx: postgres.Cursor, partition: int, run: Judged, series: Mapping[usage.Series, int]) -> None:
        """What a run counts, then what it corrects."""
        taken = usage.claim(tx, partition, run.rows(series), run.size, hopeful=not self._wary)
        self._wary = WARY_BATCHES if taken else max(self._wary - 1, 0)
        counted = run.settle(taken)
        failpoint("usage.after_copy")
        if counted:
            usage.add_values(tx, partition)
        usage_correcting.apply(tx, partition, run, series)
        if run.following is not None:
            usage_rows.clear(tx)

    def _remember(self, number: int, series: Mapping[usage.Series, int], judged: Judged) -> None:
        """Cache what was committed only: the series and months of a transaction that failed do not exist."""
        if self._scanners.generation != number:
            self._scanners, self._months = Scanners(number, self._layout), set()
        self._scanners.series.add(series)
        self._months |= _months(judged)


class RecordsMissing(Exception):
    """Records were passed by: nothing after them may be counted. The process ends and reads on from the checkpoint."""


def _check_scheme(tx: postgres.Cursor, number: int) -> None:
    if usage.identity_scheme(tx) != SCHEME:
        raise Misconfigured(
            f"generation {number} knows events by older identities: run `tallybook replay rebuild --set usage --yes`"
        )


def _months(judged: Judged) -> set[date]:
    """First days of the months (UTC) of the events."""
    found: set[date] = set()
    for times in judged.times_us():
        ends = {_month(min(times)), _month(max(times))} if times else set()
        found |= ends if len(ends) < 2 else {_month(each) for each in times}
    return found


def _month(time_us: int) -> date:
    return (EPOCH + timedelta(microseconds=time_us)).date().replace(day=1)


def _controls(tx: postgres.Cursor, partition: int) -> dict[str, Measuring]:
    found = {}
    for each in usage.controls(tx, partition):
        control = decode_usage(each.control)
        assert isinstance(control, UsageControl)
        accepted_from_us = NEVER_US if each.accepted_from is None else (each.accepted_from - EPOCH) // MICROSECOND
        registered_us = (each.registered_at - EPOCH) // MICROSECOND
        found[each.tenant] = Measuring(control, each.offset, each.control, registered_us, accepted_from_us)
    return found


def _control(tenant: str, partition: int, measuring: Measuring) -> usage.Control:
    from_us = measuring.accepted_from_us
    return usage.Control(
        tenant,
        partition,
        measuring.control.version,
        measuring.value,
        measuring.offset,
        EPOCH + timedelta(microseconds=measuring.registered_us),
        None if from_us == NEVER_US else EPOCH + timedelta(microseconds=from_us),
    )


def _fate(tenant: str, hour: Any, partition: int, fates: Fates) -> usage.Fate:
    return usage.Fate(
        tenant,
        hour,
        partition,
        fates.received,
        fates.counted,
        fates.duplicate,
        fates.conflict,
        fates.rejected,
        fates.voided,
        fates.amended,
        fates.repeated,
    )


def _refused(refusal: Refusal) -> usage.Refused:
    each = refusal.usage
    return usage.Refused(
        tenant=each.tenant or "",
        partition=each.partition,
        offset=each.offset,
        batch_index=WHOLE_RECORD if each.index is None else each.index,
        events=refusal.events,
        reason=each.reason,
        detail=_shown(each.detail),
        field=_shown(each.field),
        source=None if each.source is None else _shown(each.source),
        event_id=None if each.id is None else _shown(each.id),
        appended_at=refusal.appended_at,
    )


def _shown(text: str) -> str:
    """`text` as a column may hold it: Postgres has no NUL."""
    return text[:TEXT_SHOWN_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _count(judged: Judged) -> None:
    for fates in [each for run in judged.runs() for each in run.fates.values()]:
        for name in ("counted", "duplicate", "conflict", "rejected", "voided", "amended"):
            if number := getattr(fates, name):
                EVENTS.labels(name).inc(number)
