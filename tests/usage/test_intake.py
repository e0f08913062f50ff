"""Judging usage, without Kafka and Postgres."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.errors import Rejected
from billing.meter import CARRYING, Band, TimeOfDay, check_meter
from billing.metering import Aggregation, Filter, Meter, UsageEvent, check_event, readings
from billing.tenant import UsageBounds
from schemas.codec import decode_usage, encode_usage
from services.meter_expressions import formula
from services.usage_identity import content_of, identity_of
from services.usage_intake import judge
from services.usage_judged import Judged
from services.usage_measuring import EPOCH, Measuring
from services.usage_placing import Layout
from tests.usage.making import METERS, NOON, TENANT, Log, batch, control, event, hours, opened


def judged(log: Log, partitions: int = 1) -> Judged:
    return judge(log.records, {}, Layout(partitions))


def reasons(made: Judged) -> list[tuple[str, str]]:
    return [(each.usage.reason, each.usage.field) for each in made.refusals]


def test_an_event_is_counted_and_feeds_each_of_its_meters() -> None:
    log = opened()
    log.append(batch(event("1", region="eu", user="ann", bytes="2.5")))
    made = judged(log)
    assert made.settle({}) == 1
    (claim,) = made.claims
    assert {(each.series.meter, each.series.values, each.number, each.text) for each in claim.contributions} == {
        ("calls", ("eu",), "1", None),
        ("bytes", ("eu", ""), "2.5", None),
        ("peak", (), "2.5", None),
        ("least", (), "2.5", None),
        ("last", (), "2.5", None),
        ("users", ("eu",), None, "ann"),
        ("eu", (), "1", None),
        ("mean", ("eu",), "2.5", None),
        ("level", (), "2.5", None),
        ("median", (), "2.5", None),
    }
    (fates,) = made.fates.values()
    assert (fates.received, fates.counted, fates.duplicate, fates.conflict, fates.rejected) == (1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (event("1", NOON - timedelta(days=400)), "too_late", "events[0].time"),
        (event("1", NOON + timedelta(days=2)), "in_future", "events[0].time"),
        (event(""), "invalid_id", "events[0].id"),
        (event("x" * 129), "invalid_id", "events[0].id"),
        (event("tab\t"), "invalid_id", "events[0].id"),
        (event("1", customer=""), "invalid_customer", "events[0].customer"),
        (event("1", type="unheard"), "unknown_meter", "events[0].type"),
        (event("1", bytes="-1"), "out_of_range", "events[0].properties.bytes"),
        (event("1", bytes="1" * 30), "out_of_range", "events[0].properties.bytes"),
        (event("1", bytes="many"), "invalid_decimal", "events[0].properties.bytes"),
        (event("1", bytes="1e3"), "invalid_decimal", "events[0].properties.bytes"),
        (event("1", bytes="0.1234567890123"), "out_of_range", "events[0].properties.bytes"),
        (event("1", region="nul\0"), "invalid_text", "events[0].properties.region"),
        (event("1", region="x" * 257), "invalid_text", "events[0].properties.region"),
        (replace(event("1"), properties={}), "missing_value", "events[0].properties.bytes"),
    ],
)
def test_a_bad_event_is_refused_by_name_and_takes_no_other_with_it(bad: UsageEvent, reason: str, field: str) -> None:
    log = opened()
    log.append(batch(bad, event("good")))
    made = judged(log)
    assert reasons(made) == [(reason, field)]
    assert made.settle({}) == len(made.claims)
    assert [each.identity.hex() for each in made.claims] == [identity_of("test", "good")]
    original = decode_usage(made.refusals[0].usage.original)
    assert original == batch(bad), "the original can be sent again as it is"


def test_the_same_event_in_json_and_in_avro_counts_once() -> None:
    log = opened()
    written = '{"tenant":"acme","id":"1","source":"test","type":"api","customer":"c1","time":"2026-03-10T12:00:00Z"'
    log.append(f'{written},"properties":{{"bytes":1}}}}'.encode(), headers={"tenant": TENANT.encode()})
    log.append(batch(event("1"), event("2")))
    made = judged(log)
    assert made.settle({}) == len(made.claims)
    assert [each.identity.hex() for each in made.claims] == [identity_of("test", "1"), identity_of("test", "2")]
    (fates,) = made.fates.values()
    assert (fates.received, fates.counted, fates.duplicate) == (3, 2, 1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_value"),
        (b"", "bad_framing"),
        (b"\xc3\x01", "bad_framing"),
        (b"\x01" + b"x" * 20, "bad_magic"),
        (b"\xc3\x01" + b"unknown!" + b"x", "unknown_schema"),
        (encode_usage(batch(event("1")))[:-3], "truncated"),
        (encode_usage(batch(event("1"))) + b"x", "trailing_bytes"),
        (encode_usage(batch()), "empty_batch"),
        (b'{"tenant":"acme","events":[]}', "empty_batch"),
        (b'{"tenant":"acme"', "corrupt_json"),
        (b'{"tenant":"acme","events":[{"id":7}]}', "invalid_value"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_with_its_bytes(value: bytes | None, reason: str) -> None:
    log = opened()
    log.append(value, headers={"tenant": TENANT.encode()})
    log.append(batch(event("good")))
    made = judged(log)
    assert [each.usage.reason for each in made.refusals] == [reason]
    assert made.refusals[0].usage.original == (value or b"")
    assert made.refusals[0].usage.offset == 1
    assert made.settle({}) == 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"key": None}, "key_mismatch"),
        ({"key": b"other"}, "key_mismatch"),
        ({"headers": {}}, "header_mismatch"),
        ({"headers": {"tenant": b"other"}}, "header_mismatch"),
        ({"repeated": ("tenant",)}, "header_mismatch"),
    ],
)
def test_a_record_that_is_not_its_tenants_is_refused_whole(how: dict[str, Any], reason: str) -> None:
    log = opened()
    log.append(batch(event("1"), event("2")), **how)
    made = judged(log)
    assert [(each.usage.reason, each.usage.index, each.events) for each in made.refusals] == [(reason, None, 2)]
    assert made.settle({}) == 0
    (fates,) = made.fates.values()
    assert (fates.received, fates.rejected) == (2, 2)


def test_usage_in_a_partition_that_is_not_the_tenants_is_refused() -> None:
    log = opened()
    log.append(batch(event("1")))
    assert Layout(6).home(TENANT) == log.partition != Layout(5).home(TENANT)
    assert reasons(judged(log, 5)) == [("key_mismatch", "partition")]


def test_a_control_record_is_not_believed_under_another_tenants_key() -> None:
    log = opened()
    log.append(control(version=2, meters=()), key=b"mallory")
    log.append(batch(event("1")))
    made = judged(log)
    assert [each.usage.reason for each in made.refusals] == ["key_mismatch"]
    assert made.settle({}) == 1


def test_usage_of_a_tenant_that_is_not_registered_is_refused() -> None:
    log = Log()
    log.append(batch(event("1"), event("2")))
    made = judged(log)
    assert [(each.usage.reason, each.events) for each in made.refusals] == [("unknown_tenant", 2)]


def test_meters_switch_at_their_control_record() -> None:
    log = Log()
    log.append(control(version=5, meters=()))
    log.append(batch(event("before")))
    log.append(control(version=7))
    log.append(batch(event("after")))
    log.append(control(version=6, meters=()))
    log.append(batch(event("still")))
    made = judged(log)
    assert [each.usage.id for each in made.refusals] == ["before"]
    assert made.settle({}) == 2
    assert made.controls[TENANT].control.version == 7


def test_bounds_are_judged_by_the_test_clock_where_the_tenant_has_one() -> None:
    log = opened(clock=datetime(2013, 1, 1, tzinfo=UTC))
    log.append(batch(event("1", datetime(2013, 1, 1, tzinfo=UTC)), event("2", NOON)))
    assert reasons(judged(log)) == [("in_future", "events[1].time")]


def test_bounds_are_inclusive_to_the_microsecond() -> None:
    bounds = UsageBounds(oldest_days=1, ahead_minutes=1)
    oldest, newest = NOON - timedelta(days=1), NOON + timedelta(minutes=1)
    tick = timedelta(microseconds=1)
    log = opened(bounds=bounds)
    log.append(batch(event("1", oldest), event("2", oldest - tick), event("3", newest), event("4", newest + tick)))
    assert reasons(judged(log)) == [("too_late", "events[1].time"), ("in_future", "events[3].time")]


def test_a_repetition_in_one_record_is_a_duplicate_and_with_other_content_a_conflict() -> None:
    log = opened()
    log.append(batch(event("1"), event("1"), event("1", bytes="2")))
    made = judged(log)
    assert made.settle({}) == 1
    (fates,) = made.fates.values()
    assert (fates.counted, fates.duplicate, fates.conflict) == (1, 1, 1)
    assert [(each.usage.reason, each.usage.index) for each in made.refusals] == [("id_conflict", 2)]


def test_repetitions_are_compared_with_what_was_counted_first() -> None:
    log = opened()
    log.append(batch(event("1", bytes="2"), event("1")))
    made = judged(log)
    first = content_of({"type": "api", "customer": "c1", "time": 1, "properties": {}})
    assert first != made.claims[0].content
    same_as_second = made.repeats[0][1].content
    assert made.settle({(1, 0): same_as_second}) == 0
    (fates,) = made.fates.values()
    assert (fates.counted, fates.duplicate, fates.conflict) == (0, 1, 1)


def test_identity_tells_source_and_id_apart() -> None:
    assert len({identity_of("a", "bc"), identity_of("ab", "c"), identity_of("", "abc"), identity_of("1", ":a")}) == 4


texts = st.text(st.characters(codec="utf-8"), max_size=300)
names = st.one_of(st.sampled_from(["c1", "c2"]), st.text(max_size=3), st.just("x" * 129))
numbers = st.one_of(
    st.sampled_from(["0", "1", "-1", "1.5", "1e3", "", "00", "9" * 26, "9" * 27, "0." + "1" * 13]), texts
)
anything = st.builds(
    UsageEvent,
    id=names,
    source=names,
    type=st.sampled_from(["api", "api", "api", "other", ""]),
    customer=names,
    time=st.one_of(
        st.datetimes(timezones=st.just(UTC)), st.integers(-1000, 1000).map(lambda number: NOON + hours(number))
    ),
    properties=st.dictionaries(st.sampled_from(["bytes", "region", "user", "kind"]), numbers),
)
orderly = st.builds(
    lambda at, properties: event("1", at, **properties),
    st.integers(-1000, 20).map(lambda number: NOON + hours(number)),
    st.fixed_dictionaries(
        {"bytes": st.sampled_from(["0", "1", "-1", "-2.5"]), "kind": st.sampled_from("012")},
        optional={"user": st.sampled_from(["1", "-3"]), "region": st.sampled_from(["eu", ""])},
    ),
)
TARIFF = TimeOfDay(dimension="user", bands=(Band(begins=6, name="day"), Band(begins=22, name="night")))
ANY = dict.fromkeys(Aggregation) | {Aggregation.PERCENTILE: Decimal(95)}
meters = st.lists(
    st.builds(
        Meter,
        key=st.sampled_from("abc"),
        event_type=st.just("api"),
        aggregation=st.sampled_from(Aggregation),
        value=st.just("bytes"),
        dimensions=st.sampled_from([(), ("region",), ("region", "user")]),
        filters=st.lists(
            st.builds(Filter, property=st.sampled_from(["kind", "bytes"]), values=st.sampled_from([("0",), ("1", "")])),
            max_size=2,
        ).map(tuple),
        carries_over=st.booleans(),
        removal=st.sampled_from([None, Filter(property="kind", values=("0", "1"))]),
        zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]),
        time_of_day=st.sampled_from([None, TARIFF]),
        condition=st.sampled_from(["", "", 'properties.kind != "1"', "has(properties.user)", "1 +"]),
        expression=st.sampled_from(["", "", "number(properties.bytes) + number(properties.user)", "properties.kind"]),
    ).map(lambda meter: possible(meter)),
    max_size=3,
    unique_by=lambda meter: meter.key,
)


def possible(meter: Meter) -> Meter:
    """The meter without what does not go with its aggregation."""
    made = replace(
        meter,
        value=None if meter.aggregation is Aggregation.COUNT or meter.expression else meter.value,
        expression="" if meter.aggregation is Aggregation.COUNT else meter.expression,
        percent=ANY[meter.aggregation],
        carries_over=meter.carries_over and meter.aggregation in CARRYING,
        removal=meter.removal if meter.aggregation is Aggregation.UNIQUE else None,
        time_of_day=meter.time_of_day if "user" in meter.dimensions else None,
    )
    check_meter(made, "meter")
    return made


LEVEL = Meter(key="a", event_type="api", aggregation=Aggregation.SUM, value="bytes", carries_over=True)


@settings(max_examples=300)
@example(event("1", NOON, bytes="-2.5"), [LEVEL])
@given(st.one_of(orderly, anything), meters)
def test_the_quick_way_gives_what_the_rules_give(each: UsageEvent, measured: list[Meter]) -> None:
    made = control(meters=measured)
    raw = {
        "id": each.id,
        "source": each.source,
        "type": each.type,
        "customer": each.customer,
        "time": (each.time - EPOCH) // timedelta(microseconds=1),
        "properties": dict(each.properties),
    }

    def by_the_rules() -> Any:
        check_event(each, made.bounds, NOON)
        found = readings(each, made.meters, formula)
        return [(r.meter, r.dimensions, r.number, r.text) for r in found if r.number is not None or r.text is not None]

    def quickly() -> Any:
        found = Measuring(made, 0, b"").contributions(raw, (NOON - EPOCH) // timedelta(microseconds=1))
        return [
            (c.series.meter, c.series.values, None if c.number is None else Decimal(c.number), c.text) for c in found
        ]

    def outcome(way: Any) -> Any:
        try:
            return way()
        except Rejected as refused:
            return (refused.code, refused.field)

    assert outcome(quickly) == outcome(by_the_rules)


@settings(max_examples=50)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 20), min_size=1, max_size=60))
def test_neither_order_nor_repetition_changes_what_is_counted(random: Any, ids: list[int]) -> None:
    def counted(order: list[int], size: int) -> Any:
        log = opened()
        for at in range(0, len(order), size):
            log.append(batch(*(event(str(number), bytes=str(number)) for number in order[at : at + size])))
        made = judged(log)
        assert made.settle({}) == len(made.claims)
        (fates,) = made.fates.values()
        assert fates.received == fates.counted + fates.duplicate == len(order)
        return sorted((claim.identity, tuple(claim.contributions)) for claim in made.claims)

    shuffled = ids[:]
    random.shuffle(shuffled)
    assert counted(sorted(set(ids)), 7) == counted(shuffled, random.randint(1, 10))


def test_meters_of_the_tests_cover_every_aggregation() -> None:
    assert {each.aggregation for each in METERS} == set(Aggregation)
