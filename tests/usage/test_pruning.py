"""Identities are pruned when no copy of theirs would be accepted any more; the counts still tell the truth."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from billing.tenant import UsageBounds
from infra import postgres
from projections import generation, usage, usage_pruning
from services.usage_pruning import prune
from tests.usage.conftest import Bench
from tests.usage.making import NOON, TENANT, Log, amendment, batch, control, event, void

DAY = timedelta(days=1)
NARROW = UsageBounds(oldest_days=10, ahead_minutes=60)
WIDE = UsageBounds(oldest_days=300, ahead_minutes=60)
AT_ONCE = timedelta(0)


def grown(log: Log) -> Log:
    """An old event and, a month later, a new one."""
    log.append(batch(event("old", NOON)), at=NOON)
    log.append(batch(event("new", NOON + 30 * DAY)), at=NOON + 30 * DAY)
    return log


def identities(bench: Bench) -> int:
    return int(bench.rows("SELECT count(*) FROM usage_identity")[0][0])


def registered(bounds: UsageBounds = NARROW, **more: object) -> Log:
    log = Log()
    log.append(control(bounds=bounds, **more), at=NOON)
    return log


def test_an_identity_goes_when_its_copies_would_be_refused(bench: Bench) -> None:
    log = grown(registered())
    bench.apply(log.records)
    assert prune(bench.pool, threading.Event(), over=AT_ONCE).identities == 1
    assert identities(bench) == 1
    copy = log.append(batch(event("old", NOON)), at=NOON + 30 * DAY)
    bench.apply([copy])
    assert [each.usage.reason for each in bench.refused] == ["too_late"]
    assert (bench.fates().counted, bench.fates().rejected) == (2, 1)
    assert prune(bench.pool, threading.Event(), over=AT_ONCE).steps == 0, "there is nothing more to sweep"


def test_what_could_still_come_again_is_kept(bench: Bench) -> None:
    log = registered()
    log.append(batch(event("edge", NOON + timedelta(minutes=59))), at=NOON)  # ahead of the append, as allowed
    log.append(batch(event("new", NOON + 11 * DAY)), at=NOON + 11 * DAY)
    bench.apply(log.records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert identities(bench) == 2


def test_a_lagging_partition_is_pruned_by_its_own_clock(bench: Bench) -> None:
    log = grown(registered())
    bench.apply(log.records[:-1])
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert identities(bench) == 1


def test_a_tenant_with_a_test_clock_is_never_pruned(bench: Bench) -> None:
    bench.apply(grown(registered(clock=NOON + 30 * DAY, bounds=WIDE)).records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert identities(bench) == 2


def test_wider_bounds_do_not_bring_back_what_was_pruned(bench: Bench) -> None:
    """Else the copy of an event that was counted, and pruned under the narrow bounds, would count again."""
    log = grown(registered())
    bench.apply(log.records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    log.append(control(version=2, bounds=WIDE), at=NOON + 31 * DAY)
    log.append(batch(event("old", NOON), event("other", NOON + 25 * DAY)), at=NOON + 31 * DAY)
    bench.apply(log.records[3:])
    assert [(each.usage.reason, each.usage.id) for each in bench.refused] == [("too_late", "old")]
    assert bench.fates().counted == 3
    again = bench.another()  # a worker that was restarted knows as much
    copy = log.append(batch(event("old", NOON)), at=NOON + 31 * DAY)
    bench.apply([copy], store=again)
    assert bench.fates().counted == 3


def test_wider_bounds_soon_after_the_registration_take_everything(bench: Bench) -> None:
    log = registered()
    log.append(control(version=2, bounds=WIDE), at=NOON + DAY)
    log.append(batch(event("old", NOON - 200 * DAY)), at=NOON + DAY)
    bench.apply(log.records)
    assert bench.refused == []


def test_a_rebuilt_generation_is_equal_after_pruning(bench: Bench) -> None:
    log = grown(registered())
    bench.apply(log.records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        live = generation.current(tx, usage.SET)
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    bench.apply(log.records, store=bench.another(into=number))
    with postgres.transaction(bench.pool) as tx:
        usage_pruning.carry(tx, generation.schema(usage.SET, live), generation.schema(usage.SET, number))
        for table, statement in usage.COMPARED.items():
            found = []
            for each in (live, number):
                generation.enter(tx, usage.SET, each)
                found.append(tx.execute(f"SELECT l::text FROM ({statement}) AS l ORDER BY 1").fetchall())
            assert found[0] == found[1], table


def test_a_writer_does_not_wait_for_a_step(bench: Bench) -> None:
    log = grown(registered())
    bench.apply(log.records)
    more = log.append(batch(*(event(f"more-{i}", NOON + 30 * DAY) for i in range(50))), at=NOON + 30 * DAY)
    prune_in = postgres.transaction(bench.pool)
    with prune_in as tx:
        number = generation.enter(tx, usage.SET, writes=True)
        usage_pruning.mark(tx, {(TENANT, 0): NOON + 20 * DAY})
        for table in usage_pruning.TABLES:
            usage_pruning.step(tx, table, 0, 1000)
        bench.apply([more])  # in its own transaction, while the step's is open
        assert generation.current(tx, usage.SET) == number
    assert identities(bench) == 51


@pytest.mark.parametrize("bounds", [NARROW, WIDE])
def test_marks_never_move_back(bench: Bench, bounds: UsageBounds) -> None:
    bench.apply(grown(registered(bounds)).records)
    with postgres.transaction(bench.pool) as tx:
        generation.enter(tx, usage.SET, writes=True)
        assert usage_pruning.mark(tx, {(TENANT, 0): NOON + 2 * DAY})
        usage_pruning.mark(tx, {(TENANT, 0): NOON + DAY})
        assert usage_pruning.marks(tx) == {(TENANT, 0): NOON + 2 * DAY}


def test_what_is_beyond_the_bounds_can_not_be_corrected_pruned_or_not(bench: Bench) -> None:
    """Else a rebuild, which finds the identity again, would void what was refused to be voided."""
    log = grown(registered())
    log.append(void("old"), at=NOON + 30 * DAY)
    log.append(amendment(event("old", NOON + 29 * DAY)), at=NOON + 30 * DAY)
    bench.apply(log.records)
    told = [(each.usage.reason, each.usage.id, each.usage.detail) for each in bench.refused]
    assert [each[:2] for each in told] == [("unknown_event", "old")] * 2
    bench.refused.clear()
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    log.append(void("old"), at=NOON + 30 * DAY)
    bench.apply(log.records[-1:])
    assert [(each.usage.reason, each.usage.id, each.usage.detail) for each in bench.refused] == told[:1]


def test_an_amended_event_is_known_as_long_as_one_that_came_then(bench: Bench) -> None:
    log = registered()
    log.append(batch(event("1", NOON)), at=NOON)
    log.append(amendment(event("1", NOON + 9 * DAY)), at=NOON + 9 * DAY)
    log.append(batch(event("new", NOON + 15 * DAY)), at=NOON + 15 * DAY)
    bench.apply(log.records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert identities(bench) == 2
    log.append(void("1"), at=NOON + 15 * DAY)
    bench.apply(log.records[-1:])
    assert (bench.fates().voided, bench.refused) == (1, [])
