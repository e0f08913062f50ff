"""Usage through the whole path, beside the ceiling of the same run: events per second, and that every sum is exact.

    python -m benchmarks.usage [--seconds 10] [--rounds 2] [--workers 1] [--per-record 500] [--preload 0] ...

The events are in Kafka first. Each round then measures two ways of taking them, one after the other on the same machine
state: the ceiling (plain consumption with decoding, and COPY into a table without an index), and the aggregators
(Faust, exact dedupe, values, windows, fates and offset in one Postgres transaction). What counts is their ratio. At
the end every customer's sum is held to the truth; exit code 1 if one differs, or if the ratio is below `--least`.

`--live` has SDK producers send at `--rate` for `--seconds` beside the aggregators: see benchmarks.usage_live.
`--chaos` measures exactness instead: see benchmarks.usage_chaos.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass

from benchmarks import usage_ceiling, usage_chaos, usage_live
from benchmarks.usage_load import Load
from benchmarks.usage_preload import preload
from benchmarks.usage_system import Progress, System, ends, largest_mb, machine, register, running, until
from infra import postgres
from infra.settings import Settings

EXPECTED_RATE = 60_000  # events are made for so many a second of the ceiling; only the length of a run depends on it
STARTED_S = 60


@dataclass(frozen=True, slots=True)
class Taken:
    """One way of taking the events, once."""

    events: int
    seconds: float
    processor_us: dict[str, float]
    """Microseconds of processor time an event, by part."""
    load: float
    """The machine's load average at the end: others use it, too."""
    memory_mb: int = 0
    """The most that any worker had resident."""
    series: int = 0
    """That exist at the end."""

    @property
    def rate(self) -> float:
        return self.events / self.seconds


def main() -> int:
    chosen = _arguments()
    if chosen.chaos:
        return _under_fire(chosen)
    if chosen.live:
        return _live(chosen)
    with running() as system:
        settings = system.settings(chosen.partitions)
        register(settings, chosen.spread)
        load = Load(chosen.partitions, chosen.per_record, chosen.customers, chosen.random_ids, chosen.spread)
        events = load.send(settings, chosen.events or chosen.seconds * EXPECTED_RATE, _say)
        reached = ends(settings)
        rounds: list[tuple[Taken, Taken]] = []
        wrong = 0
        for number in range(chosen.rounds):
            own = settings if number == 0 else system.settings(chosen.partitions)
            ceiling = _ceiling(system, own, reached, events)
            if chosen.preload:
                preload(system.superuser(own), chosen.preload, random_ids=chosen.random_ids, said=_say)
            taken, differing = _aggregate(system, own, reached, events, chosen.workers, load)
            rounds.append((ceiling, taken))
            wrong += differing
            _say(f"round {number + 1}: ceiling {ceiling.rate:,.0f}, aggregator {taken.rate:,.0f} events/s")
            postgres.drop_database(system.superuser_home(), own.postgres.rpartition("/")[2].partition("?")[0])
    return _report(chosen, rounds, wrong)


def _under_fire(chosen: argparse.Namespace) -> int:
    with running() as system:
        outcome = usage_chaos.run(
            system, kills=chosen.kills, quiet_s=30, rate=chosen.rate, partitions=chosen.partitions, said=_say
        )
    if chosen.json:
        print(json.dumps({"machine": machine(), **asdict(outcome)}))
        return 1 if outcome.wrong else 0
    print(machine())
    for what, number in sorted(outcome.sent.items()):
        print(f"sent {what:32}{number:>12,}")
    for what, number in outcome.fates.items():
        print(f"{what:37}{number:>12,}")
    for target, seconds in outcome.kills:
        print(f"killed {target:12} all counted again after {seconds:5.1f} s")
    print(f"aggregators started again: {outcome.restarts}; differences from the truth: {len(outcome.wrong)}")
    for line in outcome.wrong[:20]:
        print(line)
    return 1 if outcome.wrong else 0


def _live(chosen: argparse.Namespace) -> int:
    sending = usage_live.Sending(
        chosen.rate, chosen.seconds, chosen.per_record, chosen.customers, min(chosen.producers, chosen.rate)
    )
    with running() as system:
        settings = system.settings(chosen.partitions)
        kept = usage_live.run(system, settings, sending, chosen.workers, _say)
        events = min(kept.sent, 10 * (EXPECTED_RATE if chosen.per_record > 1 else kept.sent))
        ceiling = _ceiling(system, settings, ends(settings), events)
    ratio = kept.counted_rate / ceiling.rate
    if chosen.json:
        print(json.dumps({"machine": machine(), "ratio": ratio, **asdict(kept), "ceiling": asdict(ceiling)}))
        return 1 if kept.differing or ratio < chosen.least else 0
    print(f"{machine()}; broker, Postgres, producers and workers on it together; load {kept.load:.1f}")
    print(
        f"{chosen.producers} process(es) of SDK producers, {chosen.per_record} events a record, "
        f"{chosen.partitions} partitions, {chosen.workers} worker(s)"
    )
    print(f"asked for {chosen.rate:,} events/s; sent {kept.sent:,} in {kept.seconds:.1f} s: {kept.rate:,.0f} events/s")
    print("seconds behind, all along: " + ", ".join(f"{each:.1f}" for each in kept.lags))
    print(f"counted meanwhile: {kept.counted_rate:,.0f} events/s; all counted {kept.drained_s:.1f} s after the end")
    print("microseconds of processor an event: " + ", ".join(f"{k} {v:.1f}" for k, v in kept.processor_us.items()))
    print(f"ceiling of the same log, afterwards: {ceiling.rate:,.0f} events/s; ratio {ratio:.2f}")
    print(f"largest worker {kept.memory_mb} MB; customers whose sum is not the truth: {kept.differing}")
    return 1 if kept.differing or ratio < chosen.least else 0


def _ceiling(system: System, settings: Settings, reached: dict[int, int], events: int) -> Taken:
    before = system.processor_s([])
    seconds, own_s = usage_ceiling.consume(settings, reached, events)
    after = system.processor_s([])
    used = {"consumer": own_s} | {name: after[name] - before[name] for name in ("Postgres", "Kafka")}
    return Taken(events, seconds, _an_event(used, events), os.getloadavg()[0])


def _aggregate(
    system: System, settings: Settings, reached: dict[int, int], events: int, workers: int, load: Load
) -> tuple[Taken, int]:
    """What the workers took after their start, and how many customers' sums are wrong."""
    with postgres.worker_pool(settings) as pool:
        progress = Progress(settings, pool)
        processes = [system.aggregator(settings, f"w{number}") for number in range(workers)]
        first = until(progress.counted, within_s=STARTED_S, every_s=0.02)
        began, before = time.perf_counter(), system.processor_s(processes)
        progress.reach(reached, processes, within_s=3600)
        seconds, after = time.perf_counter() - began, system.processor_s(processes)
        memory = largest_mb(processes)
        for each in processes:
            system.stop(each)
        sums, series = progress.sums(), progress.series()
    differing = len({key for key in sums.keys() | load.sums.keys() if sums.get(key) != load.sums.get(key)})
    used = {name: after[name] - before[name] for name in after}
    counted = events - first
    return Taken(counted, seconds, _an_event(used, counted), os.getloadavg()[0], memory, series), differing


def _an_event(used: dict[str, float], events: int) -> dict[str, float]:
    return {name: round(seconds / events * 1e6, 2) for name, seconds in used.items()}


def _report(chosen: argparse.Namespace, rounds: list[tuple[Taken, Taken]], wrong: int) -> int:
    ratio = statistics.median(taken.rate / ceiling.rate for ceiling, taken in rounds)
    if chosen.json:
        print(
            json.dumps(
                {
                    "machine": machine(),
                    "ratio": ratio,
                    "wrong": wrong,
                    "rounds": [{"ceiling": asdict(ceiling), "aggregator": asdict(taken)} for ceiling, taken in rounds],
                }
            )
        )
    else:
        print(f"{machine()}; broker, Postgres and workers on it together")
        print(
            f"{chosen.per_record} events a record, {chosen.partitions} partitions, {chosen.workers} worker(s), "
            f"{f'one tenant over {chosen.spread} partitions, ' if chosen.spread else ''}"
            f"{chosen.customers} customers a tenant, {chosen.preload:,} identities before, "
            f"{'random ids' if chosen.random_ids else 'UUIDv7'}"
        )
        print(f"{'':12}{'events/s':>10}{'ratio':>7}  {'load':>5}  microseconds of processor an event")
        for ceiling, taken in rounds:
            for name, each in (("ceiling", ceiling), ("aggregator", taken)):
                parts = ", ".join(f"{part} {used:.1f}" for part, used in each.processor_us.items())
                print(f"{name:12}{each.rate:>10,.0f}{each.rate / ceiling.rate:>7.2f}  {each.load:>5.1f}  {parts}")
        memory, series = (max(getattr(taken, each) for _, taken in rounds) for each in ("memory_mb", "series"))
        print(f"largest worker {memory} MB, with {series:,} series")
        print(f"ratio (median) {ratio:.2f}; customers whose sum is not the truth: {wrong}")
    return 1 if wrong or ratio < chosen.least else 0


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10, help="about how long each measurement takes")
    parser.add_argument("--events", type=int, default=0, help="so many events instead")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--partitions", type=int, default=4, help="and tenants")
    parser.add_argument("--spread", type=int, default=0, help="one tenant over so many partitions instead")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--per-record", type=int, default=500)
    parser.add_argument("--customers", type=int, default=1000, help="of each tenant; each has 4 series")
    parser.add_argument("--preload", type=int, default=0, help="identities that are in the dedupe horizon before")
    parser.add_argument("--random-ids", action="store_true", help="UUIDv4 instead of the SDK's UUIDv7")
    parser.add_argument("--least", type=float, default=0.0, help="ratio below which the exit code is 1")
    parser.add_argument("--live", action="store_true", help="send with the SDK while it is counted, at --rate")
    parser.add_argument("--producers", type=int, default=1, help="processes that send under --live")
    parser.add_argument("--chaos", action="store_true", help="kill everything in turn instead, 30 s apart")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--rate", type=int, default=5_000, help="events a second that are sent under --live or --chaos")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if not 0 <= chosen.spread <= chosen.partitions:
        parser.error(f"--spread: allowed are 0 to {chosen.partitions}, the --partitions")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
