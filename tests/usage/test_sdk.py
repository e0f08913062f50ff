"""The producers' client: its bytes are ours, and no event is lost in silence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.ids import TenantId
from billing.metering import UsageBatch
from billing.metering import UsageEvent as Recorded
from infra.kafka import KafkaConfig, partition_for, scan
from infra.settings import Settings
from schemas.binary import fingerprint
from schemas.codec import decode_usage, fingerprint_of
from tallybook_sdk import Delivery, InvalidEvent, NotDelivered, Unreachable, UsageEvent, UsageProducer
from tallybook_sdk.event import as_record
from tallybook_sdk.wire import BATCH, Encoder, decode_event, encode_batch
from tests.stack import Stack
from tests.usage.making import NOON
from tests.waiting import eventually

SCHEMAS = Path(__file__).parents[2] / "schemas" / "avro" / "usage"
NOBODY = "127.0.0.1:1"
_ELSEWHERE = timezone(timedelta(hours=5))


def test_the_schema_that_travels_with_the_sdk_is_a_released_one() -> None:
    shipped = json.loads(resources.files("tallybook_sdk").joinpath("usage_batch.avsc").read_text())
    assert shipped in [json.loads(path.read_text()) for path in SCHEMAS.glob("UsageBatch.*.avsc")]
    assert fingerprint(shipped) == BATCH.fingerprint


events = st.builds(
    UsageEvent,
    id=st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=9),
    type=st.sampled_from(["a", "é" * 64]),
    customer=st.just("c"),
    source=st.sampled_from(["", "s"]),
    time=st.integers(-(10**15), 10**16).map(lambda us: (NOON + timedelta(microseconds=us)).astimezone(_ELSEWHERE)),
    properties=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.one_of(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
            st.integers(),
            st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000),
        ),
    ),
)


@given(st.lists(events, min_size=1, max_size=70))
def test_a_batch_of_the_sdk_is_what_our_codec_writes(sent: list[UsageEvent]) -> None:
    encoded = [Encoder("default").encode(each) for each in sent]
    made = encode_batch("acmé", encoded)
    recorded = tuple(
        Recorded(
            id=each.id,
            source=each.source or "default",
            type=each.type,
            customer=each.customer,
            time=each.time.astimezone(UTC),
            properties={
                name: value if isinstance(value, str) else format(value, "f" if isinstance(value, Decimal) else "d")
                for name, value in each.properties.items()
            },
        )
        for each in sent
    )
    whole = UsageBatch(tenant=TenantId("acmé"), events=recorded)
    assert decode_usage(made) == whole
    assert [asdict(decode_event(each)) for each in encoded] == [asdict(each) for each in recorded]


GOOD = UsageEvent(type="api", customer="c1", time=NOON, id="1", source="s")


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (replace(GOOD, id=""), "id"),
        (replace(GOOD, id="x" * 129), "id"),
        (replace(GOOD, id="\ud800"), "id"),
        (replace(GOOD, source=""), "source"),
        (replace(GOOD, customer="a\nb"), "customer"),
        (replace(GOOD, type=1), "type"),  # type: ignore[arg-type]
        (replace(GOOD, time=datetime(2026, 1, 1)), "time"),  # noqa: DTZ001  # the naive one is the point
        (replace(GOOD, time="2026-01-01"), "time"),  # type: ignore[arg-type]
        (replace(GOOD, properties={"n": 0.1}), "properties.n"),  # type: ignore[dict-item]
        (replace(GOOD, properties={"n": True}), "properties.n"),
        (replace(GOOD, properties={"n": Decimal("NaN")}), "properties.n"),
        (replace(GOOD, properties={"n": 10**5000}), "properties.n"),
        (replace(GOOD, properties={"n": Decimal("1e999999")}), "properties.n"),
        (replace(GOOD, properties={"n": "x" * 257}), "properties.n"),
        (replace(GOOD, properties={"n": "\0"}), "properties.n"),
        (replace(GOOD, properties={"n": "\udfff"}), "properties.'n'"),
    ],
)
def test_an_event_that_would_be_refused_is_not_sent(bad: UsageEvent, field: str) -> None:
    for refuse in (as_record, lambda event, source: Encoder(source).encode(event)):
        with pytest.raises(InvalidEvent) as refused:
            refuse(bad, "")
        assert refused.value.field == field


def test_an_event_has_an_id_of_its_own_from_the_start() -> None:
    one, other = (UsageEvent(type="api", customer="c1", time=NOON) for _ in range(2))
    assert one.id != other.id
    assert one.id[14] == "7"
    assert replace(one, customer="c2").id == one.id


@pytest.mark.parametrize("kafka", [{"acks": "1"}, {"enable.idempotence": False}, {"partitioner": "consistent"}])
def test_settings_that_would_lose_or_misplace_events_are_refused(kafka: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be changed"):
        UsageProducer(NOBODY, "acme", kafka=kafka)


def test_no_broker_is_told_and_no_event_is_lost_in_silence() -> None:
    reports: list[Delivery] = []
    quick = {"delivery.timeout.ms": 500, "log_level": 0}
    producer = UsageProducer(NOBODY, "acme", source="s", kafka=quick, linger=timedelta(milliseconds=1))
    with pytest.raises(Unreachable):
        producer.check(timedelta(milliseconds=300))
    producer.send(GOOD, reports.append)
    producer.send(replace(GOOD, id="2"))
    with pytest.raises(NotDelivered) as failed:
        producer.close()
    assert [each.event.id for each in failed.value.failures] == ["2"]
    assert [(each.event.id, each.offset, each.error is None) for each in reports] == [("1", -1, False)]


def test_the_error_of_the_block_is_not_hidden_by_that_of_the_broker() -> None:
    def work() -> None:
        with UsageProducer(NOBODY, "acme", source="s", kafka={"delivery.timeout.ms": 300, "log_level": 0}) as producer:
            producer.send(GOOD)
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        work()


@pytest.fixture(scope="module")
def alone(stack: Stack) -> Settings:
    return stack.fresh(usage_partitions=3)


def recorded_in(settings: Settings) -> list[tuple[int, int, UsageBatch]]:
    found = []
    for records in scan(KafkaConfig.of(settings), "usage.events", dict.fromkeys(range(3), 0)):
        for record in records:
            content = decode_usage(record.value)
            assert isinstance(content, UsageBatch)
            assert record.key == content.tenant.encode() == record.headers["tenant"]
            assert record.headers["schema"].decode() == fingerprint_of(record.value or b"")
            found.append((record.partition, record.offset, content))
    return found


def test_events_travel_together_and_each_delivery_is_told(alone: Settings) -> None:
    reports: list[Delivery] = []
    with UsageProducer(
        alone.kafka, "t-batches", source="s", batch_events=40, topic_prefix=alone.topic_prefix
    ) as producer:
        producer.check()
        for number in range(100):
            producer.send(replace(GOOD, id=str(number)), reports.append)
    stored = [each for each in eventually(lambda: recorded_in(alone)) if each[2].tenant == "t-batches"]
    assert [len(content.events) for *_, content in stored] == [40, 40, 20]
    assert {partition for partition, *_ in stored} == {partition_for("t-batches", 3)}
    assert sorted(int(each.event.id) for each in reports) == list(range(100))
    for each in reports:
        (content,) = [content for p, offset, content in stored if (p, offset) == (each.partition, each.offset)]
        assert content.events[each.index].id == each.event.id


def test_an_event_does_not_wait_for_company_for_ever(alone: Settings) -> None:
    producer = UsageProducer(alone.kafka, "t-linger", source="s", topic_prefix=alone.topic_prefix)
    told: list[Delivery] = []
    producer.send(GOOD, told.append)
    eventually(lambda: told)
    assert told[0].error is None
    producer.close()


def test_batches_stay_below_what_the_topic_takes(alone: Settings) -> None:
    wide = {f"p{number}": "x" * 256 for number in range(100)}
    with UsageProducer(alone.kafka, "t-wide", source="s", topic_prefix=alone.topic_prefix) as producer:
        for number in range(80):
            producer.send(replace(GOOD, id=str(number), properties=wide))
    sizes = [len(content.events) for *_, content in recorded_in(alone) if content.tenant == "t-wide"]
    assert sum(sizes) == 80
    assert len(sizes) > 1
