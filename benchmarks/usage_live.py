"""Usage that is sent while it is counted: whether the aggregators keep up with the SDK, and that every sum is exact.

Producers of their own processes send at a steady rate for a given time. How far the aggregators are behind is looked
at all the while: a rate is sustained if that does not grow. At the end everything is counted, and every customer's sum
is held to what was sent.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from queue import Empty
from typing import Any

import psutil

from benchmarks.usage_system import Progress, System, ends, largest_mb, register, tenants
from infra import postgres
from infra.settings import Settings
from tallybook_sdk import UsageEvent, UsageProducer

LOOKS = 10  # at how far the aggregators are, spread over the time
STARTED_S = 60
DRAINED_S = 900
_PAUSE_S = 0.005
_SPREAD_S = 20 * 60  # events lie within the last twenty minutes, in no order
Sums = dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Sending:
    """What the producers are to do."""

    rate: int
    """Events a second, of all producers."""
    seconds: int
    per_record: int
    customers: int
    """Of each tenant."""
    producers: int
    """Processes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How a run went."""

    sent: int
    """Events, all acknowledged by the brokers."""
    seconds: float
    """From the first to the last."""
    lags: list[float]
    """Seconds of sending that lay in the log and were not counted, at equal distances of time; the last at the end."""
    drained_s: float
    """From the end of the sending until all was counted."""
    processor_us: dict[str, float]
    """Microseconds of processor time an event, by part."""
    load: float
    """The machine's load average at the end."""
    memory_mb: int
    """The largest worker's."""
    differing: int
    """Customers whose sum is not what was sent."""

    @property
    def rate(self) -> float:
        return self.sent / self.seconds

    @property
    def counted_rate(self) -> float:
        """Events a second that were counted while the producers sent."""
        return self.sent * (1 - self.lags[-1] / self.seconds) / self.seconds


def run(
    system: System, settings: Settings, sending: Sending, workers: int, said: Callable[[str], None] = lambda _: None
) -> Kept:
    """Send and count at once."""
    register(settings)
    registered = ends(settings)
    context = multiprocessing.get_context("spawn")
    go, answers = context.Event(), context.Queue()
    senders = [
        context.Process(
            target=_send,
            args=(
                settings.require("kafka"),
                settings.topic_prefix,
                settings.usage_partitions,
                sending,
                each,
                go,
                answers,
            ),
        )
        for each in range(sending.producers)
    ]
    with postgres.worker_pool(settings) as pool:
        progress = Progress(settings, pool)
        processes = [system.aggregator(settings, f"w{number}") for number in range(workers)]
        progress.reach(registered, processes, within_s=STARTED_S)
        for each in senders:
            each.start()
        for _ in senders:
            assert answers.get(timeout=STARTED_S) is None  # it is ready
        before = system.processor_s(processes) | {"SDK": _processor_s(senders)}
        go.set()
        began = time.monotonic()
        lags = []
        for look in range(1, LOOKS + 1):
            time.sleep(max(0.0, began + sending.seconds * look / LOOKS - time.monotonic()))
            lags.append(_lag_s(settings, progress, time.monotonic() - began))
            said(f"{look * sending.seconds // LOOKS} s: {lags[-1]:.1f} s behind")
        own = _processor_s(senders)
        told = [_told(answers, senders) for _ in senders]
        seconds = max(each[1] for each in told)
        reached, ended = ends(settings), time.monotonic()
        progress.reach(reached, processes, within_s=DRAINED_S)
        drained_s = time.monotonic() - ended
        after = system.processor_s(processes) | {"SDK": own}
        memory = largest_mb(processes)
        for each in processes:
            system.stop(each)
        sums, truth = progress.sums(), _together([each[0] for each in told])
    sent = sum(events for events, _ in truth.values())
    return Kept(
        sent,
        seconds,
        lags,
        drained_s,
        {name: round((after[name] - before[name]) / sent * 1e6, 2) for name in after},
        os.getloadavg()[0],
        memory,
        len({key for key in sums.keys() | truth.keys() if sums.get(key) != truth.get(key)}),
    )


def _lag_s(settings: Settings, progress: Progress, elapsed_s: float) -> float:
    """How long ago that was sent which is counted now, if records came evenly."""
    reached = ends(settings)
    stored = progress.stored()
    behind = sum(max(0, end - stored.get(partition, 0)) for partition, end in reached.items())
    return behind / max(1, sum(reached.values())) * elapsed_s


def _told(answers: Any, senders: Sequence[Any]) -> tuple[Sums, float]:
    """What a sender answers at its end."""
    deadline = time.monotonic() + DRAINED_S
    while True:
        try:
            answer: tuple[Sums, float] = answers.get(timeout=1)
            return answer
        except Empty:
            failed = [each.exitcode for each in senders if each.exitcode]
            assert not failed, f"a producer ended with {failed[0]}"
            assert time.monotonic() < deadline, "the producers could not deliver everything"


def _together(parts: Sequence[Sums]) -> Sums:
    whole: Sums = {}
    for part in parts:
        for key, (events, total) in part.items():
            known = whole.get(key, (0, 0))
            whole[key] = (known[0] + events, known[1] + total)
    return whole


def _processor_s(processes: Sequence[Any]) -> float:
    times = [psutil.Process(each.pid).cpu_times() for each in processes]
    return sum(each.user + each.system for each in times)


def _send(bootstrap: str, prefix: str, partitions: int, sending: Sending, number: int, go: Event, answers: Any) -> None:
    """One process of producers: a producer for each tenant. Answers the sums of what was delivered, and the time."""
    rate = sending.rate / sending.producers
    chance = random.Random(number).random
    sums: Sums = {}
    with ExitStack() as stack:
        producers = []
        for tenant in tenants(partitions):
            made = UsageProducer(
                bootstrap, tenant, source=f"bench-{number}", batch_events=sending.per_record, topic_prefix=prefix
            )
            producers.append((tenant, stack.enter_context(made)))
            made.check()
        answers.put(None)
        go.wait()
        began, sent = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < sending.seconds:
            now = datetime.now(UTC)
            due = min(int(elapsed * rate), sent + 2_000)
            for at in range(sent, due):
                tenant, producer = producers[at % len(producers)]
                customer, size = f"c-{int(chance() * sending.customers)}", int(chance() * 100_000)
                producer.send(
                    UsageEvent(
                        type="api",
                        customer=customer,
                        time=now - timedelta(seconds=chance() * _SPREAD_S),
                        properties={"bytes": size, "region": f"eu-{size % 4}", "status": "200"},
                    )
                )
                known = sums.get((tenant, customer), (0, 0))
                sums[tenant, customer] = (known[0] + 1, known[1] + size)
            if due == sent:
                time.sleep(_PAUSE_S)
            sent = due
    answers.put((sums, time.perf_counter() - began))  # all of it is acknowledged: leaving the block would have raised
