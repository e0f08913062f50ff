"""Faust on a real broker: what it reads, where it starts, and that nothing is passed by in silence."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP

from infra import faust_app
from infra.faust_app import Batch, _Consumer
from infra.kafka import KafkaConfig, Position, Producer, Record, TransactionalProducer, end_offsets
from infra.micro_batches import _Buffer, _records
from infra.settings import Settings
from infra.watchdog import STALLED
from tests.stack import Stack
from tests.usage.making import NOON
from tests.waiting import eventually

TOPIC = "billing.events"

# Reads from the offset given until it is told to stop, and writes what it got as JSON lines. `failing` names a way to
# fail (`start`: never to begin), or `ends`: where a partition ends with what nobody reads, it writes where that ends.
_READER = """
import asyncio, json, os, sys, threading
from infra import faust_app, telemetry
from infra.errors import Transient
from infra.settings import Settings

start, out, failing = int(sys.argv[1]), sys.argv[2], sys.argv[3]
telemetry.configure("warning", "reader")
app = faust_app.create_app(
    "reader", Settings.from_env(os.environ), topics=["billing.events"],
    stored_offsets=lambda positions: threading.Event().wait() if failing == "start" else {
        position: start for position in positions if position[1] == 0
    },
)
passes = []

def apply(batch):
    passes.append(batch)
    if failing == "transient" and len(passes) == 1:
        raise Transient("once")
    if failing == "bug":
        raise ValueError("always")
    with open(out, "a") as file:
        if not batch:
            file.write(json.dumps([batch.next_offset, "end", batch.follows]) + "\\n")
        for record in batch:
            file.write(json.dumps([record.offset, record.value and record.value.decode(), batch.follows]) + "\\n")

@app.agent(faust_app.source(app), concurrency=1)
async def read(stream):
    async for batch in faust_app.micro_batches(stream, 500, 0.01, tell_ends=failing == "ends"):
        await faust_app.apply_or_exit(apply, batch)

sys.exit(faust_app.run(app))
"""


class Reader:
    """A worker process that notes what it reads."""

    def __init__(self, stack: Stack, settings: Settings, folder: Path, start: int, failing: str = "no") -> None:
        self.out = folder / f"read-{start}-{failing}.jsonl"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(start), str(self.out), failing], env=stack.environment(settings)
        )

    def read(self) -> list[tuple[int, str | None, int]]:
        if not self.out.exists():
            return []
        return [tuple(json.loads(line)) for line in self.out.read_text().splitlines()]

    def values(self) -> list[str | None]:
        return [value for _, value, _ in self.read()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(240)


def transaction(config: KafkaConfig, *values: str, commit: bool = True) -> None:
    producer = TransactionalProducer(config, "writer")
    producer.init()
    producer.begin()
    for value in values:
        producer.send(TOPIC, value.encode(), key="t", headers={}, partition=0)
    producer.flush()
    if commit:
        producer.commit()
    else:
        producer.abort()
    producer.close()


@pytest.fixture(scope="module")
def written(stack: Stack) -> Settings:
    """A log with commit, abort, commit, abort, and a record without a value at its end."""
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    config = KafkaConfig.of(settings)
    transaction(config, "a", "b")
    transaction(config, "never", "happened", commit=False)
    transaction(config, "c")
    transaction(config, "nor this", commit=False)
    transaction(config, "d")
    return settings


def test_aborted_records_are_not_seen(stack: Stack, written: Settings, tmp_path: Path) -> None:
    reader = Reader(stack, written, tmp_path, start=0)
    eventually(lambda: "d" in reader.values())
    assert reader.values() == ["a", "b", "c", "d"]
    assert reader.stop() == 0


def test_reading_starts_at_our_offset_though_the_groups_is_ahead(
    stack: Stack, written: Settings, tmp_path: Path
) -> None:
    first = Reader(stack, written, tmp_path, start=0)
    eventually(lambda: "d" in first.values())
    assert first.stop() == 0  # the group's offset is committed now, at the end
    again = Reader(stack, written, tmp_path, start=1)
    eventually(lambda: "d" in again.values())
    assert again.values() == ["b", "c", "d"]
    # 2 is the marker of the first commit: the log was looked at, and holds no record up to the next.
    assert again.stop() == 0
    after_a_marker = Reader(stack, written, tmp_path, start=2)
    eventually(lambda: "d" in after_a_marker.values())
    assert after_a_marker.read()[0][1:] == ("c", 2)
    assert after_a_marker.stop() == 0


def test_the_end_of_a_log_is_told_where_nobody_reads_it(stack: Stack, written: Settings, tmp_path: Path) -> None:
    """Once it was read up to there, and once."""
    end = end_offsets(KafkaConfig.of(written), TOPIC, [0])[0]
    reader = Reader(stack, written, tmp_path, start=0, failing="ends")
    eventually(lambda: "end" in reader.values(), within_s=60)
    (last,) = [offset for offset, value, _ in reader.read() if value == "d"]
    assert last < end - 1
    assert reader.values() == ["a", "b", "c", "d", "end"]
    assert reader.read()[-1] == (end, "end", last + 1)
    assert reader.stop() == 0


def test_an_error_that_passes_is_repeated_in_place(stack: Stack, written: Settings, tmp_path: Path) -> None:
    reader = Reader(stack, written, tmp_path, start=0, failing="transient")
    eventually(lambda: "d" in reader.values())
    assert reader.values() == ["a", "b", "c", "d"]
    assert reader.stop() == 0


def test_a_bug_ends_the_process_and_passes_nothing_by(stack: Stack, written: Settings, tmp_path: Path) -> None:
    reader = Reader(stack, written, tmp_path, start=0, failing="bug")
    assert reader.process.wait(240) == faust_app.CRASHED
    assert reader.read() == []


def test_a_record_without_a_value_is_a_record(stack: Stack, tmp_path: Path) -> None:
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    config = KafkaConfig.of(settings)
    raw = confluent_kafka.Producer(config.client())
    raw.produce(config.named(TOPIC), None, b"t", partition=0)
    raw.produce(config.named(TOPIC), b"after", b"t", partition=0)
    assert raw.flush(120) == 0
    reader = Reader(stack, settings, tmp_path, start=0)
    eventually(lambda: "after" in reader.values())
    assert reader.values() == [None, "after"]
    assert reader.stop() == 0


def test_a_stored_offset_beyond_the_log_is_not_taken_for_its_beginning(
    stack: Stack, written: Settings, tmp_path: Path
) -> None:
    """What lies below is not read again as if it were new."""
    end = end_offsets(KafkaConfig.of(written), TOPIC, [0])[0]
    reader = Reader(stack, written, tmp_path, start=end)
    producer = Producer(KafkaConfig.of(written))
    producer.send(TOPIC, b"new", key="t", headers={}, partition=0)
    producer.flush()
    eventually(lambda: "new" in reader.values())
    assert reader.values() == ["new"]
    assert reader.stop() == 0


def record(offset: int, partition: int = 0, size: int = 1) -> Record:
    return Record(TOPIC, partition, offset, b"t", b"x" * size, {}, (), NOON)


def filled(*records: Record, max_records: int = 3, max_bytes: int = 1000) -> _Buffer:
    buffer = _Buffer(max_records, max_bytes)
    for each in records:
        buffer.add([each], each.offset)
    return buffer


def offsets(batch: Batch | None) -> list[tuple[int, int]]:
    return [(each.partition, each.offset) for each in batch or ()]


def test_batches_hold_one_partition_and_take_turns() -> None:
    buffer = filled(*(record(offset, partition) for offset in range(4) for partition in (0, 1)))
    assert offsets(buffer.take()) == [(0, 0), (0, 1), (0, 2)]
    assert offsets(buffer.take()) == [(1, 0), (1, 1), (1, 2)]
    assert offsets(buffer.take()) == [(0, 3)]
    assert offsets(buffer.take()) == [(1, 3)]
    assert buffer.take() is None
    assert not buffer.filled.is_set()


def test_batches_are_bounded_in_bytes_but_hold_a_record() -> None:
    buffer = filled(record(0, size=2000), record(1, size=400), record(2, size=700))
    assert offsets(buffer.take()) == [(0, 0)]
    assert offsets(buffer.take()) == [(0, 1), (0, 2)]


def test_each_batch_knows_what_it_follows() -> None:
    buffer = _Buffer(2, 1000)
    for follows, offset in ((0, 0), (1, 5), (6, 6), (7, 9)):
        buffer.add([record(offset)], follows)
    taken: list[Any] = [buffer.take(), buffer.take()]
    assert [(each.follows, each[0].offset) for each in taken] == [(0, 0), (6, 6)]


def test_what_was_fetched_together_is_cut_into_batches_that_follow_each_other() -> None:
    buffer = _Buffer(2, 1000)
    buffer.add([record(offset) for offset in (3, 4, 7)], 2)
    buffer.add([record(offset) for offset in (8, 9)], 8)
    taken: list[Any] = [buffer.take(), buffer.take(), buffer.take()]
    assert [(each.follows, [one.offset for one in each]) for each in taken] == [(2, [3, 4]), (5, [7, 8]), (9, [9])]
    assert buffer.take() is None
    assert buffer.next_offsets == {(TOPIC, 0): 10}


def fetched(*headers: tuple[str, bytes | None], at_ms: int = 0) -> Any:
    return SimpleNamespace(offset=1, timestamp=at_ms, key=b"t", value=b"v", headers=headers)


def test_headers_are_told_by_name_and_a_repeated_one_is_told_apart() -> None:
    plain, twice, empty = _records(
        (TOPIC, 0),
        [fetched(("a", b"1"), ("b", b"2")), fetched(("a", b"1"), ("a", b"2"), ("b", b"")), fetched(("a", None))],
    )
    assert (plain.headers, plain.repeated) == ({"a": b"1", "b": b"2"}, ())
    assert (twice.headers, twice.repeated) == ({"a": b"2", "b": b""}, ("a",))
    assert (empty.headers, empty.repeated) == ({"a": b""}, ())


def test_records_that_were_fetched_together_keep_their_own_times() -> None:
    at_ms = int(NOON.timestamp() * 1000)
    made = _records((TOPIC, 0), [fetched(at_ms=at_ms), fetched(at_ms=at_ms), fetched(at_ms=at_ms + 1)])
    assert [each.appended_at - NOON for each in made] == [timedelta(0), timedelta(0), timedelta(milliseconds=1)]


def test_a_partition_that_is_read_anew_is_forgotten() -> None:
    buffer = filled(record(5), record(6), record(0, partition=1))
    buffer.forget((TOPIC, 0))
    assert offsets(buffer.take()) == [(1, 0)]


def test_a_partition_that_is_taken_away_while_its_batch_is_applied_is_no_error() -> None:
    """Or each rebalance under load would end the process."""

    def highwater(_: Any) -> int:
        raise AssertionError("Partition is not assigned")

    consumer = SimpleNamespace(highwater=highwater)
    app: Any = SimpleNamespace(watchdog=None, consumer=consumer, settings=SimpleNamespace(topic=str))
    faust_app.report_lag(app, Batch([], 0, position=("usage.events", 0), next_offset=7))


def test_a_reader_that_never_begins_is_ended(stack: Stack, written: Settings, tmp_path: Path) -> None:
    """Though it holds nothing: the group says that the partition is read, and it is not."""
    hasty = written.model_copy(update={"stall_timeout": timedelta(seconds=3)})
    reader = Reader(stack, hasty, tmp_path, start=0, failing="start")
    assert reader.process.wait(120) == STALLED
    assert reader.values() == []


def test_a_seek_that_was_overtaken_has_not_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust lets it run on beside the next one: of the assignment before, with offsets that were asked for earlier."""
    first_asked, first_goes_on = asyncio.Event(), asyncio.Event()
    asked = 0

    async def stored(self: Any, positions: set[Position]) -> dict[Position, int]:
        nonlocal asked
        asked += 1
        if asked == 1:
            first_asked.set()
            await first_goes_on.wait()
        return dict.fromkeys(positions, asked)

    async def nothing(*_: Any) -> dict[Any, int]:
        return {}

    monkeypatch.setattr(_Consumer, "_stored", stored)
    monkeypatch.setattr(_Consumer, "seek_wait", nothing)
    monkeypatch.setattr(Consumer, "seek_to_committed", nothing)
    assigned = [TP(TOPIC, 0)]
    monkeypatch.setattr(_Consumer, "assignment", lambda _: set(assigned))

    async def overtaken() -> dict[Position, int]:
        settings = SimpleNamespace(topic=str, topic_prefix="")
        consumer = object.__new__(_Consumer)
        consumer.app = SimpleNamespace(settings=settings, sources=(TOPIC,), watchdog=None)  # type: ignore[assignment]
        consumer._seeking, consumer._after = asyncio.Lock(), {}
        before = asyncio.ensure_future(consumer.seek_to_committed())
        await first_asked.wait()
        assigned.append(TP(TOPIC, 1))
        after = asyncio.ensure_future(consumer.seek_to_committed())
        asyncio.get_running_loop().call_soon(first_goes_on.set)  # once `after` went as far as it can by itself
        await asyncio.gather(before, after)
        return consumer.starts

    assert asyncio.run(overtaken()) == {(TOPIC, 0): 2, (TOPIC, 1): 2}
