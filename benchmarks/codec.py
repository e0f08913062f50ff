"""How fast messages become bytes and come back, on one core: `python -m benchmarks.codec`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256

from billing.envelope import EventEnvelope, EventMeta
from billing.ids import TenantId
from billing.metering import UsageBatch, UsageEvent
from billing.tenant import ClockAdvanced
from schemas import codec

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
BATCH = 500


def events() -> list[EventEnvelope]:
    """A thousand small events that differ as real ones do: in their hashes."""
    meta = EventMeta(
        event_id="acme:123456",
        tenant=TenantId("acme"),
        sequence=123456,
        type="ClockAdvanced",
        aggregate_id="tenant:acme",
        aggregate_version=17,
        command_id="0190b6d0-7c2e-7a31-9a55-1f0c2f6b6a11",
        idempotency_key="scheduler:acme:2026-01-02",
        payload_hash=b"",
        correlation_id="0190b6d0-7c2e-7a31-9a55-1f0c2f6b6a12",
        actor="scheduler",
        occurred_at=NOW,
        recorded_at=NOW,
        previous_hash=b"",
    )
    hashes = [sha256(bytes([each % 256, each // 256])).digest() for each in range(1000)]
    return [EventEnvelope(replace(meta, payload_hash=h, previous_hash=h[::-1]), ClockAdvanced(to=NOW)) for h in hashes]


def batch() -> UsageBatch:
    """A batch of `BATCH` events with four properties each."""
    properties = {"origin": "EWR", "dest": "IAH", "distance": "1400", "tailnum": "N14228"}
    return UsageBatch(
        tenant=TenantId("acme"),
        events=tuple(
            UsageEvent(
                id=f"2013-01-01T05:00:00Z-UA-{number}",
                source="flights",
                type="departure",
                customer="UA",
                time=NOW,
                properties=properties,
            )
            for number in range(BATCH)
        ),
    )


def written_in_json(batch: UsageBatch) -> bytes:
    """The same batch as a producer without Avro writes it."""
    events = [{**asdict(each), "time": each.time.isoformat()} for each in batch.events]
    return json.dumps({"tenant": batch.tenant, "events": events}).encode()


def best_s(run: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of processor time of the fastest of `rounds` runs: the one that was disturbed least."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print the figures as a table."""
    small = events()
    written = [codec.encode_event(each) for each in small]
    many = batch()
    packed = codec.encode_usage(many)
    as_json = written_in_json(many)
    rows = [
        ("encode a small event", len(small), lambda: [codec.encode_event(each) for each in small]),
        ("decode a small event", len(small), lambda: [codec.decode_event(each) for each in written]),
        ("encode usage", 20 * BATCH, lambda: [codec.encode_usage(many) for _ in range(20)]),
        ("decode usage to dataclasses", 20 * BATCH, lambda: [codec.decode_usage(packed) for _ in range(20)]),
        ("decode usage to records", 20 * BATCH, lambda: [codec.decode_usage_records(packed) for _ in range(20)]),
        ("decode usage in JSON", 20 * BATCH, lambda: [codec.decode_usage_records(as_json) for _ in range(20)]),
    ]
    for name, count, run in rows:
        print(f"{name:30}{count / best_s(run):>12,.0f} events/s")


if __name__ == "__main__":
    main()
