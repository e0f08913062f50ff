"""Usage under fire: everything is killed in turn while events come twice, late and out of order; every sum stays exact.

Each kill (SIGKILL) comes after the recovery from the last was seen, which means that all that had been sent by then is
counted, and `quiet_s` later. Two aggregators share the partitions; one that ends is started again, as a supervisor
would.
The truth is computed from what was sent, by code that shares nothing with the system.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import confluent_kafka
import psutil
import uuid_utils

from benchmarks.usage_load import FINGERPRINT, encode_batch
from benchmarks.usage_system import BOUNDS, Progress, System, ends, register, tenants, until
from infra import postgres
from infra.errors import Conflict, Transient
from infra.kafka import KafkaConfig
from infra.settings import STATE_FILE, Settings
from projections import generation, usage, usage_read

TARGETS = ("aggregator", "kafka", "postgres", "valkey")
SERVERS = TARGETS[1:]
RECOVERED_S = 240
_DAY_US = 86_400_000_000
Event = dict[str, object]
_REMEMBERED = 5_000  # events of each tenant that may come again


@dataclass(slots=True)
class Truth:
    """What was sent, and what it must come to."""

    sums: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(Tenant, customer) -> events, and their bytes."""
    sent: Counter[str] = field(default_factory=Counter)
    """By what it is: new, late, again in the same batch, in another batch, a day later, changed, too late."""

    def count(self, tenant: str, event: dict[str, object]) -> None:
        events, total = self.sums.get((tenant, str(event["customer"])), (0, 0))
        size = int(event["properties"]["bytes"])  # type: ignore[index]
        self.sums[tenant, str(event["customer"])] = (events + 1, total + size)


class Producer(threading.Thread):
    """Sends batches at a steady rate, whatever happens to the broker, until it is told to stop."""

    def __init__(self, settings: Settings, rate: int, seed: int) -> None:
        super().__init__(name="producer")
        self.truth = Truth()
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self._settings = settings
        self._rate = rate
        self._random = random.Random(seed)
        self._known: dict[str, list[Event]] = {}
        """By tenant, events that the brokers have: what comes again comes later in the log."""
        self._waiting: list[tuple[str, list[Event]]] = []
        self._unsent: list[tuple[str, list[Event]]] = []

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        config = KafkaConfig.of(self._settings)
        producer = confluent_kafka.Producer(
            config.client()
            | {
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "log_level": 2,
                "delivery.timeout.ms": 60_000,
            }
        )
        names = tenants(self._settings.usage_partitions)
        for tenant in itertools.cycle(names):
            if self.stopping.is_set():
                break
            size = self._random.randint(1, 100)
            self._waiting.append((tenant, self._batch(tenant, size)))
            if len(self._waiting) > 8:  # held back, and sent in another order
                self._random.shuffle(self._waiting)
                while self._waiting:
                    self._send(producer, *self._waiting.pop())
            self.stopping.wait(size / self._rate)
        for each in self._waiting:
            self._send(producer, *each)
        while producer.flush(60) or self._unsent:
            again, self._unsent = self._unsent, []
            for each in again:
                self._send(producer, *each)

    def _send(self, producer: confluent_kafka.Producer, tenant: str, batch: list[Event]) -> None:
        def delivered(error: object, _message: object) -> None:
            if error is not None:  # it may lie there all the same: then it is a duplicate
                self._unsent.append((tenant, batch))
                return
            known = self._known.setdefault(tenant, [])
            known += [each for each in batch if _is_accepted(each)]
            del known[: max(0, len(known) - _REMEMBERED)]

        value = encode_batch(tenant, batch)
        headers = [("schema", FINGERPRINT.hex().encode()), ("tenant", tenant.encode())]
        topic = KafkaConfig.of(self._settings).named(usage.TOPIC)
        producer.produce(topic, value, tenant.encode(), headers=headers, on_delivery=delivered)
        producer.poll(0)
        again, self._unsent = self._unsent, []
        for each in again:
            self._send(producer, *each)

    def _batch(self, tenant: str, size: int) -> list[Event]:
        chance, truth = self._random, self.truth
        known = self._known.get(tenant)
        batch: list[Event] = []
        for _ in range(size):
            what = chance.random()
            if known and what < 0.10:
                old = chance.choice(known)
                is_old = int(str(old["time"])) < _now_us() - _DAY_US
                batch.append(old)
                truth.sent["again, a day after its time" if is_old else "again, in another batch"] += 1
            elif known and what < 0.12:
                batch.append({**chance.choice(known), "properties": {"bytes": "7777777", "region": "changed"}})
                truth.sent["again, but changed"] += 1
            elif what < 0.13:
                batch.append(self._event(_now_us() - (BOUNDS.oldest_days + 1) * _DAY_US))
                truth.sent["too late"] += 1
            else:
                is_late = what < 0.25
                event = self._event(_now_us() - chance.randrange(_DAY_US, 30 * _DAY_US) if is_late else _now_us())
                batch.append(event)
                truth.count(tenant, event)
                truth.sent["late" if is_late else "new"] += 1
                if what > 0.97:
                    batch.append(event)
                    truth.sent["again, in the same batch"] += 1
        return batch

    def _event(self, time_us: int) -> dict[str, object]:
        chance = self._random
        return {
            "id": str(uuid_utils.uuid7()) if chance.random() < 0.7 else f"own-{chance.getrandbits(64):x}",
            "source": chance.choice(("gateway", "worker")),
            "type": "api",
            "customer": f"c-{chance.randrange(50)}",
            "time": time_us,
            "properties": {"bytes": str(chance.randrange(100_000)), "region": f"eu-{chance.randrange(4)}"},
        }


def _is_accepted(event: Event) -> bool:
    """Whether it counted: not the changed copy of another, and not too late."""
    properties = event["properties"]
    assert isinstance(properties, dict)
    return properties["region"] != "changed" and int(str(event["time"])) > _now_us() - BOUNDS.oldest_days * _DAY_US


def _now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)


class Fire:
    """Kills, and sees to it that aggregators which end are started again."""

    def __init__(self, system: System, settings: Settings, progress: Progress, workers: int) -> None:
        self._system = system
        self._settings = settings
        self._progress = progress
        self._lock = threading.Lock()
        self.restarts = 0
        self.workers = {f"w{number}": system.aggregator(settings, f"w{number}") for number in range(workers)}

    def tend(self) -> None:
        """Start what ended again."""
        with self._lock:
            for name, process in list(self.workers.items()):
                if process.poll() is not None:
                    self.restarts += 1
                    self._system.stop(process)
                    self.workers[name] = self._system.aggregator(self._settings, name)

    def kill(self, target: str) -> None:
        """SIGKILL, without any warning."""
        if target == "aggregator":
            name = random.choice(sorted(self.workers))
            self.workers[name].send_signal(signal.SIGKILL)
        else:
            psutil.Process(self._system.pid(target)).kill()

    def is_recovered(self, before: dict[str, int]) -> bool:
        """Whether every killed server runs again."""
        self.tend()
        processes = json.loads((self._system.data / STATE_FILE).read_text())["processes"]
        return all(
            processes[name]["state"] == "healthy" and processes[name]["pid"] != pid for name, pid in before.items()
        )

    def is_counted(self, reached: dict[int, int]) -> bool:
        """Whether everything below `reached` is counted."""
        self.tend()
        try:
            return self._progress.is_at(reached)
        except (Transient, Conflict):
            return False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run under fire came to."""

    sent: dict[str, int]
    kills: list[tuple[str, float]]
    """What was killed, and the seconds until all that had been sent by then was counted."""
    restarts: int
    fates: dict[str, int]
    wrong: list[str]
    """What differs from the truth."""


def run(
    system: System,
    *,
    kills: int,
    quiet_s: float,
    rate: int = 2_000,
    partitions: int = 4,
    seed: int = 1,
    said: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Send, kill `kills` times, and compare every sum with the truth."""
    settings = system.settings(partitions)
    register(settings)
    with postgres.worker_pool(settings) as pool:
        progress = Progress(settings, pool)
        fire = Fire(system, settings, progress, workers=2)
        producer = Producer(settings, rate, seed)
        producer.start()
        until(lambda: producer.failure or progress.counted(), within_s=RECOVERED_S)
        seen: list[tuple[str, float]] = []
        for target in itertools.islice(itertools.cycle(TARGETS), kills):
            if producer.failure is not None:
                break
            before = {target: system.pid(target)} if target in SERVERS else {}
            fire.kill(target)
            began = time.monotonic()
            until(lambda before=before: fire.is_recovered(before), within_s=RECOVERED_S)  # type: ignore[misc]
            reached = until(lambda: _ends(settings), within_s=RECOVERED_S)
            until(lambda reached=reached: fire.is_counted(reached), within_s=RECOVERED_S)  # type: ignore[misc]
            seen.append((target, round(time.monotonic() - began, 1)))
            said(f"killed {target}: recovered after {seen[-1][1]} s, {progress.counted():,} events counted")
            quiet = time.monotonic() + quiet_s
            until(lambda quiet=quiet: fire.tend() or time.monotonic() >= quiet, within_s=quiet_s + 60)  # type: ignore[misc,func-returns-value]
        producer.stopping.set()
        producer.join(RECOVERED_S)
        assert not producer.is_alive(), "the producer could not deliver everything"
        if producer.failure is not None:
            raise producer.failure
        reached = until(lambda: _ends(settings), within_s=RECOVERED_S)
        until(lambda: fire.is_counted(reached), within_s=RECOVERED_S)
        for process in list(fire.workers.values()):
            system.stop(process)
        fates = _fates(pool)
        return Outcome(dict(producer.truth.sent), seen, fire.restarts, fates, _wrong(producer.truth, progress, fates))


def _ends(settings: Settings) -> dict[int, int] | None:
    try:
        return ends(settings)
    except Transient:
        return None


def _fates(pool: postgres.Pool) -> dict[str, int]:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, usage.SET)
        found = usage_read.fates(tx).values()
    names = ("received", "counted", "duplicate", "conflict", "rejected")
    return {name: sum(getattr(each, name) for each in found) for name in names}


def _wrong(truth: Truth, progress: Progress, fates: dict[str, int]) -> list[str]:
    sums = progress.sums()
    wrong = [
        f"{key}: counted {sums.get(key)}, sent {truth.sums.get(key)}"
        for key in sorted(sums.keys() | truth.sums.keys())
        if sums.get(key) != truth.sums.get(key)
    ]
    expected = {
        "counted": truth.sent["new"] + truth.sent["late"],
        "rejected": truth.sent["too late"],
    }
    wrong += [f"{name}: {fates[name]:,}, sent {each:,}" for name, each in expected.items() if fates[name] != each]
    if fates["received"] < sum(truth.sent.values()):
        wrong.append(f"received {fates['received']:,} of {sum(truth.sent.values()):,}")
    return wrong
