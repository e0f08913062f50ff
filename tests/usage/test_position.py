"""Every event in the log has a fate, and the log's positions tell it: as many of each as the hourly counts say."""

from __future__ import annotations

import random
import threading
from collections import Counter

from infra import postgres
from services.usage_position import Told, fates_in
from services.usage_pruning import prune
from tests.usage.conftest import Bench
from tests.usage.making import NOON, Log, amendment, batch, control, event, opened, void
from tests.usage.test_pruning import AT_ONCE, DAY, NARROW


def told(bench: Bench, log: Log, offset: int) -> list[Told]:
    with postgres.transaction(bench.pool) as tx:
        return fates_in(tx, log.records[offset])


def test_each_event_of_a_record_tells_its_fate(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("2"), event("", NOON), event("3")))
    log.append(batch(event("1"), event("4"), event("2", bytes="7")))
    log.append(amendment(event("3", bytes="9")))
    log.append(void("4"))
    log.append(void("nobody"))
    log.append(b"no usage")
    log.append(batch(event("3")))
    bench.apply(log.records)
    log.append(batch(event("later")))
    assert [(each.place.batch_index, each.id, each.fate) for each in told(bench, log, 1)] == [
        (0, "1", "unmatched"),
        (1, "2", "unmatched"),
        (2, "", "rejected"),
        (3, "3", "unmatched"),
    ]
    assert told(bench, log, 1)[3].detail == "amended at 0/3/0"
    second = told(bench, log, 2)
    assert [(each.id, each.fate, each.detail) for each in second[:2]] == [
        ("1", "duplicate", "0/1/0 is the one that counted"),
        ("4", "voided", "voided at 0/4"),
    ]
    assert (second[2].fate, second[2].detail[:12]) == ("conflict", "id_conflict:")
    assert [told(bench, log, offset)[0].fate for offset in (0, 3, 4)] == ["applied"] * 3
    assert [told(bench, log, offset)[0].fate for offset in (5, 6)] == ["rejected"] * 2
    assert (told(bench, log, 7)[0].fate, told(bench, log, 7)[0].detail) == (
        "duplicate",
        "it counts as amended at 0/3/0",
    )
    assert told(bench, log, 8)[0].fate == "waiting"


def test_positions_and_hourly_counts_agree(bench: Bench) -> None:
    chance = random.Random(11)
    log = opened()
    for _ in range(60):
        ids = [str(chance.randrange(90)) for _ in range(chance.randrange(1, 6))]
        log.append(batch(*(event(id, bytes=chance.choice(["1", "1", "1", "2", "-3"])) for id in ids)))
        if chance.random() < 0.3:
            log.append(void(str(chance.randrange(90))))
        if chance.random() < 0.3:
            log.append(amendment(event(str(chance.randrange(90)), bytes=str(chance.randrange(1, 4)))))
    for at in range(0, len(log.records), 7):
        bench.apply(log.records[at : at + 7])
    found = Counter[str]()
    for record in log.records:
        for each in told(bench, log, record.offset):
            is_correction = each.place.batch_index < 0
            found["correction" if is_correction else each.fate] += 1
    fates = bench.fates()
    assert found["unmatched"] + found["voided"] == fates.counted
    assert (found["duplicate"], found["conflict"], found["rejected"]) == (
        fates.duplicate,
        fates.conflict,
        fates.rejected,
    )
    assert min(found.values()) > 3, found


def test_beyond_the_horizon_it_is_said_that_it_is(bench: Bench) -> None:
    log = Log()
    log.append(control(bounds=NARROW), at=NOON)
    log.append(batch(event("old", NOON), event("old", NOON)), at=NOON)
    log.append(batch(event("old", NOON)), at=NOON + 9 * DAY)
    log.append(batch(event("new", NOON + 15 * DAY)), at=NOON + 15 * DAY)
    bench.apply(log.records)
    prune(bench.pool, threading.Event(), over=AT_ONCE)
    assert [each.fate for each in told(bench, log, 1)] == ["pruned", "pruned"]
    assert (told(bench, log, 2)[0].fate, told(bench, log, 2)[0].detail) == (
        "duplicate",
        "the event that counted lies beyond the dedupe horizon",
    )
