"""A process that holds records and does not move is ended; one that moves, waits or cannot know is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from infra import telemetry
from infra.errors import Transient
from infra.kafka import Position
from infra.watchdog import AGE, STALLED, Pulse, Unapplied, Watchdog

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HERE: Position = ("usage.events", 3)


@dataclass
class Log:
    """A partition with records at some offsets, appended a second apart; every other offset is a marker."""

    end_at: int
    records: tuple[int, ...] = ()
    away: bool = field(default=False)

    def end(self, position: Position) -> int:
        if self.away:
            raise Transient("away")
        return self.end_at

    def oldest(self, position: Position, offset: int) -> Unapplied | None:
        return next((Unapplied(each, NOW - timedelta(seconds=30)) for each in self.records if each >= offset), None)


@pytest.fixture
def ended() -> Iterator[list[int]]:
    yield []
    telemetry.LAG.clear()
    AGE.clear()


def watching(log: Log, ended: list[int]) -> Watchdog:
    made = Watchdog(log, 10, ended.append)
    made.holds({HERE: 5})
    return made


def shown(name: str) -> float | None:
    return telemetry.REGISTRY.get_sample_value(name, {"topic": "usage.events", "partition": "3"})


def test_a_worker_that_stands_still_with_records_is_ended(ended: list[int]) -> None:
    watchdog = watching(Log(9, (5, 6, 7, 8)), ended)
    watchdog.look(0, NOW)
    watchdog.look(9.9, NOW)
    assert ended == []
    watchdog.look(10, NOW)
    assert ended == [STALLED]


def test_lag_and_age_are_shown(ended: list[int]) -> None:
    watchdog = watching(Log(9, (6, 7, 8)), ended)
    watchdog.look(0, NOW)
    assert shown("tallybook_consumer_lag_records") == 4
    assert shown("tallybook_consumer_oldest_unapplied_seconds") == 30
    watchdog.applied(HERE, 9)
    watchdog.look(2, NOW)
    assert shown("tallybook_consumer_lag_records") == 0
    assert shown("tallybook_consumer_oldest_unapplied_seconds") == 0
    watchdog.lets_go([HERE])
    assert shown("tallybook_consumer_lag_records") is None


def test_slow_is_not_still(ended: list[int]) -> None:
    watchdog = watching(Log(9, (5, 6, 7, 8)), ended)
    for second in range(0, 40, 9):
        watchdog.look(second, NOW)
        watchdog.applied(HERE, 5 + second // 9)
    watchdog.look(45, NOW)
    assert ended == []


def test_markers_at_the_end_are_nothing_to_apply(ended: list[int]) -> None:
    watchdog = watching(Log(9), ended)
    for second in range(0, 60, 5):
        watchdog.look(second, NOW)
    assert ended == []
    assert shown("tallybook_consumer_lag_records") == 0


def test_nobody_is_ended_while_the_log_is_away(ended: list[int]) -> None:
    log = Log(9, (5,))
    watchdog = watching(log, ended)
    watchdog.look(0, NOW)
    log.away = True
    watchdog.look(8, NOW)
    log.away = False
    watchdog.look(16, NOW)  # it counts from here: while the log was away nothing could move
    assert ended == []
    watchdog.look(26, NOW)
    assert ended == [STALLED]


def test_what_another_holds_is_not_watched(ended: list[int]) -> None:
    watchdog = watching(Log(9, (5,)), ended)
    watchdog.look(0, NOW)
    watchdog.holds({("usage.events", 4): 9}, only=True)
    watchdog.look(60, NOW)
    assert ended == []


def test_a_worker_that_does_not_begin_to_read_is_ended(ended: list[int]) -> None:
    log = Log(9)  # though there is nothing to apply: what comes would not be
    watchdog = Watchdog(log, 10, ended.append)
    watchdog.awaits([HERE])
    watchdog.look(0, NOW)
    log.away = True
    watchdog.look(8, NOW)
    log.away = False
    watchdog.look(17, NOW)
    assert ended == []
    watchdog.look(18, NOW)
    assert ended == [STALLED]


def test_a_worker_that_reads_or_was_relieved_is_not_awaited(ended: list[int]) -> None:
    for relieve in (lambda it: it.holds({HERE: 9}), lambda it: it.lets_go([HERE]), lambda it: it.awaits([])):
        watchdog = Watchdog(Log(9), 10, ended.append)
        watchdog.awaits([HERE])
        watchdog.look(0, NOW)
        relieve(watchdog)
        watchdog.look(60, NOW)
    assert ended == []


def test_a_loop_that_stands_still_is_ended(ended: list[int]) -> None:
    pulse = Pulse(10, ended.append)
    began = time.monotonic()
    pulse.look(began + 9)
    assert ended == []
    pulse.look(began + 11)
    assert ended == [STALLED]
