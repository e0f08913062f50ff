"""Usage spread over several partitions: each event counts once, whatever the spread was when its copies were sent."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.metering import UsageEvent
from billing.placing import Spread
from billing.tenant import UsageBounds
from infra.kafka import partition_for
from services.usage_intake import judge
from services.usage_judged import Judged
from services.usage_placing import Layout
from tallybook_sdk import Spread as SdkSpread
from tallybook_sdk.spread import home_of
from tests.usage.making import CALLS, NOON, TENANT, Log, batch, control, event

LAYOUT = Layout(6)
SWITCH = NOON + timedelta(hours=2)
BACK = NOON + timedelta(hours=4)
THREE = (Spread(effective_from=SWITCH, partitions=3),)
TWO = (*THREE, Spread(effective_from=BACK, partitions=2))
VERSIONS = ((), THREE, TWO)
BOUNDS = UsageBounds(ahead_minutes=24 * 60)


class Cluster:
    """The partitions of the usage log, and a producer that may know of an older spread than the log."""

    def __init__(self) -> None:
        self.logs = [Log(partition=each) for each in range(LAYOUT.partitions)]
        self.tell(0)

    def tell(self, version: int) -> None:
        for log in self.logs:
            log.append(control(version + 1, (CALLS,), spread=VERSIONS[version], bounds=BOUNDS))

    def send(self, made: UsageEvent, known: int) -> None:
        self.logs[LAYOUT.place(TENANT, VERSIONS[known], made)].append(batch(made))

    def judged(self) -> list[Judged]:
        return [judge(log.records, {}, LAYOUT) for log in self.logs]


@given(
    st.lists(
        st.one_of(
            st.just("tell"),
            st.tuples(st.integers(0, 7), st.integers(0, 2)),  # the event, and what its sender knows
        ),
        max_size=60,
    )
)
def test_an_event_counts_once_whenever_its_copies_were_sent(steps: list[str | tuple[int, int]]) -> None:
    cluster, told = Cluster(), 0
    sent: set[str] = set()
    misplaced = 0
    for step in steps:
        if isinstance(step, str):
            told = min(told + 1, 2)
            cluster.tell(told)
            continue
        number, known = step
        known = min(known, told)
        time = NOON + timedelta(hours=number)
        if time >= (NOON, SWITCH, BACK)[min(told + 1, 2)] and told < 2:
            continue  # nobody has an event of that time yet: the next version begins after what is accepted
        made = event(f"e-{number}", time)
        right = LAYOUT.place(TENANT, VERSIONS[told], made)
        if LAYOUT.place(TENANT, VERSIONS[known], made) == right:
            sent.add(made.id)
        else:
            misplaced += 1
        cluster.send(made, known)
    judged = cluster.judged()
    assert sum(made.settle({}) for made in judged) == len(sent)
    counted = Counter(claim.identity for made in judged for claim in made.claims)
    assert len(counted) == len(sent)
    assert set(counted.values()) <= {1}
    refused = [each.usage.reason for made in judged for each in made.refusals]
    assert refused == ["key_mismatch"] * misplaced


def test_an_event_in_a_wrong_partition_is_told_the_right_one_and_takes_no_other_with_it() -> None:
    events = [event(f"e-{each}", SWITCH) for each in range(12)]
    home = LAYOUT.home(TENANT)
    log = Log(partition=home)
    log.append(control(1, (CALLS,), spread=THREE))
    log.append(batch(*events))
    made = judge(log.records, {}, LAYOUT)
    right = [each for each in events if LAYOUT.place(TENANT, THREE, each) == home]
    assert 0 < len(right) < len(events)
    assert made.settle({}) == len(right)
    for each in made.refusals:
        assert each.usage.id is not None
        belongs = LAYOUT.place(TENANT, THREE, event(each.usage.id, SWITCH))
        assert (each.usage.reason, each.usage.detail.endswith(f"it belongs into {belongs}")) == ("key_mismatch", True)


def test_a_partition_that_no_version_names_is_refused_whole() -> None:
    log = Log(partition=(LAYOUT.home(TENANT) + 3) % 6)
    log.append(control(1, (CALLS,), spread=THREE))
    log.append(batch(event("1", SWITCH), event("2", SWITCH)))
    (refusal,) = judge(log.records, {}, LAYOUT).refusals
    assert (refusal.usage.reason, refusal.usage.index, refusal.events) == ("key_mismatch", None, 2)


@given(st.text(min_size=1, max_size=30), st.integers(1, 40))
def test_the_sdk_knows_the_home_of_a_tenant(tenant: str, partitions: int) -> None:
    assert home_of(tenant, partitions) == partition_for(tenant, partitions)


@given(st.text(min_size=1, max_size=12), st.integers(-5, 9), st.integers(0, 2), st.integers(1, 8))
def test_the_sdk_places_events_as_the_server_does(id: str, hour: int, version: int, partitions: int) -> None:
    made = event(id, NOON + timedelta(hours=hour))
    told = SdkSpread(partitions, tuple((each.effective_from, each.partitions) for each in VERSIONS[version]))
    expected = Layout(partitions).place(TENANT, VERSIONS[version], made)
    assert told.partition(TENANT, made.source, made.id, made.time) == expected


def test_the_sdk_reads_what_the_api_answers() -> None:
    text = '{"log_partitions": 6, "versions": [{"effective_from": "2026-03-10T14:00:00Z", "partitions": 3}]}'
    assert SdkSpread.from_json(text) == SdkSpread(6, ((datetime(2026, 3, 10, 14, tzinfo=UTC), 3),))


@pytest.mark.parametrize("text", ["{}", "[]", '{"log_partitions": 0, "versions": []}', "no"])
def test_the_sdk_refuses_what_is_no_spread(text: str) -> None:
    with pytest.raises(ValueError, match=r"spread|Expecting"):
        SdkSpread.from_json(text)
