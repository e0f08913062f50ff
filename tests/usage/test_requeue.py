"""Refused usage on a real log: listed, shown with its original, and sent again once the cause is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from billing.ids import TenantId
from billing.metering import Meter, UsageAmended, UsageBatch, UsageControl, UsageEvent, UsageVoided
from billing.placing import Spread
from infra import kafka, postgres
from infra.settings import Settings
from projections import generation, usage
from projections.billing_set import apply_all
from projections.usage_events import Place
from services.usage_log import UsageLog
from services.usage_placing import Layout
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

    def measure(self, version: int, *meters: Meter, spread: tuple[Spread, ...] = ()) -> None:
        control = UsageControl(
            tenant=TenantId("acme"), version=version, meters=meters, bounds=BOUNDS, clock=START, spread=spread
        )
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


def test_every_fate_is_listed_and_told_by_position(shop: Shop) -> None:
    shop.measure(1, CALLS)
    first, *others = calls("ann", 3, START)
    shop.send(first, *others, replace(first, properties={"other": "content"}))
    shop.send(first, replace(first, id="odd", type="unheard-of"))
    partition = kafka.partition_for("acme", 2)
    tenant = TenantId("acme")
    amended = UsageAmended(tenant=tenant, event=replace(others[0], customer="bob"), reason="bob's")
    append(shop.settings, "acme", amended, [partition])
    void = UsageVoided(tenant=tenant, source="test", id=others[1].id, reason="a test")
    append(shop.settings, "acme", void, [partition])
    shop.count()

    def listed(*words: str) -> list[tuple[str, str, str]]:
        code, out, err = shop.run("usage", "list", "--json", "--from", "2013-01-01", *words)
        assert code == 0, err
        return [(each["fate"], each["id"], each["position"]) for each in json.loads(out)]

    at = f"{partition}/"
    assert sorted(listed()) == [("unmatched", first.id, f"{at}1/0"), ("unmatched", others[0].id, f"{at}3/0")]
    assert listed("--fate", "voided") == [("voided", others[1].id, f"{at}1/2")]
    assert [each[1] for each in listed("--customer", "bob")] == [others[0].id]
    assert [each[1] for each in listed("--meter", CALLS.key, "--customer", "ann")] == [first.id]
    refused = {"duplicate": f"{at}2/0", "conflict": f"{at}1/3", "rejected": f"{at}2/1"}
    for fate, place in refused.items():
        _, out, _ = shop.run("usage", "list", "--json", "--fate", fate)
        assert [(each["fate"], each["position"]) for each in json.loads(out)] == [(fate, place)]
    assert shop.run("usage", "list", "--fate", "voided", "--meter", CALLS.key)[0] == 2
    assert shop.run("usage", "list", "--fate", "conflict", "--customer", "ann")[0] == 2

    fates = {}
    for place in (f"{at}1", f"{at}2", f"{at}3", f"{at}4"):
        code, out, _ = shop.run("usage", "at", place, "--json")
        assert code == 0
        fates |= {each["place"]: each["fate"] for each in json.loads(out)}
    assert fates == {
        f"{at}1/0": "unmatched",
        f"{at}1/1": "unmatched",
        f"{at}1/2": "voided",
        f"{at}1/3": "conflict",
        f"{at}2/0": "duplicate",
        f"{at}2/1": "rejected",
        f"{at}3": "applied",
        f"{at}4": "applied",
    }
    assert "is the one that counted" in shop.run("usage", "at", f"{at}2/0")[1]
    for word, code in ((f"{at}2/7", 1), (f"{at}99", 1), ("here", 2)):
        assert shop.run("usage", "at", word)[0] == code
    _, out, _ = shop.run("usage", "show", first.id, "--source", "test", "--json")
    told = json.loads(out)
    assert (told["counted"]["position"], told["duplicates"]) == (f"{at}1/0", 1)
    assert [each["position"] for each in told["copies"]] == [f"{at}2/0"]
    assert [each["reason"] for each in told["refusals"]] == ["id_conflict"]


def test_a_refused_void_of_spread_usage_goes_where_its_event_counted_by_now(shop: Shop) -> None:
    spread = (Spread(effective_from=START, partitions=2),)
    layout = Layout(2)
    event = next(each for each in calls("ann", 50, START) if layout.place("acme", spread, each) != layout.home("acme"))
    void = UsageVoided(tenant=TenantId("acme"), source=event.source, id=event.id, reason="a test run")
    with postgres.transaction(shop.pool) as tx:
        tx.execute("INSERT INTO app.usage_spread VALUES ('acme', %s, 2)", (START,))
    shop.measure(1, CALLS, spread=spread)
    append(shop.settings, "acme", void, range(2))
    shop.count()
    code, out, _ = shop.run("usage", "rejected", "requeue", "--all", "--json")
    assert (code, {each["outcome"] for each in json.loads(out)}) == (1, {"cannot be sent"})
    place = layout.place("acme", spread, event)
    append(shop.settings, "acme", UsageBatch(tenant=TenantId("acme"), events=(event,)), [place])
    shop.count()
    code, _, _ = shop.run("usage", "rejected", "requeue", "--all")
    shop.count()
    _, out, _ = shop.run("usage", "show", event.id, "--source", event.source, "--json")
    assert (code, json.loads(out)["fate"]) == (0, "voided")
    _, out, _ = shop.run("usage", "rejected", "list", "--json")
    assert len(json.loads(out)) == 2, "sent to where it counted alone"


def test_records_are_read_again_in_any_order_and_those_that_are_gone_are_missing(shop: Shop) -> None:
    shop.measure(1, CALLS)
    partition = kafka.partition_for("acme", 2)
    for customer, times in (("c0", 1), ("c1", 1), ("other", 247), ("c249", 1), ("other", 48), ("c298", 1), ("c299", 1)):
        shop.send(*calls(customer, 2, START), times=times)
    log = UsageLog(shop.settings)
    try:
        wanted = [Place(partition, offset, 1) for offset in (300, 1, 250, 2, 299)]
        found = log.events([*wanted, Place(partition, 1, 7), Place(partition, 0, 0), Place(partition, 10**6, 0)])
        assert {place: event["customer"] for place, event in found.items()} == {
            each: f"c{each.offset - 1}" for each in wanted
        }
        assert log.events([]) == {}
        assert log.record(partition, 250) is not None
        assert [log.record(*each) for each in ((partition, 10**6), (1 - partition, 10**6), (2, 0))] == [None] * 3
    finally:
        log.close()
