"""How long after its acknowledgement an event is seen in the entitlement counter that applications read from Redis.

    python -m benchmarks.freshness [--rate 5000] [--customers 50] [--probes 200] [--json]

A stack of its own. While others send `--rate` events a second, a probe sends one event, waits for the brokers'
acknowledgement, and then reads its counter every two milliseconds until the event is in it. Promised: p50 under
300 ms, p99 under 1 s at half load; exit code 1 if it is slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import timedelta
from decimal import Decimal

from benchmarks import machine
from benchmarks.live_stack import FEATURE, PROBE, TENANT, Live, call, load, percentiles, running
from infra.redis_cache import RedisCache
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
        busy = machine.busy()
    if asked.json:
        print(json.dumps({"machine": machine.description(), "load": busy, "rate": asked.rate, **found}))
    else:
        print(f"{machine.description()}, {busy}")
        print(f"{'events/s':>10}{'customers':>11}{'probes':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
        shown = "".join(f"{found[name]:>10,.0f}" for name in ("p50", "p99", "max"))
        print(f"{asked.rate:>10,}{asked.customers:>11}{asked.probes:>8}{shown}")
    return 0 if found["p50"] < P50_MS and found["p99"] < P99_MS else 1


if __name__ == "__main__":
    sys.exit(main())
