"""Usage as JSON records, with confluent-kafka alone: python plain_json.py HOST:PORT TENANT [TOPIC]"""

import json
import sys
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Message, Producer

bootstrap, tenant, topic = [*sys.argv[1:], "usage.events"][:3]
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
    }
)
record = {
    "tenant": tenant,
    "events": [
        {
            "id": f"json-{number}",  # yours, and the same when you send it again
            "source": "plain-json",
            "type": "api",
            "customer": "c1",
            "time": datetime.now(UTC).isoformat(),
            "properties": {"bytes": 512, "region": "eu"},
        }
        for number in range(10)
    ],
}
producer.produce(topic, json.dumps(record).encode(), tenant.encode(), headers={"tenant": tenant}, on_delivery=delivered)
if producer.flush(30) or failures:
    sys.exit(f"not delivered, send again: {failures or 'no answer in time'}")
