"""Every copy of a counted event is told by its position, however it came, and no longer than copies are recognised."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from pathlib import Path

from billing.period import Period
from infra import migrate, postgres
from projections import generation, usage, usage_duplicates
from projections.usage_duplicates import Copies, Copy
from projections.usage_events import Key, Place
from services.usage_identity import identity_of
from services.usage_pruning import prune
from services.usage_trace import Fate, fate_of
from tests.usage.conftest import Bench
from tests.usage.making import NOON, TENANT, Log, amendment, batch, control, event, opened, void
from tests.usage.test_pruning import AT_ONCE, DAY, NARROW


def copies_of(bench: Bench, id: str) -> Copies:
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET)
        return usage_duplicates.of(tx, TENANT, identity_of("test", id))


def places(bench: Bench, id: str) -> list[tuple[int, int]]:
    return [each.place[1:] for each in copies_of(bench, id).newest]


def test_a_copy_is_told_wherever_it_came(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("2"), event("1")))  # in its batch
    log.append(batch(event("1")))  # in its micro-batch
    bench.apply(log.records)
    log.append(batch(event("3"), event("1"), event("1", bytes="7"), event("2")))  # in another one
    bench.apply(log.records[3:])
    bench.apply(log.records[1:], follows=1)  # redelivered: nothing new
    assert places(bench, "1") == [(3, 1), (2, 0), (1, 2)]
    assert (places(bench, "2"), places(bench, "3")) == ([(3, 3)], [])
    assert bench.fates().duplicate == 4 == bench.rows("SELECT count(*) FROM usage_duplicate")[0][0]
    assert bench.fates().conflict == 1


def test_a_copy_of_a_corrected_event_is_one_of_the_event_as_it_first_came(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("2")))
    log.append(amendment(event("1", bytes="7")))
    log.append(void("2"))
    log.append(batch(event("1"), event("2"), event("1", bytes="7")))
    bench.apply(log.records)
    assert (places(bench, "1"), places(bench, "2")) == ([(4, 0)], [(4, 1)])
    assert [each.usage.reason for each in bench.refused] == ["id_conflict"]


def test_rows_and_counts_agree_however_the_log_is_cut_into_batches(bench: Bench) -> None:
    chance = random.Random(7)
    log = opened()
    for _ in range(40):
        log.append(batch(*(event(str(chance.randrange(60))) for _ in range(5))), at=NOON + chance.random() * DAY / 9)
    at = 0
    while at < len(log.records):
        size = chance.randrange(1, 9)
        bench.apply(log.records[at : at + size])
        at += size
    by_hour = """
        SELECT partition, date_bin('1 hour', appended_at, 'epoch'), count(*) FROM usage_duplicate
         GROUP BY 1, 2 ORDER BY 2
    """
    assert bench.rows(by_hour) == bench.rows(
        "SELECT partition, hour, duplicate FROM usage_fate WHERE duplicate > 0 ORDER BY hour"
    )


def test_of_many_copies_the_newest_are_told_and_all_are_counted(bench: Bench) -> None:
    log = opened()
    log.append(batch(*[event("1")] * 31))
    bench.apply(log.records)
    told = copies_of(bench, "1")
    assert (told.total, len(told.newest)) == (30, usage_duplicates.COPIES_MAX)
    assert told.newest[0] == Copy(Place(0, 1, 30), NOON)


def test_lists_page_from_the_newest_without_gap_or_repeat(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1")))
    times = [NOON, NOON, NOON + timedelta(minutes=5), NOON + timedelta(hours=9), NOON + 3 * DAY]
    for at in times:
        log.append(batch(event("1"), event("1")), at=at)
    bench.apply(log.records)
    period = Period(NOON - DAY, NOON + 4 * DAY)
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET)
        everything = usage_duplicates.listed(tx, TENANT, period, limit=50)
        assert [each.place.offset for each in everything] == [6, 6, 5, 5, 4, 4, 3, 3, 2, 2]
        paged: list[Copy] = []
        while page := usage_duplicates.listed(
            tx,
            TENANT,
            period,
            before=Key(paged[-1].received_at, paged[-1].place) if paged else None,
            limit=3,
        ):
            paged += page
        assert paged == everything
        inside = usage_duplicates.listed(tx, TENANT, Period(NOON + timedelta(minutes=5), NOON + DAY), limit=50)
        assert [each.place.offset for each in inside] == [5, 5, 4, 4]
        assert usage_duplicates.listed(tx, "other", period, limit=50) == []


def test_copies_go_when_no_further_one_would_be_accepted(bench: Bench) -> None:
    log = Log()
    log.append(control(bounds=NARROW), at=NOON)
    log.append(batch(event("old", NOON), event("old", NOON)), at=NOON)
    log.append(batch(event("old", NOON)), at=NOON + 9 * DAY)
    log.append(batch(event("new", NOON + 15 * DAY)), at=NOON + 15 * DAY)
    bench.apply(log.records)
    assert prune(bench.pool, threading.Event(), over=AT_ONCE).identities == 1
    assert places(bench, "old") == [(2, 0)]
    with postgres.transaction(bench.pool) as tx:
        fate = fate_of(tx, TENANT, "test", "old")
        assert (fate.fate, fate.counted, fate.copies.total) == (Fate.DUPLICATE, None, 1)
    log.append(batch(event("newer", NOON + 40 * DAY)), at=NOON + 40 * DAY)
    bench.apply(log.records[-1:])
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert bench.rows("SELECT count(*) FROM usage_duplicate") == [(0,)]
    assert prune(bench.pool, threading.Event(), over=AT_ONCE).steps == 0, "there is nothing more to sweep"


def test_a_generation_from_before_tells_copies_too(bench: Bench) -> None:
    migration = Path(migrate.__file__).parent / "migrations" / "0064_usage_duplicates.sql"
    log = opened()
    log.append(batch(event("1"), event("1")))
    described = """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
         WHERE attrelid = 'usage_duplicate'::regclass AND attnum > 0 ORDER BY attnum
    """
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'usage_duplicate'"
    policies = """
        SELECT policyname, roles, cmd, qual, with_check FROM pg_policies
         WHERE schemaname = current_schema() AND tablename = 'usage_duplicate' ORDER BY 1
    """
    asked = [described, f"{indexes} ORDER BY 1", policies]
    before = [bench.rows(each) for each in asked]
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        generation.enter(tx, usage.SET)
        tx.execute("DROP TABLE usage_duplicate")
        for _ in range(2):
            tx.execute(migration.read_bytes())
    assert [bench.rows(each) for each in asked] == before
    bench.apply(log.records)
    assert places(bench, "1") == [(1, 1)]
