"""The second count of the usage log: each hour adds up, and what was tampered with raises the alarm."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from billing.ids import TenantId
from billing.metering import UsageAmended, UsageVoided
from infra import kafka, postgres
from infra.errors import Conflict
from infra.kafka import KafkaConfig, partition_for
from infra.settings import Settings
from projections import generation, usage
from services.usage_recount import DIFFERING, UNACCOUNTED, Gap, Recount, differences, gaps
from tests.cli.test_commands import runner
from tests.projections.history import START
from tests.projections.usage_log import append, calls, count_log, cut_by_retention, measure_from_now_on, send
from tests.stack import Stack
from tests.waiting import eventually


class Counts:
    """A log with usage of two tenants, and both counts of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = postgres.worker_pool(settings, size=3)
        self.recount = Recount(settings, self.pool)
        for tenant in ("acme", "other"):
            measure_from_now_on(settings, tenant, START)
        self.sent = 0
        self.send("acme", 10)

    def send(self, tenant: str, count: int, prefix: str = "") -> None:
        send(self.settings, tenant, calls("ann", count, START, prefix))
        self.sent += count

    def aggregate(self) -> None:
        count_log(self.settings, self.pool)

    def count(self) -> None:
        """Until everything sent so far is counted a second time."""
        eventually(lambda: self.recount.step(0.1) == 0 and self.received() == self.sent)

    def received(self) -> int:
        return int(self.one("SELECT coalesce(sum(events), 0) FROM app.usage_received"))

    def end(self, partition: int) -> int:
        return kafka.end_offsets(KafkaConfig.of(self.settings), usage.TOPIC, [partition])[partition]

    def gaps(self) -> list[Gap]:
        with postgres.transaction(self.pool) as tx:
            return gaps(tx)

    def let_pass(self, hours: int) -> None:
        """As if what both counted, and what was cut, had been appended `hours` earlier."""
        earlier = f"- interval '{hours} hours'"
        self.tamper(f"UPDATE usage_fate SET hour = hour {earlier}")
        self.tamper(f"UPDATE app.usage_received SET hour = hour {earlier}")
        self.tamper(f"UPDATE app.usage_recount_gap SET since = since {earlier}, until = until {earlier}")

    def one(self, statement: str) -> int:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            row = tx.execute(statement).fetchone()
        assert row is not None
        return int(row[0])

    def tamper(self, statement: str) -> None:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            assert tx.execute(statement).rowcount > 0

    def close(self) -> None:
        self.recount.close()
        self.pool.close()


@pytest.fixture
def counts(stack: Stack) -> Iterator[Counts]:
    made = Counts(stack.fresh(usage_partitions=2, billing_partitions=1))
    yield made
    made.close()


def test_what_is_received_has_a_fate(counts: Counts) -> None:
    counts.send("acme", 4)  # the same ids again
    counts.send("other", 3)
    append(counts.settings, "acme", b"no usage", [0, 1])
    counts.sent += 2
    counts.aggregate()
    counts.count()
    assert counts.recount.check() == []
    assert counts.one("SELECT sum(received) FROM usage_fate") == counts.sent == 19
    assert counts.one("SELECT sum(duplicate) FROM usage_fate") == 4


@pytest.mark.parametrize(
    ("statement", "received", "accounted"),
    [
        ("UPDATE usage_fate SET received = received + 1, duplicate = duplicate + 1", 10, 11),
        ("UPDATE usage_fate SET received = received - 2, counted = counted - 2", 10, 8),
        ("DELETE FROM usage_fate", 10, 0),
        ("INSERT INTO usage_fate SELECT 'ghost', hour, partition, 1, 1, 0, 0, 0 FROM usage_fate", 0, 1),
    ],
)
def test_a_tampered_fate_raises_the_alarm(counts: Counts, statement: str, received: int, accounted: int) -> None:
    counts.aggregate()
    counts.count()
    assert counts.recount.check() == []
    counts.tamper(statement)
    with capture_logs() as said:
        counts.recount.check_when_due()
        counts.recount.check()
    alarms = [each for each in said if each["event"] == "usage does not add up"]
    assert [(each["received"], each["accounted"]) for each in alarms] == [(received, accounted)]  # once, not each time
    assert alarms[0]["log_level"] == "error"
    assert (DIFFERING._value.get(), UNACCOUNTED._value.get()) == (1, abs(received - accounted))


def test_an_alarm_ends_when_it_adds_up_again(counts: Counts) -> None:
    counts.aggregate()
    counts.count()
    counts.tamper("UPDATE usage_fate SET received = received + 1, rejected = rejected + 1")
    counts.recount.check(datetime.now(UTC) - timedelta(hours=1.5))
    assert DIFFERING._value.get() == 1
    counts.tamper("UPDATE usage_fate SET received = received - 1, rejected = rejected - 1")
    with capture_logs() as said:
        counts.recount.check()
    assert [each["event"] for each in said] == ["usage adds up again"]
    assert DIFFERING._value.get() == 0


def test_whoever_is_behind_is_not_taken_for_a_loss(counts: Counts) -> None:
    counts.count()
    assert counts.recount.check() == []  # nothing is aggregated
    counts.aggregate()
    assert counts.recount.check() == []
    counts.send("acme", 5, "more-")
    counts.aggregate()
    assert counts.recount.check() == []  # the aggregator is ahead
    counts.send("acme", 5, "again-")
    counts.count()
    assert counts.recount.check() == []  # the recount is ahead
    counts.aggregate()
    assert counts.recount.check() == []
    # An hour that both have left behind is compared though the aggregator is ahead again.
    counts.send("acme", 1, "last-")
    counts.aggregate()
    counts.tamper(
        "UPDATE usage_fate SET hour = hour - interval '3 hours', received = received + 1, counted = counted + 1"
    )
    counts.tamper(
        "INSERT INTO app.usage_received SELECT tenant_id, hour - interval '3 hours', partition, events, 0, 1"
        " FROM app.usage_received"
    )
    with postgres.transaction(counts.pool) as tx:
        assert [(each.received, each.accounted) for each in differences(tx)] == [(20, 22)]


def test_corrections_are_no_events_and_every_hour_adds_up(
    counts: Counts, stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = calls("ann", 10, START)
    tenant = TenantId("acme")
    home = partition_for("acme", counts.settings.usage_partitions)
    for message, partition in (
        (UsageVoided(tenant=tenant, source=first.source, id=first.id, reason="a test run"), home),
        (UsageVoided(tenant=tenant, source=first.source, id=first.id, reason="again"), home),
        (UsageVoided(tenant=tenant, source=first.source, id=second.id, reason="in the wrong place"), 1 - home),
        (UsageVoided(tenant=tenant, source=first.source, id="nobody", reason="why not"), home),
        (UsageAmended(tenant=tenant, event=replace(second, customer="bob"), reason="wrong customer"), home),
        (UsageAmended(tenant=tenant, event=replace(first, customer="bob"), reason="too late"), home),
        (UsageAmended(tenant=tenant, event=replace(second, type="unheard"), reason="no meter"), home),
    ):
        append(counts.settings, "acme", message, [partition])
    counts.send("acme", 10)
    counts.aggregate()
    counts.count()
    assert counts.recount.check() == []
    names = ("received", "counted", "duplicate", "rejected", "voided", "amended", "repeated")
    told = [counts.one(f"SELECT sum({name}) FROM usage_fate WHERE tenant_id = 'acme'") for name in names]
    assert dict(zip(names, told, strict=True)) == {
        "received": 20,
        "counted": 10,
        "duplicate": 10,
        "rejected": 0,
        "voided": 1,
        "amended": 1,
        "repeated": 1,
    }
    assert counts.one("SELECT count(*) FROM usage_rejected WHERE events = 0") == 4
    run = runner(stack.environment(counts.settings), monkeypatch, capsys)
    code, out, _ = run("reconcile", "--hours")
    assert (code, out.splitlines()[-1]) == (0, "every hour adds up, as far as both have counted")
    assert out.split()[:9] == ["tenant", "hour", "received", *names[1:3], "conflict", "rejected", "voided", "amended"]
    assert out.splitlines()[1].split()[3:] == ["20", "10", "10", "0", "0", "1", "1"]


def test_what_retention_took_before_it_was_counted_is_no_difference(
    counts: Counts, stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First the recount starts late, then it stands while more is cut; each time it compares the hours it knows."""
    home = partition_for("acme", counts.settings.usage_partitions)
    counts.aggregate()
    counts.tamper("UPDATE usage_fate SET hour = hour - interval '9 hours' WHERE tenant_id = 'acme'")
    cut_by_retention(counts.settings, home, counts.end(home))
    counts.recount.step(0.1)
    with capture_logs() as said:
        assert counts.recount.check() == []  # the log is empty: no hour is known to be whole
    assert said == []
    counts.send("acme", 2, "second-")
    counts.sent -= 10
    counts.count()
    counts.aggregate()
    counts.tamper("UPDATE usage_fate SET received = received + 1, rejected = rejected + 1")
    assert counts.recount.check() == []  # the first hour in the log may not be whole
    assert [(each.first_offset, each.since) for each in counts.gaps()] == [(0, None)]
    counts.let_pass(3)
    counts.send("acme", 3, "third-")
    counts.count()
    counts.aggregate()
    assert counts.recount.check() == []
    counts.send("acme", 4, "fourth-")
    counts.aggregate()
    counts.let_pass(2)
    counts.send("acme", 5, "fifth-")
    counts.aggregate()
    cut_by_retention(counts.settings, home, counts.end(home) - 1)
    late = Recount(counts.settings, counts.pool)
    try:
        eventually(lambda: late.step(0.1) == 5)
        assert late.check() == []
        began, again = counts.gaps()
        assert began.until is not None
        assert (again.since, again.until) == (began.until + timedelta(hours=3), began.until + timedelta(hours=5))
        counts.let_pass(1)
        counts.send("acme", 6, "sixth-")
        counts.aggregate()
        eventually(lambda: late.step(0.1) == 6)
        assert late.check() == []
        counts.tamper(f"UPDATE usage_fate SET received = 7, counted = 7 WHERE counted = 6 AND partition = {home}")
        assert [(each.received, each.accounted) for each in late.check()] == [(6, 7)]
    finally:
        late.close()
    code, out, _ = runner(stack.environment(counts.settings), monkeypatch, capsys)(
        "reconcile", "--hours", "--last", "2"
    )
    assert code == 1
    assert out.splitlines()[-2].startswith(f"note: usage.events/{home}: retention took offsets ")
    assert out.splitlines()[-2].endswith("h are not compared")


def test_nothing_is_counted_twice_by_a_second_instance_or_after_a_restart(counts: Counts) -> None:
    counts.count()
    second = Recount(counts.settings, counts.pool)
    try:
        second.step(0.1)
        counts.send("acme", 5, "more-")
        counts.count()

        def refused() -> bool:
            try:
                second.step(0.1)
            except Conflict:
                return True
            return False

        eventually(refused)
        second.rewind()
        second.step(0.1)
        assert counts.received() == counts.sent == 15
    finally:
        second.close()


def test_the_process_raises_the_alarm_by_itself_and_ends_it(counts: Counts, stack: Stack) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def shown(name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = re.search(rf"^tallybook_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    counts.aggregate()
    process = stack.start("recount", counts.settings, TALLYBOOK_METRICS_PORT=str(port))
    eventually(lambda: shown("usage_events_recounted_total") == counts.sent)
    assert shown("usage_hours_differing") == 0
    counts.tamper("UPDATE usage_fate SET received = received + 3, rejected = rejected + 3")
    eventually(lambda: (shown("usage_hours_differing"), shown("usage_events_unaccounted")) == (1, 3))
    counts.tamper("UPDATE usage_fate SET received = received - 3, rejected = rejected - 3")
    eventually(lambda: shown("usage_hours_differing") == 0)
    assert stack.stop(process) == 0
    lines = map(json.loads, (counts.settings.data / "logs" / "recount.log").read_text().splitlines())
    (alarm,) = (each for each in lines if each["event"] == "usage does not add up")
    assert (alarm["level"], alarm["tenant"], alarm["received"], alarm["accounted"]) == ("error", "acme", 10, 13)


def test_the_command_shows_the_hours(
    counts: Counts, stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner(stack.environment(counts.settings), monkeypatch, capsys)
    counts.aggregate()
    assert run("reconcile", "--hours")[0] == 69  # nobody counts a second time
    counts.count()
    code, out, _ = run("reconcile", "--hours")
    assert (code, out.splitlines()[-1]) == (0, "every hour adds up, as far as both have counted")
    counts.tamper("UPDATE usage_fate SET received = received + 1, conflict = conflict + 1")
    code, out, _ = run("reconcile", "--hours", "--json")
    told = json.loads(out)
    assert (code, told["balanced"]) == (1, False)
    assert [(each["received"], each["accounted"]) for each in told["differences"]] == [(10, 11)]
    assert told["hours"][0]["conflict"] == 1
