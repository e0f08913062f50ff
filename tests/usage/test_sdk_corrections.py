"""The SDK takes events back and puts them right: our bytes, behind the events, in their partition, never in silence."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from billing.ids import TenantId
from billing.metering import UsageAmended, UsageBatch, UsageVoided
from billing.metering import UsageEvent as Recorded
from billing.placing import Spread as Version
from infra.kafka import KafkaConfig, Record, scan
from infra.settings import Settings
from schemas.binary import fingerprint
from schemas.codec import decode_usage, fingerprint_of
from services.usage_placing import Layout
from tallybook_sdk import AsyncUsageProducer, InvalidEvent, NotCorrected, Spread, UsageEvent, UsageProducer
from tallybook_sdk.correction import amended, voided
from tallybook_sdk.wire import AMENDED, VOIDED, Encoder, Schema
from tests.stack import Stack
from tests.usage.making import NOON

SCHEMAS = Path(__file__).parents[2] / "schemas" / "avro" / "usage"
GOOD = UsageEvent(type="api", customer="c1", time=NOON, id="1", source="s", properties={"bytes": 7})
NOBODY = "127.0.0.1:1"
SWITCH = NOON + timedelta(hours=1)
SPREAD = Spread(6, ((SWITCH, 6),))


def recorded(event: UsageEvent) -> Recorded:
    properties = {name: str(value) for name, value in event.properties.items()}
    return Recorded(
        id=event.id,
        source=event.source,
        type=event.type,
        customer=event.customer,
        time=event.time,
        properties=properties,
    )


@pytest.mark.parametrize("schema", [VOIDED, AMENDED])
def test_the_schemas_of_corrections_are_released_ones(schema: Schema) -> None:
    released = [json.loads(path.read_text()) for path in SCHEMAS.glob(f"{schema.record}.*.avsc")]
    assert schema.fingerprint in [fingerprint(each) for each in released]


def test_corrections_of_the_sdk_are_what_our_codec_reads() -> None:
    void = voided("acm\u00e9", "s", "1", "a test run", None, None)
    assert decode_usage(void.value) == UsageVoided(
        tenant=TenantId("acm\u00e9"), source="s", id="1", reason="a test run"
    )
    amendment = amended("acme", "s", GOOD, Encoder("").encode(GOOD), "wrong", None)
    told = UsageAmended(tenant=TenantId("acme"), event=recorded(GOOD), reason="wrong")
    assert decode_usage(amendment.value) == told


@pytest.mark.parametrize("id", [str(each) for each in range(12)])
def test_a_correction_goes_where_the_server_has_the_event(id: str) -> None:
    layout, versions = Layout(6), (Version(effective_from=SWITCH, partitions=6),)
    for time in (NOON, SWITCH):
        event = replace(GOOD, id=id, time=time)
        right = layout.place("acme", versions, recorded(event))
        assert voided("acme", "s", id, "why", SPREAD, time).partition == right
        assert amended("acme", "s", event, b"", "why", SPREAD).partition == right
    candidates = layout.candidates("acme", versions, "s", id)
    if len(candidates) == 1:
        assert voided("acme", "s", id, "why", SPREAD, None).partition == candidates[0]
    else:
        with pytest.raises(InvalidEvent, match="time: "):
            voided("acme", "s", id, "why", SPREAD, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"id": ""}, "id"), ({"source": "x" * 129}, "source"), ({"reason": ""}, "reason"), ({"reason": "a\nb"}, "reason")],
)
def test_a_correction_that_would_be_refused_is_not_sent(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        voided(**{"tenant": "acme", "source": "s", "id": "1", "reason": "why", "spread": None, "time": None} | changes)
    assert refused.value.field == field


def test_no_broker_is_told() -> None:
    quick = {"delivery.timeout.ms": 300, "log_level": 0}
    producer = UsageProducer(NOBODY, "acme", source="s", kafka=quick)
    with pytest.raises(NotCorrected):
        producer.void("1", reason="why")
    with pytest.raises(NotCorrected):
        producer.amend(GOOD, reason="why", timeout=timedelta(milliseconds=1))
    producer.close()


@pytest.fixture(scope="module")
def alone(stack: Stack) -> Settings:
    return stack.fresh(usage_partitions=3)


def of(settings: Settings, tenant: str) -> list[Record]:
    scanned = scan(KafkaConfig.of(settings), "usage.events", dict.fromkeys(range(3), 0))
    return [each for records in scanned for each in records if each.key == tenant.encode()]


def test_a_correction_stands_behind_the_events_that_were_sent_before(alone: Settings) -> None:
    with UsageProducer(
        alone.kafka, "t-order", source="s", batch_events=7, linger=timedelta(hours=1), topic_prefix=alone.topic_prefix
    ) as producer:
        for number in range(20):
            producer.send(replace(GOOD, id=str(number)))
        producer.void("19", reason="a test run")
        producer.amend(replace(GOOD, id="18", customer="c2"), reason="wrong customer")
        producer.send(replace(GOOD, id="20"))
    records = of(alone, "t-order")
    assert len({each.partition for each in records}) == 1
    contents = [decode_usage(each.value) for each in records]
    assert [type(each) for each in contents] == [*[UsageBatch] * 3, UsageVoided, UsageAmended, UsageBatch]
    for each in records:
        assert each.headers["schema"].decode() == fingerprint_of(each.value or b"")
        assert each.headers["tenant"] == each.key
    assert [each.headers["ce_type"] for each in records[3:5]] == [
        b"tallybook.usage.UsageVoided",
        b"tallybook.usage.UsageAmended",
    ]


def test_asyncio_corrects_too(alone: Settings) -> None:
    async def work() -> None:
        async with AsyncUsageProducer(alone.kafka, "t-aio", source="s", topic_prefix=alone.topic_prefix) as usage:
            await usage.send(GOOD)
            await usage.amend(replace(GOOD, customer="c2"), reason="wrong customer")
            await usage.void("1", reason="a test run")

    asyncio.run(work())
    assert [type(decode_usage(each.value)) for each in of(alone, "t-aio")] == [UsageBatch, UsageAmended, UsageVoided]
