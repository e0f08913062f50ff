"""Usage as Avro, with confluent-kafka and fastavro: python plain_avro.py SCHEMA HOST:PORT TENANT [TOPIC]

SCHEMA is the file `UsageBatch.1.avsc` (in `schemas/avro/usage/`, and in the SDK's wheel as `usage_batch.avsc`).
"""

import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer
from fastavro import parse_schema, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

schema_file, bootstrap, tenant, topic = [*sys.argv[1:], "usage.events"][:4]
schema = json.loads(Path(schema_file).read_text())
failures = []


def delivered(error: KafkaError | None, _: Message) -> None:
    if error is not None:
        failures.append(error.str())


producer = Producer(
    {
        "bootstrap.servers": bootstrap,
        "partitioner": "murmur2_random",  # as Java's; the default would put the record where nobody looks for it
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "lz4",
    }
)
batch = {
    "tenant": tenant,
    "events": [
        {
            "id": f"avro-{number}",  # yours, and the same when you send it again
            "source": "plain-avro",
            "type": "api",
            "customer": "c1",
            "time": datetime.now(UTC),
            "properties": {"bytes": "512", "region": "eu"},  # numbers as decimal text
        }
        for number in range(10)
    ],
}
mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
value = io.BytesIO()
value.write(b"\xc3\x01" + mark)  # single-object encoding
schemaless_writer(value, parse_schema(schema), batch)
headers = {"tenant": tenant, "schema": mark.hex(), "ce_type": "tallybook.usage.UsageBatch"}
producer.produce(topic, value.getvalue(), tenant.encode(), headers=headers, on_delivery=delivered)
if producer.flush(30) or failures:
    sys.exit(f"not delivered, send again: {failures or 'no answer in time'}")
