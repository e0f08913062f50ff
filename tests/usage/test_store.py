"""The aggregator's rows on real Postgres, without Kafka: exact once, whatever comes twice, late, or by a zombie."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import Aggregation, Measured, Meter, UsageBatch, UsageEvent
from billing.period import Period
from infra import failpoints, postgres
from infra.errors import Conflict
from infra.faust_app import Batch
from infra.kafka import Record
from infra.settings import Settings
from projections import generation, usage, usage_read
from schemas.codec import decode_usage
from services.usage_aggregator import RecordsMissing, UsageStore
from services.usage_intake import Refusal
from tests.stack import Stack
from tests.usage.making import BYTES, CALLS, LAST, LEAST, METERS, NOON, PEAK, TENANT, USERS, Log, batch, control, event
from tests.waiting import eventually

ACME = TenantId(TENANT)
C1 = CustomerId("c1")
DAY = Period(NOON - timedelta(hours=12), NOON + timedelta(hours=12))


class Bench:
    """One store on a database of its own."""

    def __init__(self, settings: Settings) -> None:
        self.owner = postgres.owner_url(settings)
        self.pool = postgres.worker_pool(settings, size=3)
        self.refused: list[Refusal] = []
        self.store = self.another()

    def another(self, **more: Any) -> UsageStore:
        """One more worker's store."""
        return UsageStore(self.pool, lambda *_: True, self.refused.extend, **more)

    def apply(self, records: Sequence[Record], follows: int | None = None, store: UsageStore | None = None) -> None:
        (store or self.store).apply(Batch(records, records[0].offset if follows is None else follows))

    def rows(self, statement: str) -> list[Any]:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            return tx.execute(statement).fetchall()

    def quantities(
        self, needs: Sequence[Need], customer: str = "c1", transactions: Sequence[str] | None = None
    ) -> dict[Need, Measured]:
        with postgres.transaction(self.pool) as tx:
            generation.enter_all(tx)
            return usage_read.quantities(tx, ACME, CustomerId(customer), needs, transactions=transactions)

    def measured(self, meter: Meter, period: Period = DAY, below: int = 10**9) -> Measured:
        need = Need(meter, period, (PartitionPosition(partition=0, offset=below),))
        return self.quantities([need])[need]

    def fates(self) -> usage_read.FateCounts:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            return usage_read.fates(tx)[TENANT]


@pytest.fixture(scope="module")
def prepared(stack: Stack) -> Settings:
    """A database of this file's own."""
    return stack.fresh()


@pytest.fixture
def bench(prepared: Settings) -> Iterator[Bench]:
    with postgres.connect(postgres.owner_url(prepared)) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
        tx.execute("UPDATE app.generation SET current = %s WHERE projection_set = %s", (number, usage.SET))
    made = Bench(prepared)
    yield made
    made.pool.close()
    failpoints.configure("")


def opened() -> Log:
    log = Log()
    log.append(control())
    return log


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
            usage.claim(tx, [usage.Identity(TENANT, "0" * 32, "0" * 32, 0, 9, 0, "c1", 0)])
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
    slow = UsageStore(bench.pool, lambda *_: True, sent.extend)
    with ThreadPoolExecutor(1) as threads:
        with postgres.transaction(bench.pool) as tx:
            number = generation.enter(tx, usage.SET, writes=True)
            generation.advance(tx, usage.SET, number, usage.TOPIC, 0, 1, 2)
            applying = threads.submit(slow.apply, Batch(log.records[1:], 1))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            eventually(lambda: bench.rows(waiting), within_s=20)
        with pytest.raises(Conflict):
            applying.result(20)
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
    assert {each.meter for each in first} == {"calls", "bytes", "peak", "least", "last"}
    assert changed(mark)[0] == []
    log.append(batch(event("2", user="ann")))
    bench.apply(log.records[-1:])
    second, _ = changed(mark)
    assert {each.meter for each in second} == {"calls", "bytes", "peak", "least", "last", "users"}
    versions = {each.meter: each.version for each in first}
    assert all(each.version > versions.get(each.meter, 0) for each in second)


def brute_force(log: Log, meter: Meter, period: Period, below: int) -> Decimal:
    """The quantity by the book: every event below the cut, the first of each id."""
    first: dict[str, tuple[int, int, UsageEvent]] = {}
    for record in log.records:
        content = decode_usage(record.value)
        if isinstance(content, UsageBatch):
            for index, each in enumerate(content.events):
                first.setdefault(each.id, (record.offset, index, each))
    seen = [
        (each.time, offset, index, each)
        for offset, index, each in first.values()
        if offset < below and each.time in period and each.customer == "c1"
    ]
    numbers = [Decimal(each.properties["bytes"]) for *_, each in sorted(seen, key=lambda row: row[:3])]
    match meter.aggregation:
        case Aggregation.COUNT:
            return Decimal(len(seen))
        case Aggregation.SUM:
            return sum(numbers, Decimal(0))
        case Aggregation.UNIQUE:
            return Decimal(len({each.properties["user"] for *_, each in seen if each.properties.get("user")}))
        case Aggregation.MAX:
            return max(numbers, default=Decimal(0))
        case Aggregation.MIN:
            return min(numbers, default=Decimal(0))
        case _:
            return numbers[-1] if numbers else Decimal(0)


@pytest.mark.parametrize("seed", range(3))
def test_windows_and_rows_agree_with_the_book_at_every_cut(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    log = opened()
    for _ in range(12):
        log.append(
            batch(
                *(
                    event(
                        str(chance.randrange(150)),
                        NOON + timedelta(minutes=chance.randrange(-600, 600), microseconds=chance.randrange(3)),
                        customer=chance.choice(["c1", "c1", "c2"]),
                        region=chance.choice(["eu", "us", ""]),
                        user=chance.choice(["ann", "bob", "cy", ""]),
                        bytes=str(chance.choice([0, 1, "2.5", "3.333333333333"])),
                    )
                    for _ in range(20)
                )
            )
        )
    at = 0
    while at < len(log.records):
        size = chance.randint(1, 4)
        bench.apply(log.records[at : at + size])
        at += size
    for _ in range(12):
        start = NOON + timedelta(minutes=chance.choice([-600, -60, -90, 0, 7]))
        period = Period(start, start + timedelta(minutes=chance.choice([5, 60, 240, 601])))
        below = chance.randint(0, 14)
        for meter in METERS[:6]:
            assert bench.measured(meter, period, below).total == brute_force(log, meter, period, below), meter.key
        since = chance.randint(0, 13)
        with postgres.transaction(bench.pool) as tx:
            generation.enter_all(tx)
            late = usage_read.has_late(
                tx,
                ACME,
                C1,
                period,
                [PartitionPosition(partition=0, offset=since)],
                [PartitionPosition(partition=0, offset=below)],
            )
        expected = brute_force(log, CALLS, period, max(below, since)) - brute_force(log, CALLS, period, since)
        assert late == (expected > 0)


def test_a_cut_is_passed_when_all_its_partitions_are(bench: Bench) -> None:
    log = opened()
    bench.apply(log.records)
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        assert usage_read.passed(tx, [])
        assert usage_read.passed(tx, [PartitionPosition(partition=0, offset=1)])
        assert usage_read.passed(tx, [PartitionPosition(partition=5, offset=0)])
        assert not usage_read.passed(tx, [PartitionPosition(partition=0, offset=2)])
        assert not usage_read.passed(
            tx, [PartitionPosition(partition=0, offset=1), PartitionPosition(partition=1, offset=1)]
        )


def test_a_rebuilt_generation_is_equal_row_by_row(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1", region="eu"), event("1"), event("", NOON), event("2", NOON - timedelta(days=90))))
    log.append(control(version=2, meters=[CALLS]))
    log.append(batch(event("3"), event("1", region="us")))
    for record in log.records:
        bench.apply([record])
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    bench.apply(log.records, store=UsageStore(bench.pool, lambda *_: True, None, into=number))
    assert len(bench.refused) == 4, "a rebuild sends nothing to anybody"
    with postgres.transaction(bench.pool) as tx:
        for table, statement in usage.COMPARED.items():
            generation.enter(tx, usage.SET)
            live = tx.execute(f"SELECT l::text FROM ({statement}) AS l ORDER BY 1").fetchall()
            generation.enter(tx, usage.SET, number)
            assert tx.execute(f"SELECT l::text FROM ({statement}) AS l ORDER BY 1").fetchall() == live, table
            assert live or table == "usage_changed"


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
        store = bench.another()
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
