"""What the benchmarks of usage run on: servers of their own, databases made for one round, and who uses how much."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import confluent_kafka
import psutil

from billing.ids import TenantId
from billing.metering import Aggregation, Meter, UsageControl
from billing.placing import Spread
from billing.tenant import UsageBounds
from infra import postgres
from infra.kafka import KafkaConfig, end_offsets, partition_for
from infra.settings import STATE_FILE, Settings
from projections import generation, usage
from schemas.codec import encode_usage
from services.prepare import prepare

BOUNDS = UsageBounds(oldest_days=60)
METER = Meter(
    key="bytes", event_type="api", aggregation=Aggregation.SUM, value="bytes", dimensions=("region",)
)  # one meter an event
EVER = datetime(1970, 1, 1, tzinfo=UTC)
_START_S = 180
T = TypeVar("T")


@dataclass(slots=True)
class System:
    """Kafka, Postgres and Valkey under a supervisor of their own, and the aggregators that a benchmark starts."""

    data: Path
    addresses: dict[str, str]
    supervisor: subprocess.Popen[bytes]
    prefix: str = field(default_factory=lambda: f"b{uuid.uuid4().hex[:8]}.")
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def settings(self, partitions: int) -> Settings:
        """Settings with an empty, prepared database; the topics are the same each time."""
        owner = postgres.create_database(self.addresses["postgres"], f"b{uuid.uuid4().hex[:12]}")
        settings = Settings(
            data=self.data / "session",
            kafka=self.addresses["kafka"],
            postgres=owner,
            redis=self.addresses["redis"],
            topic_prefix=self.prefix,
            usage_partitions=partitions,
            billing_partitions=1,
        )
        prepare(settings)
        return settings

    def superuser(self, settings: Settings) -> str:
        """URL of the cluster's superuser, who alone may COPY into tables with row-level security."""
        return settings.postgres.replace("tallybook_owner", "postgres", 1)

    def superuser_home(self) -> str:
        """The same in the cluster's first database, from where he may drop others, whatever works in them."""
        return self.addresses["postgres"].replace("tallybook_owner", "postgres", 1)

    def aggregator(self, settings: Settings, name: str = "one") -> subprocess.Popen[bytes]:
        """One more worker."""
        own = settings.model_dump(mode="json", include={"kafka", "postgres", "redis", "topic_prefix", "data"})
        own |= {"usage_partitions": settings.usage_partitions, "billing_partitions": 1, "instance": name}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TALLYBOOK_")}
        logs = self.data / "session" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "usage-aggregator.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "run", "usage-aggregator"],
                env=clean | {f"TALLYBOOK_{key.upper()}": str(value) for key, value in own.items()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a worker to end; wait for it."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.poll() is None:
                process.kill()
                process.wait()
        self._started.remove(process)

    def pid(self, server: str) -> int:
        """Process number of `kafka`, `postgres` or `valkey` now."""
        return int(json.loads((self.data / STATE_FILE).read_text())["processes"][server]["pid"])

    def processor_s(self, aggregators: list[subprocess.Popen[bytes]]) -> dict[str, float]:
        """Seconds of processor time so far."""
        return {
            "aggregator": sum(_processor_s(each.pid) for each in aggregators),
            "Postgres": _processor_s(self.pid("postgres"), children=True),
            "Kafka": _processor_s(self.pid("kafka")),
        }


@contextmanager
def running() -> Iterator[System]:
    """Servers in a folder of their own, gone afterwards."""
    data = Path(tempfile.mkdtemp(prefix="tallybook-bench-"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_")}
    (data / "logs").mkdir()
    with (data / "logs" / "supervisor.log").open("ab") as out:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--foreground", "--with-parent", "--only", "servers"],
            env=clean | {"TALLYBOOK_DATA": str(data)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    system = None
    try:
        addresses = until(lambda: _addresses(data, supervisor), within_s=_START_S)
        system = System(data, addresses, supervisor)
        yield system
    finally:
        for process in list(system._started) if system else []:
            system.stop(process) if system else None
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(60)
        shutil.rmtree(data, ignore_errors=True)


def _addresses(data: Path, supervisor: subprocess.Popen[bytes]) -> dict[str, str]:
    if supervisor.poll() is not None:
        raise RuntimeError("the servers did not start: " + (data / "logs" / "supervisor.log").read_text()[-2000:])
    state = json.loads((data / STATE_FILE).read_text()) if (data / STATE_FILE).exists() else {"phase": ""}
    found: dict[str, str] = state["addresses"] if state["phase"] == "running" else {}
    return found


def until(look: Callable[[], T], *, within_s: float, every_s: float = 0.1) -> T:
    """What `look` answers, as soon as that is something.

    Raises:
        TimeoutError: nothing in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s} s: {look}")
        time.sleep(every_s)


def tenants(partitions: int) -> list[str]:
    """One tenant for each partition."""
    found: dict[int, str] = {}
    for number in range(100 * partitions):
        found.setdefault(partition_for(f"t{number}", partitions), f"t{number}")
    return [found[each] for each in range(partitions)]


def register(settings: Settings, spread: int = 0) -> None:
    """Write control records for the tenants of `tenants` into every partition. `spread`: each over so many."""
    versions = (Spread(effective_from=EVER, partitions=spread),) if spread else ()
    config = KafkaConfig.of(settings)
    producer = confluent_kafka.Producer(config.client())
    for tenant in tenants(settings.usage_partitions):
        made = UsageControl(tenant=TenantId(tenant), version=1, meters=(METER,), bounds=BOUNDS, spread=versions)
        for partition in range(settings.usage_partitions):
            producer.produce(
                config.named(usage.TOPIC),
                encode_usage(made),
                tenant.encode(),
                partition,
                headers=[("tenant", tenant.encode())],
            )
    assert producer.flush(30) == 0


@dataclass(slots=True)
class Progress:
    """How far the aggregators are."""

    settings: Settings
    pool: postgres.Pool

    def counted(self) -> int:
        """Events counted so far."""
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            row = tx.execute("SELECT coalesce(sum(counted), 0)::bigint FROM usage_fate").fetchone()
        assert row is not None
        return int(row[0])

    def is_at(self, ends: Mapping[int, int]) -> bool:
        """Whether everything below `ends` is applied."""
        stored = self.stored()
        return all(stored.get(partition, 0) >= end for partition, end in ends.items())

    def reach(self, ends: Mapping[int, int], processes: Iterable[subprocess.Popen[bytes]], within_s: float) -> None:
        """Return when everything below `ends` is applied, as long as all `processes` live. Raises `TimeoutError`."""

        def is_there() -> bool:
            ended = [each.returncode for each in processes if each.poll() is not None]
            assert not ended, f"a worker ended with {ended[0]}"
            return self.is_at(ends)

        until(is_there, within_s=within_s, every_s=0.05)

    def stored(self) -> Mapping[int, int]:
        """Up to where each partition is applied."""
        with postgres.transaction(self.pool) as tx:
            return generation.checkpoints(tx, usage.SET, generation.current(tx, usage.SET), usage.TOPIC)

    def series(self) -> int:
        """How many there are."""
        with postgres.transaction(self.pool) as tx:
            tx.execute("SET LOCAL statement_timeout = 0")
            generation.enter(tx, usage.SET)
            row = tx.execute("SELECT count(*) FROM usage_series").fetchone()
        assert row is not None
        return int(row[0])

    def sums(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(Tenant, customer) -> events and sum, over all windows and, which must be the same, over all values."""
        answers = []
        with postgres.transaction(self.pool) as tx:
            tx.execute("SET LOCAL statement_timeout = 0")
            generation.enter(tx, usage.SET)
            for table, events, total, which in (
                ("window", "sum(events)", "sum(total)", "events > 0"),
                ("value", "count(*)", "sum(number)", "voided_offset IS NULL"),
            ):
                rows = tx.execute(
                    f"""
                    SELECT s.tenant_id, s.customer_id, {events}, {total}
                      FROM usage_{table}
                      JOIN usage_series s USING (tenant_id, series)
                     WHERE {which}
                     GROUP BY s.tenant_id, s.customer_id
                    """
                ).fetchall()
                answers.append({(tenant, customer): (int(n), int(total)) for tenant, customer, n, total in rows})
        assert answers[0] == answers[1], "windows and values differ"
        return answers[0]


def ends(settings: Settings) -> dict[int, int]:
    """Where each partition of usage.events ends."""
    return end_offsets(KafkaConfig.of(settings), usage.TOPIC, range(settings.usage_partitions))


def _processor_s(pid: int, *, children: bool = False) -> float:
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *(process.children() if children else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        if children:  # of sessions that have ended
            ended = process.cpu_times()
            total += ended.children_user + ended.children_system
    return total


def largest_mb(processes: Iterable[subprocess.Popen[bytes]]) -> int:
    """The most memory that any of them ever had resident."""

    def most(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

    return max(most(each.pid) for each in processes)


def machine() -> str:
    """This machine, for a table's head."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total // 2**30
    return f"{os.cpu_count()} cores ({model}), {memory} GB, {platform.system()}, Python {platform.python_version()}"
