"""What every partition is told about a tenant's meters, and that it is told once."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from billing.backfilling import Backfill, MeterBackfillOrdered
from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from billing.metering import UsageControl
from billing.tenant import ClockAdvanced, UsageBounds
from infra import postgres
from infra.kafka import KafkaConfig, scan
from infra.settings import Settings
from schemas.codec import decode_usage
from services.meter_publisher import WANTED, control_after
from tests.projections import history, log
from tests.projections.history import CALLS, START, History
from tests.stack import Stack
from tests.usage.making import BYTES
from tests.waiting import eventually


def folded(events: list[EventEnvelope]) -> Any:
    known: UsageControl | None = None
    for each in events:
        if isinstance(each.event, WANTED):
            known = control_after(known, each.meta, each.event)
    return known


def test_a_tenant_is_measured_by_its_newest_meters_bounds_and_clock() -> None:
    past = History().register(bounds=UsageBounds(oldest_days=3)).advance(START + timedelta(days=1))
    made = folded(past.events)
    assert made == UsageControl(
        tenant=past.state.tenant_id,
        version=3,
        meters=(CALLS,),
        bounds=UsageBounds(oldest_days=3),
        clock=START + timedelta(days=1),
    )


def test_a_meter_that_a_price_book_leaves_out_is_measured_on() -> None:
    past = History().register()
    first = folded(past.events)
    published = next(each for each in past.events if each.meta.type == "PriceBookPublished")
    later = control_after(first, published.meta, replace(published.event, meters=(BYTES,)))
    assert later.meters == (CALLS, BYTES)


def test_a_backfill_is_asked_for_at_one_place_in_the_log_only() -> None:
    past = History().register()
    first = folded(past.events)
    ordered = MeterBackfillOrdered(meter="calls", from_time=START)
    asked = control_after(first, replace(past.events[-1].meta, sequence=10), ordered)
    assert asked == replace(first, version=10, backfill=Backfill(meter="calls", from_time=START))
    later = control_after(asked, replace(past.events[-1].meta, sequence=11), ClockAdvanced(to=START))
    assert later.backfill is None


def test_an_event_before_the_registration_is_corruption() -> None:
    past = History().register()
    with pytest.raises(CorruptHistory):
        control_after(None, past.events[1].meta, past.events[1].event)


def controls(settings: Settings) -> dict[int, list[tuple[str, int]]]:
    """(tenant, version) of each control record, by partition in order."""
    found: dict[int, list[tuple[str, int]]] = {each: [] for each in range(settings.usage_partitions)}
    for records in scan(KafkaConfig.of(settings), "usage.events", dict.fromkeys(found, 0)):
        for record in records:
            content = decode_usage(record.value)
            assert isinstance(content, UsageControl)
            assert record.key == content.tenant.encode()
            found[record.partition].append((content.tenant, content.version))
    return found


def test_every_partition_is_told_and_a_kill_repeats_nothing_new(stack: Stack) -> None:
    settings = stack.fresh(usage_partitions=3, billing_partitions=2)
    past = history.a_quarter("acme").events
    log.append(settings, past)
    wanted = [each.meta.sequence for each in past if isinstance(each.event, WANTED)]
    own = {"TALLYBOOK_FAILPOINT": "meters.before_commit=kill", "TALLYBOOK_INSTANCE": "one"}
    process = stack.start("meters", settings, **own)
    assert process.wait(240) == -signal.SIGKILL
    process = stack.start("meters", settings, **own)

    def is_done() -> bool:
        with postgres.connect(postgres.worker_url(settings)) as connection:
            row = connection.execute("SELECT version FROM app.meter_set WHERE tenant_id = 'acme'").fetchone()
        return row == (wanted[-1],)

    eventually(is_done)
    assert stack.stop(process) == 0
    for partition in controls(settings).values():
        versions = [version for _, version in partition]
        assert sorted(set(versions)) == wanted
        # What the kill repeated is a prefix sent again: the aggregator ignores a version that is not above its last.
        assert versions[-len(wanted) :] == wanted
