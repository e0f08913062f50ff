"""The aggregator's rows on real Postgres, without Kafka: exact once, whatever comes twice, late, or by a zombie."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.invoicing import Need
from billing.metering import Measured
from billing.period import Period
from infra import failpoints, postgres
from infra.errors import Conflict, Misconfigured
from infra.faust_app import Batch
from projections import generation, usage, usage_read
from projections.usage_rows import Arrival, Place
from services.usage_aggregator import RecordsMissing, UsageStore
from services.usage_judged import Refusal
from services.usage_placing import Layout
from tests.usage.conftest import DAY, Bench
from tests.usage.making import BYTES, CALLS, LAST, LEAST, NOON, PEAK, TENANT, USERS, Log, batch, control, event, opened
from tests.waiting import eventually


def test_usage_is_measured_in_every_way(bench: Bench) -> None:
    log = opened()
    log.append(
        batch(
            event("1", NOON, region="eu", user="ann", bytes="10"),
            event("2", NOON + timedelta(minutes=1), region="us", user="bob", bytes="2.5"),
            event("3", NOON - timedelta(minutes=1), region="eu", user="ann", bytes="0.000000000001"),
        )
    )
    bench.apply(log.records)
    split = ((("eu",), Decimal(2)), (("us",), Decimal(1)))
    assert bench.measured(CALLS) == Measured(total=Decimal(3), cells=split, events=3)
    assert bench.measured(BYTES) == Measured(
        total=Decimal("12.500000000001"),
        cells=((("eu", ""), Decimal("10.000000000001")), (("us", ""), Decimal("2.5"))),
        transactions=(Decimal("0.000000000001"), Decimal(10), Decimal("2.5")),
        events=3,
    )
    assert bench.measured(PEAK).total == 10
    assert bench.measured(LEAST).total == Decimal("0.000000000001")
    assert bench.measured(LAST).total == Decimal("2.5")
    assert bench.measured(USERS) == Measured(
        total=Decimal(2), cells=((("eu",), Decimal(1)), (("us",), Decimal(1))), events=3
    )
    assert bench.measured(CALLS, Period(DAY.end, DAY.end + timedelta(days=1))) == Measured(Decimal(0))
    assert bench.quantities([Need(CALLS, DAY, ())], "c1") == {Need(CALLS, DAY, ()): Measured(Decimal(0))}


def test_what_comes_again_counts_once(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("2")))
    log.append(batch(event("2"), event("3"), event("1", bytes="7")))
    bench.apply(log.records[:2])
    bench.apply(log.records[:2], follows=0)  # redelivered
    bench.apply(log.records, follows=0)  # redelivered with more
    bench.apply(log.records, follows=0, store=bench.another())  # by a worker that was restarted
    assert bench.measured(CALLS).events == 3
    assert bench.fates() == usage_read.FateCounts(received=5, counted=3, duplicate=1, conflict=1, rejected=0)
    assert [(each.usage.reason, each.usage.id) for each in bench.refused] == [("id_conflict", "1")]
    assert bench.rows("SELECT record_offset, batch_index, reason FROM usage_rejected") == [(2, 2, "id_conflict")]


def test_a_zombies_compare_and_set_fails_and_leaves_nothing(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1")))
    bench.apply(log.records)

    def write_as_a_zombie() -> None:
        with postgres.transaction(bench.pool) as tx:
            number = generation.enter(tx, usage.SET, writes=True)
            arrival = Arrival(bytes(16), bytes(16), Place(TENANT, 9, 0), 0, "c1", 0, ())
            usage.claim(tx, 0, [arrival], {}, hopeful=True)
            generation.advance(tx, usage.SET, number, usage.TOPIC, 0, 1, 10)

    with pytest.raises(generation.Stale):
        write_as_a_zombie()
    assert bench.measured(CALLS).events == 1
    assert bench.rows("SELECT count(*) FROM usage_identity") == [(1,)]


def test_a_worker_that_is_overtaken_sends_and_writes_nothing(bench: Bench) -> None:
    log = opened()
    bench.apply(log.records)
    log.append(batch(event("bad", bytes="-1"), event("1")))
    sent: list[Refusal] = []
    slow = UsageStore(bench.pool, Layout(1), sent.extend)
    with ThreadPoolExecutor(1) as threads:
        with postgres.transaction(bench.pool) as tx:
            number = generation.enter(tx, usage.SET, writes=True)
            generation.advance(tx, usage.SET, number, usage.TOPIC, 0, 1, 2)
            applying = threads.submit(slow.apply, Batch(log.records[1:], 1))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            eventually(lambda: bench.rows(waiting))
        with pytest.raises(Conflict):
            applying.result(120)
    slow.apply(Batch(log.records, 0))  # as the loop repeats it: nothing is left to do
    assert sent == []
    assert bench.rows("SELECT count(*) FROM usage_identity") == [(0,)]


def test_a_batch_that_does_not_continue_the_checkpoint_is_not_applied(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1")))
    log.append(batch(event("2")))
    bench.apply(log.records[:1])
    with pytest.raises(RecordsMissing):
        bench.apply(log.records[2:])
    assert bench.rows("SELECT count(*) FROM usage_identity") == [(0,)]


def test_markers_of_transactions_between_batches_are_no_gap(bench: Bench) -> None:
    log = opened()
    marked = log.append(batch(event("1")), skip=3)
    bench.apply(log.records[:1])
    bench.apply([marked], follows=1)
    assert bench.measured(CALLS).events == 1


def test_a_failure_before_the_commit_leaves_no_trace_and_poisons_no_cache(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1", region="new")))
    bench.apply(log.records[:1])
    failpoints.configure("usage.before_commit=raise")
    with pytest.raises(failpoints.FailpointReached):
        bench.apply(log.records[1:])
    bench.apply(log.records[1:])
    assert bench.measured(CALLS).cells == ((("new",), Decimal(1)),)


def test_refusals_that_cannot_be_sent_are_not_passed_over(bench: Bench) -> None:
    def fails(_refusals: Sequence[Refusal]) -> None:
        raise Conflict("the broker is away")

    log = opened()
    log.append(batch(event("", NOON), event("1")))
    store = bench.another()
    store._publish = fails
    with pytest.raises(Conflict):
        bench.apply(log.records, store=store)
    assert bench.rows("SELECT count(*) FROM usage_fate") == [(0,)]
    bench.apply(log.records)
    assert [each.usage.reason for each in bench.refused] == ["invalid_id"]


def test_texts_that_postgres_cannot_hold_are_refused_and_shown(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("nul\0"), event("1", region="tab\t back\\slash \n line"), event("2", user="\\N")))
    bench.apply(log.records)
    assert bench.rows("SELECT reason, event_id FROM usage_rejected") == [("invalid_id", "nul\ufffd")]
    assert [cell for cell, _ in bench.measured(CALLS).cells] == [("",), ("tab\t back\\slash \n line",)]
    assert bench.measured(USERS).total == 1


def test_a_meter_may_change_its_dimensions(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1", region="eu")))
    wider = replace(CALLS, dimensions=("kind", "region"))
    log.append(control(version=2, meters=[wider]))
    log.append(batch(event("2", region="eu", kind="read")))
    bench.apply(log.records)
    assert bench.measured(wider).cells == ((("", "eu"), Decimal(1)), (("read", "eu"), Decimal(1)))
    assert bench.measured(CALLS).cells == ((("eu",), Decimal(2)),)


def test_what_changed_is_told_once_per_change(bench: Bench) -> None:
    def changed(mark: int) -> tuple[list[usage_read.Changed], int]:
        with postgres.transaction(bench.pool) as tx:
            generation.enter(tx, usage.SET)
            return usage_read.changed(tx, mark)

    log = opened()
    log.append(batch(event("1")))
    bench.apply(log.records)
    first, mark = changed(0)
    fed = {"calls", "bytes", "peak", "least", "last", "mean", "level", "median"}
    assert {each.meter for each in first} == fed
    assert changed(mark)[0] == []
    log.append(batch(event("2", user="ann")))
    bench.apply(log.records[-1:])
    second, _ = changed(mark)
    assert {each.meter for each in second} == fed | {"users"}
    versions = {each.meter: each.version for each in first}
    assert all(each.version > versions.get(each.meter, 0) for each in second)


def test_a_rebuilt_generation_is_equal_row_by_row(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1", region="eu"), event("1"), event("", NOON), event("2", NOON - timedelta(days=90))))
    log.append(control(version=2, meters=[CALLS]))
    log.append(batch(event("3"), event("3"), event("1", region="us")))
    for record in log.records:
        bench.apply([record])
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    bench.apply(log.records, store=UsageStore(bench.pool, Layout(1), None, into=number))
    assert len(bench.refused) == 4, "a rebuild sends nothing to anybody"
    with postgres.transaction(bench.pool) as tx:
        for table, statement in usage.COMPARED.items():
            generation.enter(tx, usage.SET)
            live = tx.execute(f"SELECT l::text FROM ({statement}) AS l ORDER BY 1").fetchall()
            generation.enter(tx, usage.SET, number)
            assert tx.execute(f"SELECT l::text FROM ({statement}) AS l ORDER BY 1").fetchall() == live, table
            empty = ("usage_backfill", "usage_changed", "usage_pruned", "usage_day", "usage_total")
            assert live or table in empty


def test_workers_of_two_partitions_do_not_deadlock(bench: Bench) -> None:
    """They share series and rows of `usage_changed`; each inserts in the order of keys."""
    logs = [Log(partition) for partition in (0, 1)]
    for log in logs:
        log.append(control())
    for round_ in range(8):
        for log in logs:
            ids = list(range(40))
            random.Random(round_ + log.partition).shuffle(ids)
            log.append(batch(*(event(f"{log.partition}-{round_}-{i}", customer=f"c{i}", region=str(i)) for i in ids)))
    failures: list[BaseException] = []

    def work(log: Log) -> None:
        store = bench.another(log.partition)
        try:
            for record in log.records:
                bench.apply([record], store=store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert bench.rows("SELECT count(*) FROM usage_identity") == [(640,)]


def test_identities_of_an_older_scheme_are_not_added_to(bench: Bench) -> None:
    """A copy of an event that was counted under its older identity would count again."""
    log = opened()
    log.append(batch(event("1")))
    bench.apply(log.records[:1])
    with postgres.connect(bench.owner) as connection:
        generation.enter(connection.cursor(), usage.SET)
        connection.cursor().execute("COMMENT ON TABLE usage_identity IS NULL")
    with pytest.raises(Misconfigured, match="replay rebuild --set usage"):
        bench.apply(log.records[1:], store=bench.another())
    assert bench.rows("SELECT count(*) FROM usage_identity") == [(0,)]


def test_tables_that_only_grow_are_spared_vacuums_and_wide_surveys(bench: Bench) -> None:
    """Each would write every page again that it is the first to read."""
    log = opened()
    log.append(batch(event("1", NOON, bytes="1")))
    bench.apply(log.records)
    spared = bench.rows(
        """
        SELECT c.relname, c.reloptions, max(coalesce(a.attstattarget, -1)), min(coalesce(a.attstattarget, -1))
          FROM pg_inherits i
          JOIN pg_class c ON c.oid = i.inhrelid
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
         WHERE i.inhparent IN ('usage_identity'::regclass, 'usage_value'::regclass)
         GROUP BY c.oid
        """
    )
    assert len(spared) == 8 + 1
    for _, options, *surveyed in spared:
        assert {"autovacuum_vacuum_insert_threshold=-1", "autovacuum_analyze_scale_factor=1"} <= set(options)
        assert surveyed == [10, 10]


def test_a_month_that_is_there_is_left_alone_while_it_is_vacuumed(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1", NOON, bytes="1")))
    bench.apply(log.records)
    month = NOON.date().replace(day=1)
    with postgres.connect(bench.owner) as vacuum, postgres.connect(bench.owner) as caller:
        for each in (vacuum, caller):
            generation.enter(each.cursor(), usage.SET)
        for table in ("usage_value", "usage_window"):
            vacuum.execute(f"LOCK TABLE {table}_{month:%Y_%m} IN SHARE UPDATE EXCLUSIVE MODE")
        caller.execute("SET LOCAL lock_timeout = '1s'")
        caller.execute("SELECT usage_month(%s)", (month,))  # would raise if it waited
