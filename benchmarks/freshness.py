"""How long after its acknowledgement an event is seen in the entitlement counter that applications read from Redis.

    python -m benchmarks.freshness [--rate 5000] [--customers 50] [--probes 200] [--json]

A stack of its own. While others send `--rate` events a second, a probe sends one event, waits for the brokers'
acknowledgement, and then reads its counter every two milliseconds until the event is in it. Beside it the ceiling:
until a plain consumer has the record. Promised: p50 under 300 ms, p99 under 1 s at half load; exit code 1 if it is
slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import timedelta
from decimal import Decimal

import confluent_kafka

from benchmarks import machine
from benchmarks.live_stack import FEATURE, PROBE, TENANT, Live, call, load, percentiles, running
from infra.kafka import KafkaConfig
from infra.redis_cache import RedisCache
from projections import usage
from services.entitlements import decoded
from tallybook_sdk import UsageProducer

P50_MS, P99_MS = 300, 1000
_LOOK_S = 0.002
_PATIENCE_S = 60


def used(cache: RedisCache) -> Decimal:
    """What the probe has used, as Redis has it."""
    found = cache.entitlement(TENANT, PROBE, FEATURE)
    return sum((each.used for each in decoded(FEATURE, found.body)), Decimal(0)) if found else Decimal(-1)


def measure(live: Live, probes: int) -> list[float]:
    """Seconds from acknowledgement to visibility, one for each probe."""
    cache = RedisCache(live.settings)
    seconds = []
    with UsageProducer(live.settings.require("kafka"), TENANT, linger=timedelta(0)) as producer:
        await_used(cache, Decimal(0))
        for number in range(1, probes + 1):
            producer.send(call(PROBE))
            producer.flush()
            acknowledged = time.perf_counter()
            await_used(cache, Decimal(number))
            seconds.append(time.perf_counter() - acknowledged)
    cache.close()
    return seconds


def plain(live: Live, probes: int) -> list[float]:
    """Seconds from acknowledgement until a plain consumer has the record, one for each probe."""
    config = KafkaConfig.of(live.settings)
    consumer = confluent_kafka.Consumer(config.client() | {"group.id": "plain", "enable.auto.commit": False})
    places = range(live.settings.usage_partitions)
    topic, end = config.named(usage.TOPIC), confluent_kafka.OFFSET_END
    consumer.assign([confluent_kafka.TopicPartition(topic, each, end) for each in places])
    consumer.poll(1)
    seconds = []
    with UsageProducer(live.settings.require("kafka"), TENANT, linger=timedelta(0)) as producer:
        for _ in range(probes):
            event = call(PROBE)
            producer.send(event)
            producer.flush()
            acknowledged = time.perf_counter()
            while (message := consumer.poll(_PATIENCE_S)) is None or event.id.encode() not in (message.value() or b""):
                if time.perf_counter() - acknowledged > _PATIENCE_S:
                    raise SystemExit(f"a plain consumer did not have the record in {_PATIENCE_S} s")
            seconds.append(time.perf_counter() - acknowledged)
    consumer.close()
    return seconds


def await_used(cache: RedisCache, wanted: Decimal) -> None:
    """Until the counter stands there."""
    deadline = time.monotonic() + _PATIENCE_S
    while used(cache) < wanted:
        if time.monotonic() > deadline:
            raise SystemExit(f"the counter did not reach {wanted} in {_PATIENCE_S} s")
        time.sleep(_LOOK_S)


def main() -> int:
    """Measure and print; 1 if it is slower than promised."""
    parser = argparse.ArgumentParser(description="Acknowledged event to entitlement counter.")
    parser.add_argument("--rate", type=int, default=5_000, help="events a second that others send")
    parser.add_argument("--customers", type=int, default=50, help="whose events those are")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    with running(asked.customers) as live, load(live, asked.rate):
        found = percentiles(measure(live, asked.probes))
        ceiling = percentiles(plain(live, asked.probes))
        busy = machine.busy()
    if asked.json:
        told = {"machine": machine.description(), "load": busy, "rate": asked.rate, **found, "ceiling": ceiling}
        print(json.dumps(told))
    else:
        print(f"{machine.description()}, {busy}")
        print(f"{asked.rate:,} events/s of {asked.customers} customers, {asked.probes} probes")
        print(f"{'acknowledged event':<28}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
        for seen, row in (("in a plain consumer", ceiling), ("in the counter in Redis", found)):
            print(f"{seen:<28}" + "".join(f"{row[name]:>10,.1f}" for name in ("p50", "p99", "max")))
    return 0 if found["p50"] < P50_MS and found["p99"] < P99_MS else 1


if __name__ == "__main__":
    sys.exit(main())
