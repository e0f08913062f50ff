"""What a producer accepted outlives it: on disk, with its ids, whatever killed it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from infra.kafka import KafkaConfig, scan
from infra.settings import Settings
from schemas.codec import decode_usage
from tallybook_sdk import Delivery, Fsync, NotDelivered, SpoolUnusable, UsageProducer
from tallybook_sdk import spool as spools
from tallybook_sdk.spool import Spool
from tests.stack import Stack
from tests.usage.test_sdk import GOOD, NOBODY
from tests.waiting import eventually


def left(folder: Path) -> list[bytes]:
    """What the next producer would send; the folder stays as it is."""
    spool = Spool(folder, "o")
    try:
        return [encoded for _, encoded in spool.left]
    finally:
        spool.close()


def test_what_is_not_settled_is_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "o")
    assert [spool.append(each) for each in (b"a", b"b", b"c", b"d")] == [1, 2, 3, 4]
    spool.settle(2, 2)
    spool.abandon()  # as if killed
    assert left(tmp_path) == [b"a", b"d"]
    assert left(tmp_path) == [b"a", b"d"]


def test_a_spool_without_anything_left_leaves_no_segment(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "o")
    spool.append(b"a")
    spool.settle(1, 1)
    spool.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert left(tmp_path) == []


def test_settled_segments_are_deleted_as_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 200)
    spool = Spool(tmp_path, "o")
    for _ in range(100):
        number = spool.append(b"x" * 50)
        if number > 3:
            spool.settle(number - 3, 1)
    assert len(list(tmp_path.glob("*.spool"))) < 6
    spool.abandon()
    assert len(left(tmp_path)) == 3


@pytest.mark.parametrize("torn", [b"\0", b"\0\0\0\x0a", b"\xff" * 40, b"\0\0\0\x0a\0\0\0\0garbage..."])
def test_a_torn_end_costs_only_what_was_torn(tmp_path: Path, torn: bytes) -> None:
    spool = Spool(tmp_path, "o")
    spool.append(b"a")
    spool.abandon()
    (segment,) = tmp_path.glob("*.spool")
    with segment.open("ab") as file:
        file.write(torn)
    assert left(tmp_path) == [b"a"]
    (aside,) = tmp_path.glob("*.damaged")
    assert aside.read_bytes() == torn


def test_a_record_cut_off_anywhere_leaves_those_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "o")
    for each in (b"first", b"second"):
        spool.append(each)
    spool.abandon()
    (segment,) = tmp_path.glob("*.spool")
    whole = segment.read_bytes()
    for cut in range(len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / segment.name).write_bytes(whole[:cut])
        assert left(folder) == ([b"first"] if cut >= len(whole) - len(b"second") - 17 else [])


def test_a_full_disk_refuses_the_event_and_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "o")
    spool.append(b"a")
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:5]))
        with pytest.raises(OSError, match="disk is full"):
            spool.append(b"b")
    spool.append(b"c")
    spool.abandon()
    assert left(tmp_path) == [b"a", b"c"]


def test_two_processes_cannot_share_a_spool(tmp_path: Path) -> None:
    with (
        UsageProducer(NOBODY, "acme", spool=tmp_path, kafka={"log_level": 0}),
        pytest.raises(SpoolUnusable, match=f"process {os.getpid()} has it"),
    ):
        UsageProducer(NOBODY, "acme", spool=tmp_path)
    with pytest.raises(SpoolUnusable, match=r"events of usage\.events of acme, not of usage\.events of bolt"):
        UsageProducer(NOBODY, "bolt", spool=tmp_path)


@pytest.mark.parametrize("fsync", list(Fsync))
def test_an_unreachable_broker_leaves_all_in_the_spool(tmp_path: Path, fsync: Fsync) -> None:
    quick = {"delivery.timeout.ms": 200, "log_level": 0}
    producer = UsageProducer(NOBODY, "acme", source="s", spool=tmp_path, fsync=fsync, kafka=quick, batch_events=2)
    for number in range(5):
        producer.send(replace(GOOD, id=str(number)))
    with pytest.raises(NotDelivered, match="the spool keeps them") as failed:
        producer.close(timedelta(milliseconds=600))
    assert sorted(each.id for each in failed.value.under_way) == ["0", "1", "2", "3", "4"]
    assert len(left_of(tmp_path, "acme")) == 5


def left_of(folder: Path, tenant: str) -> list[bytes]:
    spool = Spool(folder, f"usage.events of {tenant}")
    spool.abandon()
    return [encoded for _, encoded in spool.left]


PROGRAM = """
import sys
from datetime import UTC, datetime, timedelta
from tallybook_sdk import UsageEvent, UsageProducer

bootstrap, prefix, folder = sys.argv[1:]
producer = UsageProducer(bootstrap, "t-spool", source="s", spool=folder, topic_prefix=prefix, batch_events=10,
                         linger=timedelta(hours=1), kafka={"log_level": 0})
for number in range(25):
    producer.send(UsageEvent(type="api", customer="c1", time=datetime(2026, 3, 10, tzinfo=UTC), id=str(number)))
print("accepted", flush=True)
sys.stdin.read()
"""


def test_a_killed_producer_leaves_its_events_to_the_next(stack: Stack, tmp_path: Path) -> None:
    alone = stack.fresh(usage_partitions=1)
    command = [sys.executable, "-c", PROGRAM, NOBODY, alone.topic_prefix, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"accepted\n"
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    reports: list[Delivery] = []
    with UsageProducer(
        alone.kafka, "t-spool", source="s", spool=tmp_path, topic_prefix=alone.topic_prefix, on_delivery=reports.append
    ):
        eventually(lambda: len(reports) == 25)
    assert sorted(int(each.event.id) for each in reports) == list(range(25))
    assert ids_in(alone) == [str(number) for number in range(25)]
    assert list(tmp_path.glob("*.spool")) == []


def ids_in(settings: Settings) -> list[str]:
    """Ids in the log, sorted by number."""
    return sorted(
        (
            event.id
            for records in scan(KafkaConfig.of(settings), "usage.events", {0: 0})
            for record in records
            for event in decode_usage(record.value).events  # type: ignore[union-attr]
        ),
        key=int,
    )
