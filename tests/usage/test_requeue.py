"""Refused usage on a real log: listed, shown with its original, and sent again once the cause is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from billing.ids import TenantId
from billing.metering import Meter, UsageBatch, UsageControl, UsageEvent
from infra import kafka, postgres
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import generation, usage
from projections.billing_set import apply_all
from projections.usage_events import Place
from services.usage_log import UsageLog
from tests.cli.test_commands import Run, runner
from tests.projections.history import CALLS, START, History
from tests.projections.usage_log import BOUNDS, append, calls, count_log
from tests.stack import Stack


@dataclass
class Shop:
    """A tenant whose catalogue has no meter yet for what it sends."""

    settings: Settings
    pool: postgres.Pool
    run: Run

    def measure(self, version: int, *meters: Meter) -> None:
        control = UsageControl(tenant=TenantId("acme"), version=version, meters=meters, bounds=BOUNDS, clock=START)
        append(self.settings, "acme", control, range(self.settings.usage_partitions))

    def send(self, *events: UsageEvent, times: int = 1) -> None:
        partition = kafka.partition_for("acme", self.settings.usage_partitions)
        append(self.settings, "acme", UsageBatch(tenant=TenantId("acme"), events=events), [partition] * times)

    def count(self) -> None:
        count_log(self.settings, self.pool)

    def counted(self) -> int:
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, usage.SET)
            row = tx.execute("SELECT count(*) FROM usage_identity").fetchone()
        assert row is not None
        return int(row[0])

    def project(self) -> None:
        """Register the tenant."""
        with postgres.transaction(self.pool) as tx:
            generation.enter(tx, "billing", writes=True)
            for event in History("acme").register().events:
                apply_all(tx, event)


@pytest.fixture
def shop(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    settings = stack.fresh(usage_partitions=2, billing_partitions=1)
    with postgres.worker_pool(settings) as pool:
        made = Shop(settings, pool, runner(stack.environment(settings), monkeypatch, capsys))
        made.project()
        yield made


def test_what_a_new_meter_takes_is_counted_once_after_a_requeue(shop: Shop) -> None:
    shop.measure(1)
    shop.send(*calls("ann", 3, START))
    shop.send(*calls("bob", 2, START))
    shop.count()
    assert shop.counted() == 0
    code, out, _ = shop.run("usage", "rejected", "list", "--json")
    listed = json.loads(out)
    assert (code, len(listed), {each["reason"] for each in listed}) == (0, 5, {"unknown_meter"})

    code, out, _ = shop.run("usage", "rejected", "requeue", "--all", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "5 events would be sent")
    shop.measure(2, CALLS)
    code, out, _ = shop.run("usage", "rejected", "requeue", listed[0]["position"])
    assert (code, out.splitlines()[-1]) == (0, "1 events sent")
    shop.count()
    assert shop.counted() == 1

    code, out, _ = shop.run("usage", "rejected", "requeue", "--all", "--code", "unknown_meter")
    assert (code, sorted(out.splitlines()[-1].split(", "))) == (0, ["1 events counted already", "4 events sent"])
    shop.run("usage", "rejected", "requeue", "--all")  # before the others are counted: the copies are duplicates
    shop.count()
    assert shop.counted() == 5
    code, out, _ = shop.run("usage", "rejected", "requeue", "--all")
    assert (code, out.splitlines()[-1]) == (0, "5 events counted already")
    _, out, _ = shop.run("usage", "show", listed[0]["id"], "--source", "test", "--json")
    assert json.loads(out)["fate"] == "unmatched"


def test_what_is_refused_again_stands_at_its_new_position(shop: Shop) -> None:
    shop.measure(1)
    shop.send(*calls("ann", 1, START))
    shop.count()
    shop.run("usage", "rejected", "requeue", "--all")
    shop.count()
    _, out, _ = shop.run("usage", "rejected", "list", "--json")
    assert len({each["position"] for each in json.loads(out)}) == 2


def test_a_refusal_is_shown_with_its_original(shop: Shop) -> None:
    shop.measure(1)
    shop.send(*calls("ann", 2, START))
    append(shop.settings, "acme", b"\xc3\x01no usage", [0])
    shop.count()
    _, out, _ = shop.run("usage", "rejected", "list", "--json")
    place = json.loads(out)[0]["position"]
    code, out, _ = shop.run("usage", "rejected", "show", place, "--json")
    shown = json.loads(out)
    assert (code, shown["event"]["id"], shown["counted_since"]) == (0, shown["id"], False)
    for words, code_ in ((("9/9",), 1), (("here",), 2), ((f"{place}/1",), 2)):
        assert shop.run("usage", "rejected", "show", *words)[0] == code_
    assert shop.run("usage", "rejected", "requeue")[0] == 2


def test_records_are_read_again_in_any_order_and_those_that_are_gone_are_missing(shop: Shop) -> None:
    shop.measure(1, CALLS)
    partition = kafka.partition_for("acme", 2)
    for customer, times in (("c0", 1), ("c1", 1), ("other", 247), ("c249", 1), ("other", 48), ("c298", 1), ("c299", 1)):
        shop.send(*calls(customer, 2, START), times=times)
    log = UsageLog(KafkaConfig.of(shop.settings))
    try:
        wanted = [Place(partition, offset, 1) for offset in (300, 1, 250, 2, 299)]
        found = log.events([*wanted, Place(partition, 1, 7), Place(partition, 0, 0), Place(partition, 10**6, 0)])
        assert {place: event["customer"] for place, event in found.items()} == {
            each: f"c{each.offset - 1}" for each in wanted
        }
        assert log.events([]) == {}
    finally:
        log.close()
