"""How quickly usage is read as a table, at any number of events: `python -m benchmarks.usage_queries [--events N]`.

Fills a database of its own with the values of N events, the windows and the sums that follow from them, as a worker
would have left them, then asks each kind of question again and again with other customers and days. With `--beside`
so many events a second are applied meanwhile, without Kafka. TALLYBOOK_POSTGRES names the owner of a server; without
it an embedded one is started in a temporary folder. `--keep` leaves the database there and prints its URL, and
`--database` asks one that was kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import uuid_utils

from benchmarks.usage_load import encode_batch
from billing.ids import TenantId
from billing.metering import Aggregation, Meter, UsageControl
from billing.period import Period
from billing.tenant import UsageBounds
from infra import postgres
from infra.faust_app import Batch
from infra.kafka import Record
from infra.migrate import migrate
from infra.postgres import Cursor
from infra.settings import STATE_FILE, Settings
from projections import generation, usage, usage_query
from projections.usage_query import Question
from schemas.codec import encode_usage
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from services.usage_rolling import LATE, roll

TENANT = "acme"
CUSTOMERS = 1_000
NAMES = sorted(f"c{number}" for number in range(CUSTOMERS))
PAGE = 100
"""Customers of a page."""
REGIONS = ("eu", "us", "ap", "sa")
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 30
CHUNK = 500_000
CALLS = Meter(key="calls", event_type="api", dimensions=("region",))
BYTES = Meter(key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",))
USERS = Meter(key="users", event_type="api", aggregation=Aggregation.UNIQUE, value="user", dimensions=("region",))
LAST = Meter(key="last", event_type="api", aggregation=Aggregation.LATEST, value="bytes", dimensions=("region",))
SPREAD = Meter(
    key="spread",
    event_type="api",
    aggregation=Aggregation.PERCENTILE,
    value="bytes",
    percent=Decimal(95),
    dimensions=("region",),
)
METERS = (CALLS, BYTES, USERS, LAST, SPREAD)
SHARES = (10, 6, 2, 1, 1)
"""Of twenty events, how many each meter measures."""
NOW = START + timedelta(days=DAYS)
MONTH = Period(START, NOW + timedelta(hours=1))

Read = Callable[[Cursor], object]
Ask = Callable[[random.Random], Read]


def whole(question: Question) -> Read:
    """All of the answer; of customers told apart, page after page."""
    return lambda tx: usage_query.answers(tx, TENANT, question)


def page(question: Question, after: str) -> Read:
    """`PAGE` customers of the answer."""
    return lambda tx: usage_query.page(tx, TENANT, question, after=after, limit=PAGE)


def questions() -> dict[str, Ask]:
    """Each kind of question, with what changes from one to the next."""

    def one(meter: Meter, period: Period | Callable[[random.Random], Period], **more: Any) -> Ask:
        def asked(chance: random.Random) -> Read:
            chosen = period if isinstance(period, Period) else period(chance)
            return whole(Question(meter=meter, period=chosen, customer=f"c{chance.randrange(CUSTOMERS)}", **more))

        return asked

    def everybody(meter: Meter, period: Period | Callable[[random.Random], Period], **more: Any) -> Ask:
        return lambda chance: whole(
            Question(meter=meter, period=period if isinstance(period, Period) else period(chance), **more)
        )

    def some(period: Callable[[random.Random], Period]) -> Ask:
        return lambda chance: page(
            Question(meter=BYTES, period=period(chance), by_customer=True), chance.choice(NAMES[:-PAGE])
        )

    def day(chance: random.Random) -> Period:
        start = START + timedelta(days=chance.randrange(DAYS))
        return Period(start, start + timedelta(days=1))

    def odd(chance: random.Random) -> Period:
        start = START + timedelta(minutes=chance.randrange(DAYS * 1440 // 2))
        return Period(start, start + timedelta(days=7, minutes=17))

    def ceiling(chance: random.Random) -> Read:
        asked = (TENANT, 1 + chance.randrange(len(METERS) * len(REGIONS) * CUSTOMERS))
        statement = "SELECT customer_id FROM usage_series WHERE tenant_id = %s AND series = %s"
        return lambda tx: tx.execute(statement, asked).fetchone()

    by_day: dict[str, Any] = {"window": "day"}
    return {
        "the ceiling: a series by its key": ceiling,
        "a customer's month, one figure": one(BYTES, MONTH),
        "a customer's month by day and region": one(BYTES, MONTH, **by_day, by=("region",)),
        "a customer's month by day, Europe/Zurich": one(BYTES, MONTH, **by_day, zone="Europe/Zurich"),
        "a customer's month by day, Asia/Kolkata": one(CALLS, MONTH, **by_day, zone="Asia/Kolkata"),
        "a customer's month by day, Asia/Kathmandu": one(BYTES, MONTH, **by_day, zone="Asia/Kathmandu"),
        "a customer's week by hour, odd edges": one(CALLS, odd, window="hour"),
        "a customer's day by minute": one(CALLS, day, window="minute"),
        "a customer's month of unique users": one(USERS, MONTH),
        "a customer's latest by day": one(LAST, MONTH, **by_day),
        "a customer's 95th percentile of a month": one(SPREAD, MONTH),
        "all customers' month, one figure": everybody(BYTES, MONTH),
        "all customers' month by day": everybody(BYTES, MONTH, **by_day),
        "all customers' month by day and region": everybody(BYTES, MONTH, **by_day, by=("region",)),
        "all customers' month by day, Asia/Kathmandu": everybody(BYTES, MONTH, **by_day, zone="Asia/Kathmandu"),
        "all customers' week by hour, odd edges": everybody(CALLS, odd, window="hour"),
        "all customers' day, each, all their pages": everybody(BYTES, day, by_customer=True),
        "all customers' month, each, all their pages": everybody(BYTES, MONTH, by_customer=True),
        "100 customers' day, each: a page": some(day),
        "100 customers' month, each: a page": some(lambda _: MONTH),
    }


def fill(settings: Settings, events: int) -> float:
    """Values of `events` events, one each, their windows and sums; seconds that it took.

    Each event is one of a random customer and region; times grow, as they do in a log.
    """
    began = time.perf_counter()
    with (
        postgres.connect(postgres.owner_url(settings), autocommit=True) as owner,
        postgres.connect(postgres.worker_url(settings)) as connection,
        connection.cursor() as tx,
    ):
        schema = generation.schema(usage.SET, generation.enter(tx, usage.SET))
        owner.execute(f"DROP INDEX {schema}.usage_value_by_time")  # made at the end, that is quicker
        for month in ("2026-01-01", "2026-02-01"):
            tx.execute("SELECT usage_month(%s::date)", (month,))
        tx.execute(_SERIES, {"customers": CUSTOMERS, "meters": [each.key for each in METERS], "regions": list(REGIONS)})
        generation.advance(tx, usage.SET, 1, usage.TOPIC, 0, 0, events // 500 + 2)
        connection.commit()
        shares = [place for place, share in enumerate(SHARES) for _ in range(share)]
        for first in range(0, events, CHUNK):
            generation.enter(tx, usage.SET)
            tx.execute("SET LOCAL synchronous_commit = off")
            given = {"total": events, "first": first, "last": min(first + CHUNK, events) - 1, "shares": shares}
            tx.execute(_VALUES, given)
            connection.commit()
        owner.execute("SET maintenance_work_mem = '1GB'")
        owner.execute(f"CREATE INDEX usage_value_by_time ON {schema}.usage_value (series, event_time)")
    with postgres.worker_pool(settings, size=1) as pool:
        roll(pool, threading.Event(), NOW + LATE)
    with postgres.connect(postgres.owner_url(settings), autocommit=True) as owner:
        for table in ("usage_series", "usage_value", "usage_window", "usage_day", "usage_total"):
            owner.execute(f"VACUUM (ANALYZE) {schema}.{table}")
    return time.perf_counter() - began


_SERIES = """
INSERT INTO usage_series (series, tenant_id, customer_id, meter, dimension_names, dimension_values)
       OVERRIDING SYSTEM VALUE
SELECT m * 4 * %(customers)s + c * 4 + r + 1, 'acme', 'c' || c, (%(meters)s::text[])[m + 1], '{region}',
       ARRAY[(%(regions)s::text[])[r + 1]]
  FROM generate_series(0, 4) AS m, generate_series(0, %(customers)s - 1) AS c, generate_series(0, 3) AS r
"""

# The windows with the values: nothing is read again. An hour may begin in one chunk and end in the next.
_VALUES = f"""
  WITH put AS (
INSERT INTO usage_value
       (tenant_id, series, event_time, number, text_value, partition, record_offset, batch_index)
SELECT 'acme', m * {4 * CUSTOMERS} + c * 4 + r + 1,
       timestamptz '{START}' + i * (interval '{DAYS} days' / %(total)s),
       CASE WHEN m = 0 THEN 1 WHEN m <> 2 THEN n END, CASE WHEN m = 2 THEN 'u' || n %% 300 END,
       0, i / 500 + 1, (i %% 500)::integer
  FROM (SELECT i, (%(shares)s::integer[])[1 + floor(random() * 20)::integer] AS m,
               floor(random() * {CUSTOMERS})::integer AS c, floor(random() * 4)::integer AS r,
               floor(random() * 10000)::integer AS n
          FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i OFFSET 0) AS made
RETURNING *)
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT tenant_id, series, date_bin('1 hour', event_time, timestamptz 'epoch') AS hour, partition,
       count(*), sum(number), min(number), max(number), min(record_offset), max(record_offset)
  FROM put
 GROUP BY tenant_id, series, hour, partition
    ON CONFLICT (tenant_id, series, hour, partition) DO UPDATE
   SET events = usage_window.events + EXCLUDED.events,
       total = usage_window.total + EXCLUDED.total,
       lowest = least(usage_window.lowest, EXCLUDED.lowest),
       highest = greatest(usage_window.highest, EXCLUDED.highest),
       last_offset = EXCLUDED.last_offset
"""


def apply_beside(settings: Settings, rate: int, stop: Event) -> None:
    """Apply `rate` events a second to partition 1, as a worker does, each second's at once; until `stop` is set."""
    chance = random.Random(3)
    control = UsageControl(tenant=TenantId(TENANT), version=1, meters=METERS, bounds=UsageBounds(oldest_days=400))
    with postgres.worker_pool(settings, size=1) as pool:
        store = UsageStore(pool, Layout(2), None)
        with postgres.transaction(pool) as tx:
            number = generation.current(tx, usage.SET)
            at = generation.checkpoints(tx, usage.SET, number, usage.TOPIC).get(1, 0)
        values = [encode_usage(control)]
        began, seconds = time.monotonic(), 0
        while not stop.is_set():
            now = NOW + timedelta(seconds=seconds)
            while len(values) * 500 < rate:
                values.append(encode_batch(TENANT, [_event(chance, now) for _ in range(500)]))
            headers = {"tenant": TENANT.encode()}
            records = [
                Record(usage.TOPIC, 1, at + place, TENANT.encode(), value, headers, (), now)
                for place, value in enumerate(values)
            ]
            store.apply(Batch(records, at))
            at, values, seconds = at + len(records), [], seconds + 1
            stop.wait(max(0.0, began + seconds - time.monotonic()))


def _event(chance: random.Random, now: datetime) -> dict[str, object]:
    size = chance.randrange(10_000)
    return {
        "id": str(uuid_utils.uuid7()),
        "source": "bench",
        "type": "api",
        "customer": f"c{chance.randrange(CUSTOMERS)}",
        "time": int(now.timestamp() * 1_000_000) + chance.randrange(1_000_000),
        "properties": {"bytes": str(size), "region": chance.choice(REGIONS), "user": f"u{size % 300}"},
    }


@contextmanager
def beside(settings: Settings, rate: int) -> Iterator[None]:
    """Apply events meanwhile, if `rate` is not 0."""
    if not rate:
        yield
        return
    spawning = multiprocessing.get_context("spawn")
    stop = spawning.Event()
    process = spawning.Process(target=apply_beside, args=(settings, rate, stop), daemon=True)
    process.start()
    try:
        time.sleep(5)  # it starts, and works at its pace
        yield
        if not process.is_alive():
            raise SystemExit("what was to be applied beside failed")
    finally:
        stop.set()
        process.join(30)


def measure(settings: Settings, ask: Ask, seconds: float) -> list[float]:
    """Milliseconds of each answer, asked as the API asks: its role, one tenant, a transaction each."""
    chance = random.Random()
    taken = []
    with postgres.api_pool(settings, size=1) as pool:
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(taken) < 20:
            read = ask(chance)
            began = time.perf_counter()
            with postgres.tenant_transaction(pool, TENANT) as tx:
                generation.enter_all(tx)
                read(tx)
            taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken[3:])  # the first ones open the connection and read the catalogue


def percentile(taken: list[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return taken[max(0, -(-len(taken) * percent // 100) - 1)]


@contextmanager
def database(events: int, kept: str | None, keep: bool) -> Iterator[Settings]:
    """A filled database: of its own, dropped at the end unless it is to be kept; or one that was kept."""
    long: dict[str, Any] = {"statement_timeout": timedelta(hours=2), "api_statement_timeout": timedelta(minutes=2)}
    if kept is not None:
        yield Settings(postgres=kept, **long)
        return
    with server() as owner, prepared(owner, keep=keep, **long) as settings:
        print(f"filled in {fill(settings, events):.0f} s")
        yield settings


@contextmanager
def prepared(owner: str, *, keep: bool = False, **more: Any) -> Iterator[Settings]:
    """An empty database of its own on the server of `owner`."""
    name = f"bench{uuid4().hex[:8]}"
    settings = Settings(postgres=postgres.create_database(owner, name), **more)
    try:
        migrate(settings)
        with postgres.connect(settings.postgres) as connection, connection.cursor() as tx:
            generation.ensure(tx)
        yield settings
    finally:
        if keep:
            print(f"kept: {settings.postgres}")
        else:
            postgres.drop_database(owner, name)


@contextmanager
def server() -> Iterator[str]:
    """The owner's URL of a Postgres server."""
    if given := os.environ.get("TALLYBOOK_POSTGRES"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="tallybook-bench-") as folder:
        command = [sys.executable, "-m", "services.cli", "up", "--foreground", "--with-parent", "--only", "postgres"]
        with (Path(folder) / "supervisor.log").open("wb") as out:
            supervisor = subprocess.Popen(command, env=os.environ | {"TALLYBOOK_DATA": folder}, stdout=out, stderr=out)
        try:
            yield _address(Path(folder) / STATE_FILE, supervisor)
        finally:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait(60)


def _address(state: Path, supervisor: subprocess.Popen[bytes]) -> str:
    while supervisor.poll() is None:
        if state.exists() and (told := json.loads(state.read_text()))["phase"] == "running":
            return str(told["addresses"]["postgres"])
        time.sleep(0.1)
    raise SystemExit("the embedded Postgres did not start")


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="100000000 for the full figure")
    parser.add_argument("--seconds", type=float, default=5, help="for each kind of question")
    parser.add_argument("--beside", type=int, default=0, help="events a second that are applied meanwhile")
    parser.add_argument(
        "--keep", action="store_true", help="the database that it fills; only on a server that is named"
    )
    parser.add_argument("--database", help="the owner's URL of a database that was kept")
    chosen = parser.parse_args()
    memory = psutil.virtual_memory().total / 2**30
    print(f"{platform.platform()}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}")
    with database(chosen.events, chosen.database, chosen.keep) as settings, beside(settings, chosen.beside):
        print(f"{chosen.events:,} events, one value each, {CUSTOMERS:,} customers, {DAYS} days")
        print(f"{chosen.beside:,} events a second beside\n\n{'':<46}{'asked':>8}{'p50 ms':>10}{'p99 ms':>10}")
        for name, ask in questions().items():
            taken = measure(settings, ask, chosen.seconds)
            print(f"{name:<46}{len(taken):>8,}{percentile(taken, 50):>10.1f}{percentile(taken, 99):>10.1f}", flush=True)
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
