"""How long an entitlement check takes, from Redis and over HTTP, while usage comes in.

    python -m benchmarks.entitlements [--events 10000] [--rate 500] [--seconds 20] [--customers 50] [--json]

A stack of its own. Promised: from Redis p99 under 1 ms; over HTTP p99 under 5 ms at 500 requests a second while
10,000 events a second are ingested. Ceilings stand beside them: a bare read of the same values, and an endpoint that
answers nothing, asked by the same client in the same way. Over HTTP a request is timed from the moment at which it was
due, whether or not those before it were answered. Exit code 1 if a check is slower than promised.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from benchmarks import machine, open_loop
from benchmarks.live_stack import FEATURE, TENANT, Live, load, percentiles, running
from infra import postgres
from infra.redis_cache import RedisCache
from services.entitlements import CACHE, Entitlements

REDIS_P99_MS, HTTP_P99_MS = 1.0, 5.0
CHECKS = 30_000
REDIS, HTTP, EMPTY = "check with Redis", "check over HTTP", "empty endpoint over HTTP"


def timed(call: Callable[[int], object], times: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for number in range(times):
        began = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - began)
    return seconds


def from_redis(live: Live, sources: Counter[str]) -> dict[str, list[float]]:
    """A bare read, and a check with all that it decides; `sources` counts where the answers came from."""
    cache = RedisCache(live.settings)
    pool = postgres.api_pool(live.settings)
    checks = Entitlements(cache, pool)
    names = live.customers

    def check(number: int) -> None:
        sources[checks.access(TENANT, names[number % len(names)], FEATURE).source] += 1

    deadline = time.monotonic() + 60
    while any(checks.access(TENANT, each, FEATURE).source != CACHE for each in names):
        if time.monotonic() > deadline:
            raise SystemExit("Redis was not told of everybody in a minute")
        time.sleep(0.2)
    read = timed(lambda number: cache.entitlement(TENANT, names[number % len(names)], FEATURE), CHECKS)
    found = {"bare read from Redis": read, REDIS: timed(check, CHECKS)}
    pool.close()
    cache.close()
    return found


def over_http(live: Live, rate: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each request from the moment at which it was due: to an endpoint that does nothing, and of a check.

    They take turns of two seconds, so that what else the machine does meets both.
    """
    place = urlsplit(json.loads(live.stage.command("status", "--json", quiet=True, codes=(0, 1)))["addresses"]["api"])
    paths = [f"/v1/customers/{each}/entitlements/{FEATURE}" for each in live.customers]
    requests = [open_loop.request(each, Authorization=f"Bearer {live.key}") for each in paths]
    checks = open_loop.Target(place.port or 80, requests, b'"allowed":true')
    with open_loop.empty_endpoint() as empty:
        open_loop.ask([empty, checks], rate // 5, 1, 1)  # both warm
        nothing, found = open_loop.ask([empty, checks], rate, seconds)
    return nothing, found


def main() -> int:
    """Measure and print; 1 if it is slower than promised."""
    parser = argparse.ArgumentParser(description="Entitlement checks from Redis and over HTTP.")
    parser.add_argument("--events", type=int, default=10_000, help="events a second that come in meanwhile")
    parser.add_argument("--rate", type=int, default=500, help="requests a second over HTTP")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--customers", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    with running(asked.customers) as live, load(live, asked.events):
        sources: Counter[str] = Counter()
        measured = from_redis(live, sources)
        measured[EMPTY], measured[HTTP] = over_http(live, asked.rate, asked.seconds)
        busy = machine.busy()
    rows = {name: percentiles(seconds) for name, seconds in measured.items()}
    if asked.json:
        head = {"machine": machine.description(), "load": busy, "requests_per_s": asked.rate}
        print(json.dumps({**head, "sources": sources, "ms": rows}))
    else:
        print(f"{machine.description()}, {busy}")
        print(f"{asked.events:,} events/s sent meanwhile; {asked.rate:,} requests/s over HTTP")
        print("answered from " + ", ".join(f"{name} {count:,}" for name, count in sources.items()))
        print(f"{'check':<28}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
        for name, row in rows.items():
            print(f"{name:<28}" + "".join(f"{row[each]:>10.3f}" for each in ("p50", "p99", "max")))
    return 0 if rows[REDIS]["p99"] < REDIS_P99_MS and rows[HTTP]["p99"] < HTTP_P99_MS else 1


if __name__ == "__main__":
    sys.exit(main())
