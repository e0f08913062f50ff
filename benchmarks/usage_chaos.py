"""Usage under fire: everything is killed in turn while events come twice, late, out of order and are corrected; every
sum stays exact.

Each kill (SIGKILL) comes after the recovery from the last was seen, and `quiet_s` later. Recovered means: what was
killed runs again, and in every partition a record is counted that was sent after the kill, with all before it. Two
aggregators share the partitions; one that ends is started again, as a supervisor would. What is sent, and the truth of
it: see benchmarks.usage_chaos_load.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from benchmarks.usage_chaos_load import Producer, Truth
from benchmarks.usage_system import Progress, System, ends, register, until
from infra import postgres
from infra.errors import Conflict, Transient
from infra.settings import STATE_FILE, Settings
from projections import generation, usage, usage_read

TARGETS = ("aggregator", "kafka", "postgres", "valkey")
SERVERS = TARGETS[1:]
RECOVERED_S = 240


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
    """What was killed, and the seconds until records of every partition that were sent later were counted."""
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
            sent = ends(settings)
            fire.kill(target)
            began = time.monotonic()
            until(lambda before=before: fire.is_recovered(before), within_s=RECOVERED_S)  # type: ignore[misc]
            reached = until(lambda sent=sent: _ends(settings, beyond=sent), within_s=RECOVERED_S)  # type: ignore[misc]
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
        sent_in_all = dict(producer.truth.sent + producer.truth.corrections)
        return Outcome(sent_in_all, seen, fire.restarts, fates, _wrong(producer.truth, progress, fates))


def _ends(settings: Settings, beyond: dict[int, int] | None = None) -> dict[int, int] | None:
    """Where the partitions end, as soon as each ends `beyond` that."""
    try:
        found = ends(settings)
    except Transient:
        return None
    return found if all(found[each] > end for each, end in (beyond or {}).items()) else None


def _fates(pool: postgres.Pool) -> dict[str, int]:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, usage.SET)
        found = usage_read.fates(tx).values()
    names = ("received", "counted", "duplicate", "conflict", "rejected", "voided", "amended", "repeated")
    return {name: sum(getattr(each, name) for each in found) for name in names}


def _wrong(truth: Truth, progress: Progress, fates: dict[str, int]) -> list[str]:
    sums = progress.sums()
    wrong = [
        f"{key}: counted {sums.get(key)}, sent {truth.sums.get(key)}"
        for key in sorted(sums.keys() | truth.sums.keys())
        if sums.get(key) != truth.sums.get(key)
    ]
    expected = {
        "counted": truth.sent["a day ago"] + truth.sent["new"] + truth.sent["late"],
        "rejected": truth.sent["too late"],
        "voided": truth.corrections["voided"],
        "amended": truth.corrections["amended"],
    }
    wrong += [f"{name}: {fates[name]:,}, sent {each:,}" for name, each in expected.items() if fates[name] != each]
    if fates["repeated"] < truth.corrections["voided again"]:
        wrong.append(f"repeated: {fates['repeated']:,}, sent {truth.corrections['voided again']:,}")
    if fates["received"] < sum(truth.sent.values()):
        wrong.append(f"received {fates['received']:,} of {sum(truth.sent.values()):,}")
    return wrong
