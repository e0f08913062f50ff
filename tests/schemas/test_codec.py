"""Bytes and messages: everything written can be read for ever, everything unreadable says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.envelope import CommandEnvelope, CommandMeta, EventEnvelope, EventMeta
from billing.metering import UsageBatch, UsageControl, UsageEvent
from billing.tenant import AdvanceClock, ClockAdvanced, UsageBounds
from schemas import codec
from schemas.binary import fingerprint
from schemas.errors import DecodeError, EncodeError
from schemas.released import Released, bundled, newest
from schemas.streams import Stream, declared
from tests.schemas.messages import message

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
META = EventMeta(
    event_id="acme:1",
    tenant="acme",  # type: ignore[arg-type]
    sequence=1,
    type="ClockAdvanced",
    aggregate_id="tenant:acme",
    aggregate_version=1,
    command_id="c",
    idempotency_key="api:k",
    payload_hash=bytes(32),
    correlation_id="r",
    actor="key",
    occurred_at=NOON,
    recorded_at=NOON,
    previous_hash=bytes(32),
)
ASKED = CommandMeta(
    command_id="c",
    tenant="acme",  # type: ignore[arg-type]
    idempotency_key="api:k",
    actor="key",
    correlation_id="r",
    sent_at=NOON,
)
EVENT = EventEnvelope(META, ClockAdvanced(to=NOON))
BATCH = UsageBatch(
    tenant="acme",  # type: ignore[arg-type]
    events=(
        UsageEvent(id="e1", source="s", type="t", customer="c", time=NOON, properties={"origin": "EWR"}),
        UsageEvent(id="e2", source="s", type="t", customer="c", time=NOON, properties={}),
    ),
)
READERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bytes]]] = {
    "commands": (codec.decode_command, codec.encode_command),
    "events": (codec.decode_event, codec.encode_event),
    "results": (codec.decode_result, codec.encode_result),
    "usage": (codec.decode_usage, codec.encode_usage),
    "rejected": (codec.decode_rejected, codec.encode_rejected),
}


def golden(released: Released) -> bytes:
    return bytes.fromhex((GOLDEN / f"{released.record}.{released.version}.hex").read_text())


@pytest.mark.parametrize("released", bundled(), ids=lambda each: f"{each.record}.{each.version}")
def test_golden_bytes_of_every_released_version_are_read(released: Released) -> None:
    value = golden(released)
    assert codec.fingerprint_of(value) == fingerprint(released.schema).hex()
    decode, encode = READERS[released.stream]
    read = decode(value)
    if newest(bundled())[released.full_name] is released:
        assert encode(read) == value


@pytest.mark.parametrize(("stream", "cls"), [pytest.param(*each, id=each[1].__name__) for each in declared()])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_message_comes_back_as_it_was_written(stream: Stream, cls: type, seed: int) -> None:
    body = message(cls, seed)
    decode, encode = READERS[stream.name]
    if stream.meta is CommandMeta:
        body = CommandEnvelope(message(CommandMeta, seed), body)
    elif stream.meta is EventMeta:
        body = EventEnvelope(message(EventMeta, seed), body)
    value = encode(body)
    assert decode(value) == body
    assert encode(decode(value)) == value


def test_the_hash_chain_covers_the_body_without_framing() -> None:
    assert codec.body_of(codec.encode_event(EVENT)) == codec.event_body(EVENT)


def test_a_batch_is_also_read_without_dataclasses() -> None:
    records = codec.decode_usage_records(codec.encode_usage(BATCH))
    assert isinstance(records, codec.UsageRecords)
    assert records.tenant == "acme"
    assert records.events[0] == {
        "id": "e1",
        "source": "s",
        "type": "t",
        "customer": "c",
        "time": 1_767_355_200_000_000,
        "properties": {"origin": "EWR"},
    }


def test_a_meter_set_is_read_in_full_from_the_fast_path_too() -> None:
    control = UsageControl(tenant="acme", version=3, meters=(), bounds=UsageBounds())  # type: ignore[arg-type]
    assert codec.decode_usage_records(codec.encode_usage(control)) == control


HEAD = codec.encode_event(EVENT)[:10]
BODY = codec.event_body(EVENT)
LONG_RUN = b"\x80" * 10  # more continuation than 64 bits need


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "null_value", "without a value"),
        (b"", "bad_framing", "0 bytes"),
        (b"\xc3\x01", "bad_framing", "2 bytes"),
        (b"\x01\x02", "bad_framing", "2 bytes"),
        (HEAD[:9], "bad_framing", "9 bytes"),
        (b"\x00\x00\x00\x01", "bad_framing", "4 bytes"),
        (b"\x01" + HEAD[1:] + BODY, "bad_magic", "begins with 01 01"),
        (b'{"type": "ClockAdvanced"}', "bad_magic", "begins with 7b 22"),
        (b"\xc3\x02" + HEAD[2:] + BODY, "bad_magic", "begins with c3 02"),
        (b"\x00\x00\x00\x00\x07" + BODY, "unknown_schema", "id 7, but no registry"),
        (b"\xc3\x01" + bytes(8) + BODY, "unknown_schema", "fingerprint 0000000000000000"),
        (codec.encode_command(CommandEnvelope(ASKED, AdvanceClock(to=NOON))), "unknown_schema", "AdvanceClock.1.avsc"),
        (HEAD, "truncated", "meta.event_id: 1 bytes announced, 0 left"),
        (HEAD + BODY[:-1], "truncated", "to: 1 bytes announced, 0 left"),
        (HEAD + BODY[:3], "truncated", "meta.event_id: 6 bytes announced, 2 left"),
        (HEAD + BODY + b"\0", "trailing_bytes", "1 bytes after the end"),
        (HEAD + BODY + BODY, "trailing_bytes", f"{len(BODY)} bytes after the end"),
        (HEAD + b"\x0b" + BODY[1:], "corrupt_avro", "meta.event_id: a length of -6"),
        (HEAD + b"\x80\x80\x80\x80\x80\x80\x80\x10" + BODY[1:], "corrupt_avro", "a length of 4503599627370496"),
        (HEAD + LONG_RUN + b"\x00" + BODY[1:], "corrupt_avro", "meta.event_id: a number of more than 10 bytes"),
        (HEAD + b"\x8c" + LONG_RUN[:9] + b"\x00" + BODY[1:], "corrupt_avro", "a number of more than 10 bytes"),
        (HEAD + b"\x8c" + LONG_RUN[:8] + b"\x02" + BODY[1:], "corrupt_avro", "a number of more than 64 bits"),
        (HEAD + BODY.replace(b"acme:1", b"acme:\xff"), "corrupt_avro", "meta.event_id: not UTF-8 at byte 5"),
        (
            HEAD + BODY.replace(b"\x02r\x00", b"\x02r\x08"),
            "corrupt_avro",
            "meta.causation_id: branch 4 of a union of 2",
        ),
    ],
)
def test_bytes_that_cannot_be_read_say_why(value: bytes | None, reason: str, detail: str) -> None:
    with pytest.raises(DecodeError) as refused:
        codec.decode_event(value)
    assert refused.value.reason == reason
    assert detail in refused.value.detail


def test_a_value_that_the_message_cannot_hold_is_named_by_path() -> None:
    late = codec.encode_event(EVENT)[:-8] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    with pytest.raises(DecodeError) as refused:
        codec.decode_event(late)
    assert (refused.value.reason, refused.value.detail[:4]) == ("invalid_value", "to: ")


@given(cut=st.integers(0, 200), junk=st.binary(max_size=30))
@settings(max_examples=300)
def test_no_bytes_at_all_raise_anything_but_a_decode_error(cut: int, junk: bytes) -> None:
    value = codec.encode_usage(BATCH)
    with suppress(DecodeError):
        codec.decode_usage(value[:cut] + junk + value[cut + len(junk) :])


@pytest.mark.parametrize(
    ("envelope", "path", "reason"),
    [
        (EventEnvelope(META, AdvanceClock(to=NOON)), "", "AdvanceClock is not a message of this stream"),
        (EventEnvelope(META, {"to": NOON}), "", "dict is not a message of this stream"),
        (EventEnvelope(META, ClockAdvanced(to="now")), "to", "str where a datetime belongs"),  # type: ignore[arg-type]
        (EventEnvelope(replace(META, sequence=True), EVENT.event), "meta.sequence", "bool where an integer belongs"),
        (EventEnvelope(ASKED, EVENT.event), "meta", "CommandMeta where EventMeta belongs"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_never_reaches_the_log(envelope: EventEnvelope, path: str, reason: str) -> None:
    with pytest.raises(EncodeError) as refused:
        codec.encode_event(envelope)
    assert (refused.value.path, refused.value.reason) == (path, reason)


class MemoryRegistry:
    """A registry that knows the schemas it was given."""

    def __init__(self) -> None:
        self.schemas: list[Mapping[str, Any]] = []

    def id_of(self, full_name: str, schema: Mapping[str, Any]) -> int:
        self.schemas.append(schema)
        return len(self.schemas) + 99

    def schema_of(self, schema_id: int) -> Mapping[str, Any] | None:
        return self.schemas[schema_id - 100] if schema_id - 100 in range(len(self.schemas)) else None


def test_with_a_registry_messages_carry_its_id_and_old_framing_is_still_read() -> None:
    registered = codec.Codec(registry=MemoryRegistry())
    value = registered.encode_event(EVENT)
    assert value[:5] == b"\x00\x00\x00\x00\x64"
    assert registered.decode_event(value) == EVENT
    assert registered.decode_event(codec.encode_event(EVENT)) == EVENT
    assert registered.fingerprint_of(value) == codec.fingerprint_of(codec.encode_event(EVENT))
    assert registered.event_body(EVENT) == codec.event_body(EVENT)
    with pytest.raises(DecodeError, match="id 7 is not in the registry"):
        registered.decode_event(b"\x00\x00\x00\x00\x07" + BODY)
