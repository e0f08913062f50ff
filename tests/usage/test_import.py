"""Importing a file: each line once, however often the import is killed; faults keep their lines and their reasons."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.errors import Rejected
from billing.metering import UsageBatch
from infra.kafka import KafkaConfig, scan
from schemas.codec import decode_usage
from services import usage_import
from services.usage_file import BEGINNING, Format, Mark
from services.usage_import import Import, Job, mark_of
from tallybook_sdk import Delivery, UsageEvent
from tests.stack import Stack

TIME = "2026-03-10T12:00:00Z"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "usage.csv"
    lines = [f"e{number},api,c,{TIME},{'x' * (number % 7)}\n" for number in range(100)]
    lines[10] = f"e10,,c,{TIME},\n"
    lines[60] = "e60,api\n"
    path.write_text("id,type,customer,time,note\n" + "".join(lines))
    return Job(path=path, form=Format.CSV, tenant="acme", source="file")


GOOD = [f"e{number}" for number in range(100) if number not in (10, 60)]


class Broker:
    """Takes events, reports when asked to, and forgets the rest when the process dies."""

    def __init__(self) -> None:
        self.waiting: list[tuple[UsageEvent, Callable[[Delivery], None]]] = []
        self.has: list[str] = []
        self.error: str | None = None

    def send(self, event: UsageEvent, report: Callable[[Delivery], None]) -> None:
        self.waiting.append((event, report))

    def deliver(self, count: int | None = None) -> None:
        batch, self.waiting = self.waiting[:count], self.waiting[count:] if count else []
        for event, report in batch:
            if self.error is None:
                self.has.append(event.id)
            report(Delivery(event, 0, 0, 0, self.error))


class Killed(BaseException):
    """As SIGKILL: nothing after it is written."""


def rejected(job: Job) -> list[tuple[int, str]]:
    return [(told["line"], told["field"]) for told in map(json.loads, job.rejected.read_text().splitlines())]


def test_a_file_is_sent_whole_and_its_faults_are_kept(job: Job) -> None:
    broker = Broker()
    outcome = Import(job, mark_of(job)).run(job.lines(BEGINNING), broker.send, broker.deliver)
    assert (outcome.delivered, outcome.rejected, outcome.is_complete) == (98, 2, True)
    assert broker.has == GOOD
    assert rejected(job) == [(12, "type"), (62, "")]
    assert json.loads(job.rejected.read_text().splitlines()[1])["text"] == "e60,api"
    assert not job.progress.exists()


@pytest.mark.parametrize("dies_at", range(1, 100, 7))
def test_killed_anywhere_nothing_is_lost_and_little_is_sent_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    monkeypatch.setattr(usage_import, "SAVE_LINES", 5)
    broker = Broker()
    run = Import(job, mark_of(job))

    def dying() -> Iterator[object]:
        for line in job.lines(BEGINNING):
            if line.number == dies_at + 1:
                monkeypatch.setattr(run, "save", lambda: None)
                raise Killed
            broker.deliver(max(0, len(broker.waiting) - 8))  # some are always under way
            yield line

    with pytest.raises(Killed):
        run.run(dying(), broker.send, broker.deliver)  # type: ignore[arg-type]
    broker.waiting = []
    sent = len(broker.has)
    mark = mark_of(job)
    outcome = Import(job, mark).run(job.lines(mark), broker.send, broker.deliver)
    assert set(broker.has) == set(GOOD)
    assert outcome.delivered <= 98 - sent + 5 + 8
    assert outcome.is_complete
    assert rejected(job) == [(12, "type"), (62, "")]
    assert not job.progress.exists()


def test_what_the_brokers_refused_is_sent_by_the_next_run(job: Job) -> None:
    broker = Broker()
    broker.error = "too large"
    outcome = Import(job, mark_of(job)).run(job.lines(BEGINNING), broker.send, broker.deliver)
    assert outcome.not_delivered == {"too large": 98}
    assert not outcome.is_complete
    broker.error = None
    mark = mark_of(job)
    assert mark == BEGINNING
    assert Import(job, mark).run(job.lines(mark), broker.send, broker.deliver).delivered == 98


def test_progress_of_another_import_is_refused_by_name(job: Job) -> None:
    broker = Broker()
    broker.error = "away"
    Import(job, mark_of(job)).run(job.lines(BEGINNING), broker.send, broker.deliver)
    other = Job(path=job.path, form=job.form, tenant="other", source="file")
    with pytest.raises(Rejected, match="another tenant; --again begins anew"):
        mark_of(other)
    stored = json.loads(job.progress.read_text())
    job.progress.write_text(json.dumps(stored | {"line": 50, "bytes": 1_000}))
    with pytest.raises(Rejected, match="another content"):
        mark_of(job)
    job.progress.write_text("{")
    with pytest.raises(Rejected, match="cannot be read"):
        mark_of(job)
    assert mark_of(job, again=True) == BEGINNING


def test_made_ids_are_the_same_whenever_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "usage.csv"
    path.write_text(f"type,customer,time\napi,c,{TIME}\napi,c,{TIME}\n")
    made = Job(path=path, form=Format.CSV, tenant="acme", source="file", makes_ids=True)

    def ids(after: Mark = BEGINNING) -> list[str]:
        return [each.event.id for each in made.lines(after) if isinstance(each.event, UsageEvent)]

    first = ids()
    assert len(set(first)) == 2
    assert ids() == first
    second = next(iter(made.lines(BEGINNING)))
    assert ids(Mark(second.number, second.end)) == first[1:]
    plain = Job(path=path, form=Format.CSV, tenant="acme", source="file")
    assert [each.event.field for each in plain.lines(BEGINNING)] == ["id"]  # type: ignore[union-attr]


def test_a_killed_process_goes_on_where_it_was(stack: Stack, tmp_path: Path) -> None:
    settings = stack.fresh(usage_partitions=1, billing_partitions=1)
    path = tmp_path / "usage.jsonl"
    with path.open("w") as file:
        for number in range(60_000):
            file.write(json.dumps({"id": f"e{number}", "type": "api", "customer": "c", "time": TIME}) + "\n")
        file.write("no json\n")

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", "usage", "import", str(path), "--tenant", "acme", "--json"]
        env = stack.environment(settings, **more)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, check=False)

    assert run(TALLYBOOK_FAILPOINT="import.after_save=kill@2").returncode == -9
    assert path.with_name("usage.jsonl.progress").exists()
    done = run()
    told = json.loads(done.stdout)
    assert (done.returncode, told["rejected"], told["is_complete"]) == (1, 1, True), done.stderr
    assert told["resumed_after"] > 0
    assert told["delivered"] == 60_000 - told["resumed_after"]
    seen: set[str] = set()
    for records in scan(KafkaConfig.of(settings), "usage.events", {0: 0}):
        for record in records:
            batch = decode_usage(record.value)
            assert isinstance(batch, UsageBatch)
            seen.update(each.id for each in batch.events)
    assert len(seen) == 60_000
    assert not path.with_name("usage.jsonl.progress").exists()
