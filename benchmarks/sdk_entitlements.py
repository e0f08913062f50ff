"""How long an entitlement check takes, and how soon a change is seen: `python -m benchmarks.sdk_entitlements`.

    python -m benchmarks.sdk_entitlements [--redis URL] [--json]

A Valkey of its own, unless one is given. The checks of the SDK, in process; `benchmarks.entitlements` has those from
Redis and over HTTP. Exit code 1 if a check is slower than promised: p99 under 10 microseconds, and a change seen within
100 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns

import redis

from benchmarks import machine
from infra.local import valkey_server
from infra.local.ports import Ports
from tallybook_sdk.entitlement_sources import AS_OF_KEY
from tallybook_sdk.entitlements import EntitlementClient

CHECK_P99_US, CHANGE_P99_US = 10, 100_000
CHECKS = 200_000
CHANGES = 200
CUSTOMERS = 1000
TENANT = "benchmark"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with its distribution."""

    name: str
    count: int
    p50_us: float
    p99_us: float
    worst_us: float


def timed(name: str, run: Callable[[int], object], count: int) -> Row:
    """How long `run` takes, of `count` calls one after another; the clock's own time is in it."""
    spans = []
    for number in range(count):
        began = perf_counter_ns()
        run(number)
        spans.append(perf_counter_ns() - began)
    return row(name, spans)


def row(name: str, spans_ns: list[int]) -> Row:
    spans_ns.sort()
    count = len(spans_ns)
    p50, p99, worst = (spans_ns[min(count * part // 100, count - 1)] / 1000 for part in (50, 99, 100))
    return Row(name, count, p50, p99, worst)


def in_process(url: str) -> list[Row]:
    """The SDK's cache: a check of what it knows, and from a write to Redis until the cache says so."""
    server = redis.Redis.from_url(url)
    for number in range(CUSTOMERS):
        publish(server, f"c{number}", 0, announce=False)
    with _living(server), EntitlementClient(TENANT, redis=url) as client:
        client.check("c0", "calls")
        while not client.trusted:
            time.sleep(0.01)
        known = {f"c{number}": client.check(f"c{number}", "calls") for number in range(CUSTOMERS)}
        rows = [timed("ceiling: a dictionary", lambda n: known[f"c{n % CUSTOMERS}"], CHECKS)]
        rows.append(timed("check in process", lambda n: client.check(f"c{n % CUSTOMERS}", "calls"), CHECKS))
        rows.append(row("change seen in process", [_seen(server, client, number + 1) for number in range(CHANGES)]))
        stop = threading.Event()
        changing = threading.Thread(target=_change, args=(server, stop))
        changing.start()
        rows.append(timed("check, while 1,000/s change", lambda n: client.check(f"c{n % CUSTOMERS}", "calls"), CHECKS))
        stop.set()
        changing.join()
    server.close()
    return rows


def publish(server: redis.Redis, customer: str, used: int, *, announce: bool = True) -> None:
    """What the publisher writes, in its form."""
    body = [{"kind": "metered", "meter": "calls", "limit": "1000000", "limit_kind": "hard", "used": str(used)}]
    key = f"tb:{TENANT}:entitlement:{customer}:calls"
    now_us = time.time_ns() // 1000
    server.hset(key, mapping={"version": 1, "usage_version": used, "body": json.dumps(body), "as_of": now_us})
    if announce:
        told = json.dumps({"customer": customer, "feature": "calls", "version": f"1-{used}"})
        server.publish(f"tallybook:entitlements:{TENANT}", told)


@contextmanager
def _living(server: redis.Redis) -> Iterator[None]:
    """The publisher's sign of life."""
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.1):
            server.set(AS_OF_KEY, time.time_ns() // 1000)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _seen(server: redis.Redis, client: EntitlementClient, used: int) -> int:
    began = perf_counter_ns()
    publish(server, "c0", used)
    while client.check("c0", "calls").used != used:
        time.sleep(0)  # let the thread that listens have the interpreter
    return perf_counter_ns() - began


def _change(server: redis.Redis, stop: threading.Event) -> None:
    used = CHANGES
    while not stop.wait(0.001):
        used += 1
        publish(server, f"c{used % CUSTOMERS}", used)


@contextmanager
def _valkey() -> Iterator[str]:
    """URL of a server that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tallybook-bench-") as folder:
        program, url = valkey_server.program(Path(folder), Ports(Path(folder)))
        server = subprocess.Popen(program.command, stdout=subprocess.DEVNULL)
        try:
            while not program.ready():
                time.sleep(0.05)
            yield url
        finally:
            server.terminate()
            server.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", help="a Redis or Valkey, in which keys are written")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with contextlib.nullcontext(options.redis) if options.redis else _valkey() as url:
        _, check, change, busy = rows = in_process(url)
    kept = max(check.p99_us, busy.p99_us) < CHECK_P99_US and change.p99_us < CHANGE_P99_US
    if options.json:
        print(json.dumps({"machine": machine.description(), "rows": [asdict(each) for each in rows]}, indent=2))
        return 0 if kept else 1
    print(f"{machine.description()}; {machine.busy()}")
    print(f"{'':<28}{'count':>10}{'p50 us':>12}{'p99 us':>12}{'worst us':>12}")
    for each in rows:
        print(f"{each.name:<28}{each.count:>10,}{each.p50_us:>12,.2f}{each.p99_us:>12,.2f}{each.worst_us:>12,.2f}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
