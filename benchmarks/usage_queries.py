"""How quickly usage is read as a table, at any number of events: `python -m benchmarks.usage_queries [--events N]`.

Fills a database of its own by COPY with the values of N events and the windows that follow from them, as the
aggregator would have left them, then asks each kind of question again and again with other customers and days.
TALLYBOOK_POSTGRES names the owner of a server; without it an embedded one is started in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil

from billing.metering import Aggregation, Meter
from billing.period import Period
from infra import postgres
from infra.migrate import migrate
from infra.settings import STATE_FILE, Settings
from projections import generation, usage, usage_query
from projections.usage_query import Question

TENANT = "acme"
CUSTOMERS = 1_000
REGIONS = ("eu", "us", "ap", "sa")
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 30
CALLS = Meter(key="calls", event_type="api", dimensions=("region",))
BYTES = Meter(key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",))
USERS = Meter(key="users", event_type="api", aggregation=Aggregation.UNIQUE, value="user", dimensions=("region",))
METERS = (CALLS, BYTES, USERS)
MONTH = Period(START, START + timedelta(days=DAYS))

Ask = Callable[[random.Random], Question]


def questions() -> dict[str, Ask]:
    """Each kind of question, with what changes from one to the next."""

    def somebody(chance: random.Random) -> str:
        return f"c{chance.randrange(CUSTOMERS)}"

    def day(chance: random.Random) -> Period:
        start = START + timedelta(days=chance.randrange(DAYS))
        return Period(start, start + timedelta(days=1))

    def odd(chance: random.Random) -> Period:
        start = START + timedelta(minutes=chance.randrange(DAYS * 1440 // 2))
        return Period(start, start + timedelta(days=7, minutes=17))

    return {
        "a customer's month, one figure": lambda c: Question(meter=BYTES, period=MONTH, customer=somebody(c)),
        "a customer's month by day and region": lambda c: Question(
            meter=BYTES, period=MONTH, customer=somebody(c), window="day", by=("region",)
        ),
        "a customer's month by day, Asia/Kolkata": lambda c: Question(
            meter=CALLS, period=MONTH, customer=somebody(c), window="day", zone="Asia/Kolkata"
        ),
        "a customer's week by hour, odd edges": lambda c: Question(
            meter=CALLS, period=odd(c), customer=somebody(c), window="hour"
        ),
        "a customer's day by minute": lambda c: Question(
            meter=CALLS, period=day(c), customer=somebody(c), window="minute"
        ),
        "a customer's month of unique users": lambda c: Question(meter=USERS, period=MONTH, customer=somebody(c)),
        "all customers' day, one figure": lambda c: Question(meter=BYTES, period=day(c)),
        "all customers' day, each": lambda c: Question(meter=BYTES, period=day(c), by_customer=True),
        "all customers' month by day": lambda c: Question(meter=BYTES, period=MONTH, window="day"),
    }


def fill(settings: Settings, events: int) -> float:
    """Values of `events` events on three meters, and their windows; seconds that it took.

    Each event is one of a random customer and region; times grow, as they do in a log.
    """
    began = time.perf_counter()
    with postgres.connect(postgres.worker_url(settings)) as connection, connection.cursor() as tx:
        generation.enter(tx, usage.SET)
        months(tx)
        tx.executemany(
            "INSERT INTO usage_series (tenant_id, customer_id, meter, dimension_names, dimension_values)"
            " VALUES (%s, %s, %s, '{region}', %s)",
            [
                (TENANT, f"c{customer}", meter.key, [region])
                for customer in range(CUSTOMERS)
                for region in REGIONS
                for meter in METERS
            ],
        )
        of = {
            (int(customer[1:]), values[0], key): number
            for number, customer, key, values in tx.execute(
                "SELECT series, customer_id, meter, dimension_values FROM usage_series"
            ).fetchall()
        }
        # COPY goes into no table with row-level security, whoever its role is.
        columns = "tenant_id, series, event_time, number, text_value, partition, record_offset, batch_index"
        tx.execute(f"CREATE TEMPORARY TABLE incoming AS SELECT {columns} FROM usage_value WHERE false")
        with tx.copy("COPY incoming FROM STDIN") as copy:
            for text in values(events, of):
                copy.write(text)
        tx.execute(f"INSERT INTO usage_value ({columns}) SELECT {columns} FROM incoming")
        tx.execute(_WINDOWS)
        connection.commit()
    with postgres.connect(postgres.owner_url(settings), autocommit=True) as connection:
        cursor = connection.cursor()
        schema = generation.schema(usage.SET, generation.current(cursor, usage.SET))
        for table in ("usage_series", "usage_value", "usage_window"):
            cursor.execute(f"VACUUM (ANALYZE) {schema}.{table}")
    return time.perf_counter() - began


def months(tx: postgres.Cursor) -> None:
    """Tables for the months, where they are partitioned by month."""
    row = tx.execute("SELECT to_regproc('usage_month') IS NOT NULL").fetchone()
    if row is not None and row[0]:
        for first in ("2025-12-01", "2026-01-01", "2026-02-01"):
            tx.execute("SELECT usage_month(%s::date)", (first,))


def values(events: int, of: dict[tuple[int, str, str], int]) -> Iterator[str]:
    """Rows of usage_value for COPY, a piece at a time."""
    chance = random.Random(1)
    step_us = DAYS * 86_400_000_000 // events
    piece = []
    for number in range(events):
        at = (START + timedelta(microseconds=number * step_us)).isoformat()
        customer, region = chance.randrange(CUSTOMERS), REGIONS[chance.randrange(4)]
        place = f"0\t{number // 500 + 1}\t{number % 500}\n"
        for key, value, text in (
            ("calls", "1", "\\N"),
            ("bytes", str(chance.randrange(10_000)), "\\N"),
            ("users", "\\N", f"u{chance.randrange(100)}"),
        ):
            piece.append(f"{TENANT}\t{of[customer, region, key]}\t{at}\t{value}\t{text}\t{place}")
        if len(piece) >= 30_000:
            yield "".join(piece)
            piece = []
    yield "".join(piece)


_WINDOWS = """
INSERT INTO usage_window
       (tenant_id, series, hour, partition, events, total, lowest, highest, first_offset, last_offset)
SELECT tenant_id, series, date_trunc('hour', event_time, 'UTC') AS hour, partition,
       count(*), sum(number), min(number), max(number), min(record_offset), max(record_offset)
  FROM usage_value
 GROUP BY tenant_id, series, hour, partition
"""


def measure(settings: Settings, ask: Ask, seconds: float) -> list[float]:
    """Milliseconds of each answer, asked as the API asks: its role, one tenant, a transaction each."""
    chance = random.Random(7)
    taken = []
    with postgres.api_pool(settings, size=1) as pool:
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(taken) < 20:
            question = ask(chance)
            began = time.perf_counter()
            with postgres.tenant_transaction(pool, TENANT) as tx:
                generation.enter_all(tx)
                usage_query.answers(tx, TENANT, question)
            taken.append((time.perf_counter() - began) * 1000)
    return sorted(taken[3:])  # the first ones open the connection and read the catalogue


def percentile(taken: list[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return taken[max(0, -(-len(taken) * percent // 100) - 1)]


@contextmanager
def database() -> Iterator[Settings]:
    """A prepared database of its own, dropped at the end."""
    with server() as owner:
        name = f"bench{uuid4().hex[:8]}"
        url = postgres.create_database(owner, name)
        settings = Settings(
            postgres=url, statement_timeout=timedelta(hours=2), api_statement_timeout=timedelta(minutes=2)
        )
        try:
            migrate(settings)
            with postgres.connect(url) as connection, connection.cursor() as tx:
                generation.ensure(tx)
            yield settings
        finally:
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
    chosen = parser.parse_args()
    memory = psutil.virtual_memory().total / 2**30
    print(f"{platform.platform()}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}")
    with database() as settings:
        seconds = fill(settings, chosen.events)
        print(
            f"{chosen.events:,} events, three values each, {CUSTOMERS:,} customers, {DAYS} days:"
            f" filled in {seconds:.0f} s"
        )
        print(f"\n{'':<42}{'asked':>8}{'p50 ms':>10}{'p99 ms':>10}")
        for name, ask in questions().items():
            taken = measure(settings, ask, chosen.seconds)
            print(f"{name:<42}{len(taken):>8,}{percentile(taken, 50):>10.1f}{percentile(taken, 99):>10.1f}")


if __name__ == "__main__":
    main()
