"""What is scanned comes to the same as what is decoded and judged, whatever stands in the log."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.metering import Aggregation, Filter, Meter, UsageControl
from billing.placing import Spread
from schemas import binary
from schemas.framing import SINGLE_OBJECT
from schemas.released import bundled, newest
from services import usage_readers
from services.usage_identity import identities, identity_bytes, mask_of
from services.usage_intake import judge
from services.usage_judged import Judged
from services.usage_measuring import EPOCH, Measuring
from services.usage_placing import Layout
from services.usage_scanning import Scanners
from tests.usage.making import NOON, TENANT, Log, control, void

SCHEMA = newest(bundled())["tallybook.usage.UsageBatch"].schema
PARSED = binary.parsed(SCHEMA)
PREFIX = SINGLE_OBJECT + binary.fingerprint(SCHEMA)
NOON_US = (NOON - EPOCH) // timedelta(microseconds=1)
DAY_US = 86_400_000_000

METERS = (
    Meter(key="sum", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",)),
    Meter(key="eu", event_type="api", filters=(Filter(property="region", values=("eu", "é")),)),
    Meter(key="who", event_type="api", aggregation=Aggregation.UNIQUE, value="user", dimensions=("region", "kind")),
    Meter(key="flow", event_type="flow", aggregation=Aggregation.WEIGHTED_SUM, value="bytes"),
    Meter(key="night", event_type="odd", condition="properties.bytes != '7'"),
    Meter(key="only", event_type="only", filters=(Filter(property="region", values=("eu",)),)),
)

UUIDS = [f"0192f{each}11-2b3c-7d4e-8f50-61728394a5b6" for each in range(10)]
UUIDS = [each[:8] + "-" + each.split("-", 1)[1] for each in UUIDS]


EVENT = {
    "id": "",
    "source": "s",
    "type": "api",
    "customer": "c",
    "time": NOON_US,
    "properties": {"bytes": "1", "region": "eu"},
}


def encoded(events: list[dict[str, Any]], tenant: str = TENANT) -> bytes:
    return binary.write(PARSED, {"tenant": tenant, "events": events}, PREFIX)


texts = st.sampled_from(["eu", "us", "é", "", "x" * 40, "x" * 80, "x" * 300, "a\0b", "7"])
numbers = st.one_of(
    st.integers(0, 10**12).map(str),
    st.sampled_from(["0", "00", "01", "-1", "0.5", "1e3", "", "x", "١", " 1", "9" * 30, "12345678", "100000000"]),
)
properties = st.fixed_dictionaries(
    {}, optional={"bytes": numbers, "region": texts, "user": texts, "kind": texts, "é" * 3: texts}
).flatmap(lambda made: st.permutations(sorted(made)).map(lambda order: {name: made[name] for name in order}))
ids = st.one_of(
    st.sampled_from(UUIDS),
    st.sampled_from([UUIDS[0].upper(), UUIDS[0].replace("-", ""), "e-1", "", "a\nb", "é", "x" * 37, "z" * 36]),
)
plain = st.fixed_dictionaries(
    {
        "id": st.one_of(st.uuids().map(str), st.sampled_from(UUIDS[:3])),
        "source": st.sampled_from(["s", "t"]),
        "type": st.sampled_from(["api", "flow"]),
        "customer": st.sampled_from(["c1", "c2"]),
        "time": st.integers(NOON_US - DAY_US, NOON_US),
        "properties": st.fixed_dictionaries(
            {"bytes": st.integers(0, 10**6).map(str), "region": st.sampled_from(["eu", "us"])}
        ),
    }
)
strange = st.fixed_dictionaries(
    {
        "id": ids,
        "source": st.sampled_from(["s", "t", "", "x\n", "é", "s" * 70]),
        "type": st.sampled_from(["api", "flow", "odd", "only", "none", ""]),
        "customer": st.sampled_from(["c1", "c2", "Zürich", "", "c\n", "c" * 90]),
        "time": st.one_of(
            st.integers(NOON_US - 30 * DAY_US, NOON_US + DAY_US),
            st.sampled_from([0, -1, 1 << 48, (1 << 55) - 1, 1 << 55, 1 << 60, -(1 << 60)]),
        ),
        "properties": properties,
    }
)
nearly_plain = st.tuples(plain, strange, st.sampled_from(sorted(EVENT))).map(
    lambda made: {**made[0], made[2]: made[1][made[2]]}
)
records = st.lists(st.one_of(plain, plain, nearly_plain, strange), min_size=1, max_size=6).map(encoded)
broken = st.tuples(records, st.integers(0, 400), st.integers(0, 255)).map(
    lambda made: made[0][: 10 + made[1]] + bytes((made[2],)) + made[0][11 + made[1] :]
)


def rows(pieces: Iterator[bytes]) -> list[tuple[bytes | None, ...]]:
    """The rows of a COPY, in some order, each by its fields."""
    found, body, at = [], b"".join(pieces), 0
    while at < len(body):
        (columns,), at = struct.unpack_from(">h", body, at), at + 2
        row: list[bytes | None] = []
        for _ in range(columns):
            (size,), at = struct.unpack_from(">i", body, at), at + 4
            row.append(body[at : at + size] if size >= 0 else None)
            at += max(size, 0)
        found.append(tuple(row))
    return sorted(found, key=repr)


def outcome(made: Judged, numbered: dict[Any, int], taken: set[tuple[int, int]]) -> Any:
    found = []
    for run in made.runs():
        told = rows(run.rows(numbered))
        places = {(each.place.offset, each.batch_index) for each in run.claims}
        places.update((each.place.offset, index) for each in run.scanned for index in each.indexes)
        late = dict.fromkeys(taken & places, b"?" * 16)
        counted = run.settle(late)
        refused = sorted((each.usage.offset, each.usage.index or 0, each.usage.reason) for each in run.refusals)
        found.append((told, counted, run.fates, refused, sorted(places)))
    return found


def same(log: Log, made: UsageControl, layout: Layout, known: Any, taken: set[tuple[int, int]]) -> Judged:
    """Holds both ways against each other; returns the scanned."""
    controls = {TENANT: Measuring(made, 0, b"")}
    slowly = judge(log.records, controls, layout)
    numbered = {each: at for at, each in enumerate(sorted(slowly.series()))}
    scanners = Scanners(1, layout)
    scanners.series.add({each: at for each, at in numbered.items() if known(at)})
    quickly = judge(log.records, controls, layout, scanners)
    expected = outcome(slowly, numbered, taken)
    assert outcome(quickly, numbered, taken) == expected
    again = judge(log.records, controls, layout, scanners)  # with all that it has learnt
    assert outcome(again, numbered, taken) == expected
    return quickly


@settings(max_examples=300)
@given(
    st.lists(st.one_of(records, records, broken, st.just(void("e-1"))), min_size=1, max_size=5),
    st.sampled_from([lambda _: True, lambda at: at % 3 > 0, lambda _: False]),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=4),
)
def test_what_is_scanned_comes_to_what_is_decoded(written: list[Any], known: Any, taken: set[tuple[int, int]]) -> None:
    log = Log()
    for each in written:
        log.append(each, headers={"tenant": TENANT.encode()})
    same(log, control(meters=METERS), Layout(1), known, taken)


@given(st.lists(plain, min_size=1, max_size=8, unique_by=lambda each: (each["source"], each["id"])))
def test_events_in_order_are_all_scanned(events: list[dict[str, Any]]) -> None:
    log = Log()
    log.append(encoded(events), headers={"tenant": TENANT.encode()})
    made = same(log, control(meters=METERS), Layout(1), lambda _: True, set())
    assert made.claims == []
    assert made.size == len(events)


@given(st.lists(plain, min_size=1, max_size=8))
def test_a_spread_tenants_events_are_scanned_where_they_belong(events: list[dict[str, Any]]) -> None:
    layout = Layout(3)
    spread = (Spread(effective_from=NOON - timedelta(hours=12), partitions=3),)
    log = Log(partition=layout.home(TENANT))
    log.append(encoded(events), headers={"tenant": TENANT.encode()})
    same(log, control(meters=METERS, spread=spread), layout, lambda _: True, set())


@given(st.lists(st.tuples(ids, st.sampled_from(["s", "t"])), min_size=1, max_size=5))
def test_identities_of_many_are_those_of_each(named: list[tuple[str, str]]) -> None:
    made = identities([id.encode() for id, _ in named], [mask_of(source) for _, source in named])
    each = [identity_bytes(source, id) for id, source in named]
    assert made in (None, each)
    if all(id in UUIDS for id, _ in named):
        assert made == each


def test_ids_of_one_source_never_meet_and_keep_their_time() -> None:
    assert len({identity_bytes(source, id) for source in ("s", "t") for id in (*UUIDS, UUIDS[0].upper(), "e")}) == 24
    assert identity_bytes("s", UUIDS[3])[:6] == bytes.fromhex(UUIDS[3].replace("-", "")[:12])


def test_caches_start_anew_when_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_readers, "ROOM", 10)
    log = Log()
    for at in range(6):
        sent = [
            {**EVENT, "id": f"0192f011-2b3c-7d4e-8f50-6172839{at}0{n:03}", "customer": f"c{at}-{n}"} for n in range(5)
        ]
        log.append(encoded(sent), headers={"tenant": TENANT.encode()})
    made = same(log, control(meters=METERS), Layout(1), lambda _: True, set())
    assert made.size == 30


def test_what_read_by_older_meters_is_forgotten() -> None:
    scanners = Scanners(1, Layout(1))
    measuring = Measuring(control(METERS), 0, b"")
    scanner = weakref.ref(scanners.of(measuring))
    assert scanner() is scanners.of(measuring)

    del measuring
    gc.collect()

    assert scanner() is None


@pytest.mark.parametrize("kind", ["api", "odd"])
@pytest.mark.parametrize("records", [[["api", "KIND"]], [["KIND", "api"]], [["api"], ["KIND"]], [["KIND"], ["api"]]])
def test_the_first_of_an_identity_in_the_log_counts(records: list[list[str]], kind: str) -> None:
    """`odd` has a condition: its events are left by the scanner."""
    log = Log()
    for number, kinds in enumerate(records):
        told = [kind if each == "KIND" else each for each in kinds]
        events = [{**EVENT, "id": UUIDS[0], "type": each, "customer": f"c{number}{at}"} for at, each in enumerate(told)]
        log.append(encoded([*events, {**EVENT, "id": UUIDS[1 + number]}]), headers={"tenant": TENANT.encode()})
    made = same(log, control(meters=METERS), Layout(1), lambda _: True, set())
    assert made.size == 1 + len(records)


@pytest.mark.parametrize("plain_first", [True, False])
def test_what_avro_allows_and_no_writer_writes_is_not_misread(plain_first: bool) -> None:
    long_ago = datetime(1972, 3, 1, tzinfo=UTC)
    early = encoded([{**EVENT, "id": UUIDS[0], "time": (long_ago - EPOCH) // timedelta(microseconds=1)}])
    time = early.index(b"\x02c") + 2
    longer = early[: time + 6] + bytes((early[time + 6] | 0x80, 0)) + early[time + 7 :]
    plainly = encoded([{**EVENT, "id": UUIDS[0]}])
    pairs = plainly.index(b"\x04\x0abytes")
    twice = plainly[:pairs] + b"\x06\x0abytes\x027" + plainly[pairs + 1 :]
    for written, clock in (((early, longer), long_ago), ((plainly, twice), None)):
        log = Log()
        for value in written if plain_first else reversed(written):
            log.append(value, headers={"tenant": TENANT.encode()})
        made = same(log, control(meters=METERS, clock=clock), Layout(1), lambda _: True, set())
        (fates,) = made.fates.values()
        assert (fates.counted, fates.duplicate) == (1, 1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("id", "a\nb"),
        ("id", ""),
        ("source", "x\n"),
        ("type", "none"),
        ("customer", "c\n"),
        ("customer", ""),
        ("time", NOON_US - 40 * DAY_US),
        ("time", NOON_US + 2 * DAY_US),
        ("properties", {"bytes": "1", "region": "a\0b"}),
        ("properties", {"bytes": "1", "region": "eu", "other": "\0"}),
        ("properties", {"bytes": "1", "region": "eu", "kind": "", "user": "a\0b"}),
        ("properties", {"bytes": "-1"}),
        ("properties", {"region": "eu"}),
    ],
)
def test_what_is_refused_is_left_and_takes_no_other_with_it(field: str, told: Any, known: bool) -> None:
    log = Log()
    log.append(
        encoded([{**EVENT, "id": UUIDS[0]}, {**EVENT, "id": UUIDS[1], field: told}, {**EVENT, "id": UUIDS[2]}]),
        headers={"tenant": TENANT.encode()},
    )
    made = same(log, control(meters=METERS), Layout(1), lambda _: known, set())
    assert (made.size, len(made.refusals)) == (2, 1)
