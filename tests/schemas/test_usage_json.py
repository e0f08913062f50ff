"""Usage written as JSON says what the same batch in Avro says, or which field is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import UsageRecords, decode_event, decode_usage, decode_usage_records, encode_usage
from schemas.errors import DecodeError
from tests.usage.making import NOON, batch, event

EVENT: dict[str, Any] = {
    "id": "1",
    "source": "test",
    "type": "api",
    "customer": "c1",
    "time": "2026-03-10T12:00:00Z",
    "properties": {"bytes": "1"},
}


def record(*events: Any, **more: Any) -> bytes:
    return json.dumps({"tenant": "acme", "events": list(events), **more}).encode()


def test_a_batch_in_json_is_the_batch_in_avro() -> None:
    sent = batch(event("1", region="eu"), event("é", bytes="0.5"))
    written = [
        {**EVENT, "properties": {"bytes": "1", "region": "eu"}},
        {**EVENT, "id": "é", "time": "2026-03-10T13:00:00.000000+01:00", "properties": {"bytes": "0.5"}},
    ]
    assert decode_usage(record(*written)) == sent
    assert decode_usage_records(record(*written)) == decode_usage_records(encode_usage(sent))


def test_one_event_may_stand_beside_its_tenant() -> None:
    assert decode_usage(json.dumps({"tenant": "acme", **EVENT}).encode()) == batch(event("1"))


@pytest.mark.parametrize("number", ["1", "0.1", "1.50", "123456789012345678901234567890.5", "1e3", "-0.0"])
def test_numbers_count_as_they_are_written(number: str) -> None:
    value = b'{"tenant":"acme","events":[%s]}' % json.dumps(EVENT).replace('"1"}', number + "}").encode()
    made = decode_usage_records(value)
    assert isinstance(made, UsageRecords)
    assert made.events[0]["properties"] == {"bytes": number}
    assert type(made.events[0]["properties"]["bytes"]) is str


def test_a_time_may_be_in_microseconds_and_properties_may_be_left_out() -> None:
    us = int(NOON.timestamp()) * 1_000_000 + 1
    made = decode_usage(record({name: us if name == "time" else EVENT[name] for name in EVENT if name != "properties"}))
    (only,) = made.events  # type: ignore[union-attr]
    assert only.time == NOON + timedelta(microseconds=1)
    assert only.properties == {}


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (b"{", "corrupt_json", "Expecting property name"),
        (b'{"tenant":"acme"}\xff', "corrupt_json", "not UTF-8 at byte 17"),
        (b'{"tenant":"acme","events":[]} {}', "corrupt_json", "Extra data"),
        (b'{"tenant":"acme","tenant":"other","events":[]}', "corrupt_json", "the name tenant stands twice"),
        (b'{"tenant":"acme","events":[{"id":NaN}]}', "corrupt_json", "NaN is no number"),
        (b'{"a":' + b"[" * 400_000, "corrupt_json", "recursion"),
        (b'{"events":[]}', "invalid_value", "tenant: is missing"),
        (b"{}", "invalid_value", "tenant: is missing"),
        (b'{"tenant":7,"events":[]}', "invalid_value", "tenant: text is needed"),
        (b'{"tenant":"acme","events":{}}', "invalid_value", "events: {} does not belong here"),
        (record("x"), "invalid_value", "events[0]: an object"),
        (record(EVENT, source="x"), "invalid_value", "source: no such field; there are: tenant, events"),
        (record(EVENT, {**EVENT, "id": 7}), "invalid_value", "events[1].id: text is needed here; put it in quotes"),
        (record({"id": "1"}), "invalid_value", "events[0].source: is missing"),
        (record({**EVENT, "propertys": {}}), "invalid_value", "events[0].propertys: no such field"),
        (record({**EVENT, "properties": []}), "invalid_value", "events[0].properties: an object"),
        (record({**EVENT, "properties": {"a": True}}), "invalid_value", "events[0].properties.a: allowed are text and"),
        (record({**EVENT, "properties": {"a": None}}), "invalid_value", "events[0].properties.a: allowed are text and"),
        (record({**EVENT, "properties": {"a": "\ud800"}}), "invalid_value", "events[0].properties.a: not Unicode"),
        (record({**EVENT, "id": "\udfff"}), "invalid_value", "events[0].id: not Unicode text"),
        (
            record({**EVENT, "time": "2026-03-10T12:00:00"}),
            "invalid_value",
            "events[0].time: 2026-03-10T12:00:00 is no",
        ),
        (record({**EVENT, "time": "2026-03-10T12:00:00.1234567Z"}), "invalid_value", "events[0].time: "),
        (record({**EVENT, "time": "2026-02-30T12:00:00Z"}), "invalid_value", "events[0].time: "),
        (record({**EVENT, "time": 1.5}), "invalid_value", "events[0].time: a whole number"),
        (record({**EVENT, "time": 2**63}), "invalid_value", "events[0].time: a whole number"),
        (record({**EVENT, "time": None}), "invalid_value", "events[0].time: None is no time"),
        (b'{"tenant":"acme","id":"1"}', "invalid_value", "source: is missing"),
    ],
)
def test_what_is_wrong_is_said_by_field(value: bytes, reason: str, detail: str) -> None:
    with pytest.raises(DecodeError) as refused:
        decode_usage_records(value)
    assert refused.value.reason == reason
    assert detail in refused.value.detail


@given(cut=st.integers(0, 200), junk=st.binary(max_size=30))
@settings(max_examples=300)
def test_no_bytes_at_all_raise_anything_but_a_decode_error(cut: int, junk: bytes) -> None:
    value = record(EVENT)
    with suppress(DecodeError):
        decode_usage(b"{" + (value[:cut] + junk + value[cut + len(junk) :])[1:])


def test_only_usage_may_be_json() -> None:
    with pytest.raises(DecodeError) as refused:
        decode_event(record(EVENT))
    assert refused.value.reason == "bad_magic"
