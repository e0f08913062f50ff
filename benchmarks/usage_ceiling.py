"""The ceiling of usage: plain consumption with decoding, and COPY into a table without an index. Nothing is judged,
deduplicated, summed or proved; what a record says twice counts twice."""

from __future__ import annotations

import io
import time
import uuid

import confluent_kafka
import fastavro
import psycopg

from benchmarks.usage_load import SCHEMA
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import usage
from schemas import binary

EVENTS_A_TRANSACTION = 24_000

TABLE = """
CREATE TABLE public.ceiling (
    tenant_id      text,
    event_id       text,
    customer_id    text,
    time_us        bigint,
    number         numeric,
    region         text,
    partition      integer,
    record_offset  bigint,
    batch_index    integer
)
"""


def consume(settings: Settings, ends: dict[int, int], events: int) -> tuple[float, float]:
    """Seconds, and seconds of this process's processor time, to take `events` up to `ends`."""
    config = KafkaConfig.of(settings)
    parsed = binary.parsed(SCHEMA)  # without logical types, as the aggregator decodes
    consumer = confluent_kafka.Consumer(
        config.client()
        | {
            "group.id": f"ceiling-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
        }
    )
    topic = config.named(usage.TOPIC)
    consumer.assign([confluent_kafka.TopicPartition(topic, each, 0) for each in ends])
    taken = 0
    began = None
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(TABLE)
        connection.commit()
        while taken < events:
            with connection.cursor() as tx, tx.copy("COPY public.ceiling FROM STDIN") as copy:
                rows = 0
                while rows < EVENTS_A_TRANSACTION and taken + rows < events:
                    messages = consumer.consume(100, 0.5)
                    if began is None and messages:
                        began, processor = time.perf_counter(), time.process_time()
                    for message in messages:
                        rows += _write(copy, parsed, message)
            connection.commit()
            taken += rows
    consumer.close()
    assert began is not None
    return time.perf_counter() - began, time.process_time() - processor


def _write(copy: psycopg.Copy, parsed: object, message: confluent_kafka.Message) -> int:
    value = message.value()
    if len(message.headers() or ()) < 2:  # a control record
        return 0
    batch = fastavro.schemaless_reader(io.BytesIO(value[10:]), parsed)
    tenant, partition, offset = batch["tenant"], message.partition(), message.offset()
    copy.write(
        "".join(
            [
                f"{tenant}\t{each['id']}\t{each['customer']}\t{each['time']}\t"
                f"{each['properties']['bytes']}\t{each['properties']['region']}\t{partition}\t{offset}\t{index}\n"
                for index, each in enumerate(batch["events"])
            ]
        )
    )
    return len(batch["events"])
