"""How many events a second one producer sends, and where its time goes: `python -m benchmarks.sdk`.

    python -m benchmarks.sdk [--kafka HOST:PORT --topic-prefix P.] [--events 500000] [--json]

The first rows need no broker: one core, processor time. With `--kafka`, events go to that broker until it has
acknowledged them all; these rows come twice, by the clock and by the processor time of this process with all its
threads. The second is what bounds a producer on a machine where nobody else works.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time

from benchmarks import machine
from tallybook_sdk import Delivery, Fsync, UsageEvent, UsageProducer, new_id
from tallybook_sdk.spool import Spool
from tallybook_sdk.wire import Encoder, encode_batch

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROUNDS = 5
BATCH = 500
WARM = 20_000


def events(count: int) -> list[UsageEvent]:
    """Events with four properties, of which one is a number that differs each time; a thousand customers."""
    return [
        UsageEvent(
            type="departure",
            customer=f"customer-{number % 1000}",
            time=NOW + timedelta(milliseconds=number),
            properties={"origin": "EWR", "dest": "IAH", "tailnum": f"N{number % 4000}", "distance": number},
        )
        for number in range(count)
    ]


def best(count: int, run: Callable[[], object]) -> float:
    """Events per second of processor time in the round that was disturbed least."""
    seconds = []
    for _ in range(ROUNDS):
        began = process_time()
        run()
        seconds.append(process_time() - began)
    return count / min(seconds)


def alone(count: int) -> dict[str, float]:
    """Each step by itself."""
    made = events(count)
    encode = Encoder("bench").encode
    encoded = [encode(each) for each in made]
    batches = [encoded[at : at + BATCH] for at in range(0, count, BATCH)]
    rows = {
        "make an id": best(count, lambda: [new_id() for _ in range(count)]),
        "make an event": best(count, lambda: events(count)),
        "encode an event": best(count, lambda: [encode(each) for each in made]),
        "join a batch of 500": best(count, lambda: [encode_batch("acme", each) for each in batches]),
    }
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "bench", Fsync.NEVER)
        rows["keep in a spool, without fsync"] = best(count, lambda: [spool.append(each) for each in encoded])
        spool.abandon()
    return rows


def through(kafka: str, prefix: str, count: int) -> dict[str, float]:
    """Everything, to the last acknowledgement."""
    made = events(count)
    told: list[Delivery] = []

    def sent(name: str, make: bool = False, report: bool = False, spool: Path | None = None) -> dict[str, float]:
        told.clear()
        with UsageProducer(
            kafka,
            "bench",
            source="bench",
            topic_prefix=prefix,
            on_delivery=told.append if report else None,
            spool=spool,
        ) as producer:
            producer.check()
            for each in made[:WARM]:
                producer.send(each)
            producer.flush()
            began, worked = perf_counter(), process_time()
            for each in events(count) if make else made:
                producer.send(each)
            producer.flush()
            seconds, worked = perf_counter() - began, process_time() - worked
        assert not report or len(told) == count + WARM
        return {name: count / seconds, f"{name} (processor)": count / worked}

    with tempfile.TemporaryDirectory() as folder:
        return {
            **sent("send to Kafka"),
            **sent("make and send to Kafka", make=True),
            **sent("send, with a report for each", report=True),
            **sent("send, with a spool", spool=Path(folder)),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", help="host:port of a broker that has the topics")
    parser.add_argument("--topic-prefix", default="", help="before the names of the topics")
    parser.add_argument("--events", type=int, default=300_000, help="events to Kafka")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    rows = alone(100_000)
    if options.kafka:
        rows |= through(options.kafka, options.topic_prefix, options.events)
    if options.json:
        print(json.dumps({"machine": machine.description(), "events_per_s": {k: round(v) for k, v in rows.items()}}))
    else:
        print(f"{machine.description()}; {machine.busy()}")
        for name, rate in rows.items():
            print(f"{name:<44}{rate:>12,.0f} events/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
