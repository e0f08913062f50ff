"""Events that were counted before a meter was changed count as it is defined after: at once, whole, and from one place
in the log on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.backfilling import Backfill
from billing.errors import Rejected
from billing.invoicing import PartitionPosition
from billing.measuring import Need
from billing.metering import (
    Aggregation,
    Filter,
    Meter,
)
from billing.period import Period
from billing.placing import Spread
from billing.tenant import UsageBounds
from infra import failpoints, migrate, postgres
from infra.failpoints import FailpointReached
from infra.faust_app import Batch
from infra.kafka import Record
from projections import generation, usage, usage_read
from services.usage_aggregator import UsageStore
from services.usage_backfilling import Backfilling, LogTooShort
from services.usage_backfills import check_log
from services.usage_placing import Layout
from services.usage_pruning import prune
from tests.usage.conftest import ACME, C1, Bench
from tests.usage.making import NOON, TENANT, Home, Log, amendment, batch, control, event, void

OLD = Meter(key="volume", event_type="api", aggregation=Aggregation.SUM, value="bytes")
NEW = Meter(key="volume", event_type="api", aggregation=Aggregation.SUM, value="weight", dimensions=("region",))
OTHER = Meter(key="calls", event_type="api", dimensions=("region",))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EVER = Period(NOON - timedelta(days=20), NOON + timedelta(days=1))


def backfill(
    version: int, meter: str = "volume", *, begins: datetime = EVER.start, ends: datetime | None = None
) -> Any:
    return {"version": version, "backfill": Backfill(meter=meter, from_time=begins, to_time=ends)}


def reading(log: Log, *, kept_from: int = 0) -> Any:
    """Reads the log again, in small pieces."""

    def read(partition: int, start: int, end: int) -> Iterator[Sequence[Record]]:
        assert partition == log.partition
        if start < kept_from:
            raise LogTooShort(f"it begins at {kept_from}")
        for each in log.records:
            if start <= each.offset < end:
                yield [each]

    return read


def worker(bench: Bench, log: Log, **more: Any) -> Backfilling:
    return Backfilling(bench.pool, reading(log, **more))


def store(bench: Bench, log: Log, **more: Any) -> UsageStore:
    return bench.another(read=reading(log), **more)


def some_usage() -> Log:
    log = Log()
    log.append(control(meters=(OLD, OTHER)))
    log.append(batch(event("1", weight="10", region="eu"), event("2", NOON - HOUR, weight="20", region="us")))
    log.append(batch(event("3", NOON - 30 * HOUR, weight="40"), event("4", weight="much")))
    return log


def states(bench: Bench) -> list[tuple[str, int, int]]:
    return bench.rows("SELECT state, events, unmeasured FROM usage_backfill ORDER BY record_offset")


def test_a_cut_above_sees_the_new_definition_and_one_below_what_it_had(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2, begins=NOON - 2 * HOUR)))
    log.append(batch(event("5", weight="7", region="eu")))
    bench.apply(log.records)
    assert bench.measured(NEW, EVER).total == 4 + 7, "nothing is changed until it is whole"
    assert worker(bench, log).finish() == 1
    found = bench.measured(NEW, EVER)
    assert (found.total, found.events) == (10 + 20 + 1 + 7, 4)
    assert found.cells == ((("",), Decimal(1)), (("eu",), Decimal(17)), (("us",), Decimal(20)))
    assert bench.measured(NEW, EVER, below=3).total == bench.measured(OLD, EVER, below=3).total == 4
    assert bench.measured(NEW, EVER, below=4).total == 31
    assert states(bench) == [("done", 3, 1)]
    assert bench.measured(OTHER, EVER).total == 5
    assert not bench.rows("SELECT FROM usage_backfill_value")
    assert worker(bench, log).finish() == 0


def test_an_event_that_fed_no_meter_feeds_the_new_one_and_a_refused_one_stays_refused(bench: Bench) -> None:
    log = Log()
    log.append(control(meters=(replace(OLD, filters=(Filter(property="region", values=("eu",)),)),)))
    log.append(batch(event("1", region="us"), event("2", type="other"), event("3", NOON - 100 * 24 * HOUR)))
    log.append(control(meters=(OLD,), **backfill(2)))
    bench.apply(log.records)
    worker(bench, log).finish()
    assert bench.measured(OLD, EVER).total == 1
    assert sorted(each.usage.reason for each in bench.refused) == ["too_late", "unknown_meter"]


def test_a_crash_between_pieces_counts_nothing_twice(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2)))
    bench.apply(log.records)
    for place in ("backfill.after_piece=raise", "backfill.after_piece=raise@1", "backfill.before_commit=raise"):
        failpoints.configure(place)
        with pytest.raises(FailpointReached):
            worker(bench, log).finish()
        assert bench.measured(NEW, EVER).total == 4
    failpoints.configure("")
    worker(bench, log).finish()
    assert bench.measured(NEW, EVER).total == 70
    assert states(bench) == [("done", 4, 1)]


def test_a_correction_waits_for_the_backfill_before_it(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2)))
    log.append(void("1"))
    log.append(amendment(event("2", weight="5")))
    bench.apply(log.records, store=store(bench, log))
    assert states(bench) == [("done", 4, 1)]
    assert bench.measured(NEW, EVER).total == 45
    assert bench.measured(NEW, EVER, below=4).total == 70
    assert bench.measured(NEW, EVER, below=5).total == 60


def test_what_is_asked_of_a_log_that_is_gone_fails_and_leaves_all_as_it_was(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2)))
    bench.apply(log.records)
    worker(bench, log, kept_from=2).finish()
    assert bench.rows("SELECT state, detail FROM usage_backfill") == [("failed", "it begins at 2")]
    assert bench.measured(NEW, EVER).total == 4


def test_a_span_that_the_log_has_lost_is_refused_with_what_is_allowed(bench: Bench) -> None:
    bench.apply(some_usage().records)

    def check(begins: datetime, first: int) -> None:
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            check_log(tx, TENANT, Home(1), lambda partitions: dict.fromkeys(partitions, first), begins, None)

    check(EVER.start, 1)
    with pytest.raises(Rejected, match=r"12:00:00.000001\+00:00 or later") as refused:
        check(EVER.start, 2)
    assert (refused.value.code, refused.value.field) == ("log_too_short", "from_time")
    check(NOON + timedelta(microseconds=1), 2)


def test_a_cut_is_passed_when_what_was_asked_below_is_done(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2)))
    bench.apply(log.records)

    def passed(offset: int) -> bool:
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            return usage_read.passed(tx, ACME, [PartitionPosition(partition=0, offset=offset)])

    assert (passed(3), passed(4)) == (True, False)
    worker(bench, log).finish()
    assert (passed(3), passed(4)) == (True, True)


def test_usage_is_late_where_a_backfill_changed_it(bench: Bench) -> None:
    log = some_usage()
    log.append(void("nobody"))
    log.append(control(meters=(NEW, OTHER), **backfill(2, begins=NOON - 2 * HOUR)))
    bench.apply(log.records)
    worker(bench, log).finish()

    def late(period: Period, since: int, until: int) -> bool:
        before, after = (PartitionPosition(partition=0, offset=each) for each in (since, until))
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            return usage_read.has_late(tx, ACME, C1, period, [before], [after])

    assert not late(EVER, 3, 4), "both cuts lie before it"
    assert late(EVER, 4, 5)
    assert not late(Period(EVER.start, NOON - 2 * HOUR), 4, 5)


def test_a_backfill_that_changes_nothing_leaves_the_rows(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(OLD, OTHER), **backfill(2)))
    bench.apply(log.records)
    before = bench.rows(usage.COMPARED["usage_value"])
    worker(bench, log).finish()
    assert bench.rows(usage.COMPARED["usage_value"]) == before


def test_what_is_to_be_counted_again_is_not_pruned_before(bench: Bench) -> None:
    log = some_usage()
    log.append(control(meters=(NEW, OTHER), **backfill(2)))
    log.append(batch(event("5", NOON + 40 * DAY)), at=NOON + 40 * DAY)
    bench.apply(log.records)
    assert prune(bench.pool, threading.Event(), over=timedelta(0)).identities == 0
    worker(bench, log).finish()
    assert bench.measured(NEW, EVER).total == 70
    assert prune(bench.pool, threading.Event(), over=timedelta(0)).identities == 4


def test_a_control_record_that_is_late_finds_what_it_names_for_half_a_day(bench: Bench) -> None:
    begins = NOON - 20 * DAY
    for late, expected in ((timedelta(0), 2), (11 * HOUR, 2), (13 * HOUR, 1)):
        tenant = f"late{late}"
        log = Log(partition=1 + late // HOUR)
        log.append(control(meters=(OLD,), tenant=tenant), key=tenant.encode(), at=begins)
        told = batch(event("1", begins, weight="1"), event("2", begins + 2 * HOUR, weight="1"), tenant=tenant)
        log.append(told, key=tenant.encode(), at=begins + 2 * HOUR)
        at = begins + UsageBounds().oldest_days * DAY + late
        asked = control(meters=(NEW,), tenant=tenant, **backfill(2, begins=begins))
        log.append(asked, key=tenant.encode(), at=at)
        bench.apply(log.records, store=bench.another(home=log.partition))
        worker(bench, log).finish(log.partition)
        assert bench.rows(f"SELECT events FROM usage_backfill WHERE tenant_id = '{tenant}'") == [(expected,)]


def test_each_partition_of_a_spread_tenant_counts_again_from_its_own_place_on(bench: Bench) -> None:
    layout, spread = Layout(3), (Spread(effective_from=NOON - 10 * DAY, partitions=2),)
    logs = {each: Log(partition=each) for each in range(3)}
    places = layout.touched(TENANT, spread)
    sent = [event(str(number), weight="10") for number in range(40)]
    for log in logs.values():
        log.append(control(meters=(OLD,), spread=spread))
    for partition, events in layout.divided(TENANT, spread, sent).items():
        logs[partition].append(batch(*events))
    for number, log in enumerate(logs.values()):
        for _ in range(number):
            log.append(void("nobody"))
        log.append(control(meters=(NEW,), spread=spread, **backfill(2)))
        UsageStore(bench.pool, layout, None).apply(Batch(log.records, 0))
    assert [each for (each,) in bench.rows("SELECT partition FROM usage_backfill ORDER BY 1")] == list(places)

    def measured_now(ends: dict[int, int]) -> int:
        need = Need(NEW, EVER, tuple(PartitionPosition(partition=each, offset=ends[each]) for each in places))
        return int(bench.quantities([need])[need].total)

    ends = {each: len(log.records) for each, log in logs.items()}
    one, other = places
    in_one = sum(layout.place(TENANT, spread, each) == one for each in sent)
    assert 0 < in_one < 40
    worker(bench, logs[one]).finish(one)
    assert measured_now(ends) == 40 + 9 * in_one
    worker(bench, logs[other]).finish(other)
    assert measured_now(ends) == 400
    assert measured_now(ends | {other: ends[other] - 1}) == 40 + 9 * in_one


def test_a_generation_from_before_can_be_backfilled_too(bench: Bench) -> None:
    log = some_usage()
    bench.apply(log.records)
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        generation.enter(tx, usage.SET)
        tx.execute("ALTER TABLE usage_value DROP COLUMN counts_from")
        tx.execute("DROP TABLE usage_backfill, usage_backfill_value")
        for name in ("0062_usage_backfill.sql", "0066_backfill_keys.sql"):
            for _ in range(2):
                tx.execute((Path(migrate.__file__).parent / "migrations" / name).read_bytes())
    bench.apply([log.append(control(meters=(NEW, OTHER), **backfill(2)))])
    worker(bench, log).finish()
    assert bench.measured(NEW, EVER).total == 70
