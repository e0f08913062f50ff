"""How long an entitlement check takes, from Redis and over HTTP, while usage comes in.

    python -m benchmarks.entitlements [--events 10000] [--rate 500] [--seconds 20] [--customers 50] [--json]

A stack of its own. Promised: from Redis p99 under 1 ms; over HTTP p99 under 5 ms at 500 requests a second while
10,000 events a second are ingested. A bare read of the same values stands beside it as the ceiling. Exit code 1 if a
check is slower than promised, or if fewer requests were answered than asked for.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from benchmarks import machine
from benchmarks.live_stack import FEATURE, TENANT, Live, load, percentiles, running
from infra import postgres
from infra.redis_cache import RedisCache
from services.entitlements import CACHE, Entitlements

REDIS_P99_MS, HTTP_P99_MS = 1.0, 5.0
CHECKS = 5_000
REDIS, HTTP = "check with Redis", "check over HTTP"
CONNECTIONS = 8
REACHED = 0.95


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


def over_http(live: Live, rate: int, seconds: float) -> list[float]:
    """Seconds of each request, from its sending; paced by the clock over eight connections."""
    place = urlsplit(json.loads(live.stage.command("status", "--json", quiet=True, codes=(0, 1)))["addresses"]["api"])
    found: list[float] = []
    began = time.perf_counter() + 0.5

    def client(first: int) -> None:
        connection = http.client.HTTPConnection(str(place.hostname), place.port or 80, timeout=10)
        headers = {"Authorization": f"Bearer {live.key}"}
        for number in range(first, int(rate * seconds), CONNECTIONS):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            sent = time.perf_counter()
            if sent > began + seconds:
                return
            customer = live.customers[number % len(live.customers)]
            connection.request("GET", f"/v1/customers/{customer}/entitlements/{FEATURE}", headers=headers)
            body = connection.getresponse().read()
            found.append(time.perf_counter() - sent)
            if b'"allowed":true' not in body:
                raise SystemExit(body.decode())

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CONNECTIONS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return found


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
        measured[HTTP] = over_http(live, asked.rate, asked.seconds)
        busy = machine.busy()
    rows = {name: percentiles(seconds) for name, seconds in measured.items()}
    reached = len(measured[HTTP]) / asked.seconds
    if asked.json:
        head = {"machine": machine.description(), "load": busy, "requests_per_s": reached}
        print(json.dumps({**head, "sources": sources, "ms": rows}))
    else:
        print(f"{machine.description()}, {busy}")
        print(f"{asked.events:,} events/s sent meanwhile; {reached:,.0f} of {asked.rate} requests/s over HTTP")
        print("answered from " + ", ".join(f"{name} {count:,}" for name, count in sources.items()))
        print(f"{'check':<28}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
        for name, row in rows.items():
            print(f"{name:<28}" + "".join(f"{row[each]:>10.3f}" for each in ("p50", "p99", "max")))
    is_kept = rows[REDIS]["p99"] < REDIS_P99_MS and rows[HTTP]["p99"] < HTTP_P99_MS
    return 0 if is_kept and reached >= asked.rate * REACHED else 1


if __name__ == "__main__":
    sys.exit(main())
