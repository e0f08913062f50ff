"""Where an event belongs: the same partition for ever."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.placing import Spread, partition_of, scatter, touched, width_at

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = st.integers(0, 1_000_000).map(lambda each: START + timedelta(seconds=each))
NAMES = st.text(min_size=1, max_size=20).filter(str.isprintable)


@st.composite
def spreads(draw: st.DrawFn) -> tuple[Spread, ...]:
    times = sorted(draw(st.sets(TIMES, max_size=6)))
    return tuple(Spread(effective_from=each, partitions=draw(st.integers(1, 9))) for each in times)


def place(spread: tuple[Spread, ...], home: int, partitions: int, time: datetime, source: str, id: str) -> int:
    return partition_of(home, partitions, width_at(spread, time), source, id)


@given(spreads(), spreads(), st.integers(1, 12), st.integers(0, 11), TIMES, NAMES, NAMES)
def test_no_later_version_moves_an_event(
    spread: tuple[Spread, ...],
    later: tuple[Spread, ...],
    partitions: int,
    home: int,
    time: datetime,
    source: str,
    id: str,
) -> None:
    home %= partitions
    last = max((time, *(each.effective_from for each in spread)))
    grown = (*spread, *(each for each in later if each.effective_from > last))
    at = place(spread, home, partitions, time, source, id)
    assert place(grown, home, partitions, time, source, id) == at
    assert at in touched(home, partitions, grown)


@given(st.integers(1, 12), st.integers(0, 11), TIMES, NAMES, NAMES)
def test_what_is_not_spread_stays_home(partitions: int, home: int, time: datetime, source: str, id: str) -> None:
    home %= partitions
    for spread in ((), (Spread(effective_from=START, partitions=1),)):
        assert place(spread, home, partitions, time, source, id) == home
        assert touched(home, partitions, spread) == (home,)


def test_a_version_begins_with_the_events_of_its_first_instant() -> None:
    spread = (
        Spread(effective_from=START, partitions=2),
        Spread(effective_from=START + timedelta(days=1), partitions=5),
    )
    moment = timedelta(microseconds=1)
    asked = (START - moment, START, START + timedelta(days=1) - moment, START + timedelta(days=1))
    assert [width_at(spread, each) for each in asked] == [1, 2, 2, 5]


@pytest.mark.parametrize("width", [2, 3, 6])
def test_events_are_spread_evenly(width: int) -> None:
    found = Counter(partition_of(4, 6, width, "gateway", f"req-{each}") for each in range(12_000))
    assert set(found) == set(touched(4, 6, (Spread(effective_from=START, partitions=width),)))
    assert all(abs(each - 12_000 / width) < 0.1 * 12_000 / width for each in found.values())


def test_other_languages_place_events_by_these_numbers() -> None:
    """A released rule: SHA-256 of source, NUL and id in UTF-8; its first four bytes, the highest first."""
    assert scatter("gateway", "1") == 2435851683
    assert scatter("grenzübergang", "ä") == 1395848740
