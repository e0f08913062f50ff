"""Backfills of a meter over HTTP: asked for, told, done, and refused before they begin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest

from billing.backfilling import Backfill
from billing.metering import Filter, Meter
from infra import postgres
from schemas.codec import encode_usage
from services.api import meter_backfills
from services.usage_aggregator import UsageStore
from services.usage_backfilling import Backfilling
from tests.api.edge import BOOK, Client, Edge
from tests.api.test_usage_reads import Counting, usage
from tests.stack import Stack
from tests.usage.making import Log, control
from tests.usage.test_backfilling import reading

__all__ = ["usage"]

PATH = "/v1/meters/calls/backfills"


def told(usage: Counting, version: int) -> None:
    """What the meter publisher makes of the command: calls of eu only, from an hour before the events on."""
    (calls, bytes_) = BOOK.meters
    eu = replace(calls, filters=(Filter(property="region", values=("eu",)),))
    begins = usage.began - timedelta(hours=1)
    asked = control(
        version,
        meters=(eu, bytes_),
        tenant=usage.client.tenant,
        backfill=Backfill(meter="calls", from_time=begins),
    )
    usage.log.append(asked, key=usage.client.tenant.encode(), at=usage.edge.parts.clock.now())
    usage.apply()


def quantity(usage: Counting) -> Any:
    found = usage.client.get(f"/v1/usage?meter=calls&from={usage.began.strftime('%Y-%m-%dT%H:%M:%SZ')}").json()
    return [each["quantity"] for each in found["data"]]


def test_a_backfill_is_accepted_told_and_done(usage: Counting, other: Client) -> None:
    usage.send("e1", "e2", region="us")
    usage.send("e3", region="eu")
    usage.apply()
    asked = usage.client.post(PATH, {"from": (usage.began - timedelta(hours=1)).isoformat()})
    assert asked.status_code == 202, asked.text
    assert usage.client.get(PATH).json()["data"] == []
    told(usage, asked.json()["position"])
    (shown,) = usage.client.get(PATH).json()["data"]
    assert (shown["state"], shown["progress"], shown["partitions"], shown["to_time"]) == ("pending", "0.000", 1, None)
    assert quantity(usage) == ["3"]
    assert Backfilling(usage.edge.workers, reading(usage.log)).finish(usage.log.partition) == 1
    (shown,) = usage.client.get(PATH).json()["data"]
    assert (shown["state"], shown["progress"], shown["events"]) == ("done", "1.000", 3)
    assert quantity(usage) == ["1"]
    measured = usage.client.get("/v1/usage/events/test/e1").json()["counted"]["measured"]
    assert [each["meter"] for each in measured] == ["bytes"], "what counts no more is not told"
    assert other.get(PATH).json()["data"] == []


@pytest.fixture
def alone(stack: Stack) -> Iterator[Counting]:
    """Usage of a tenant that has the log for itself."""
    edge = Edge(stack.fresh(usage_partitions=1, billing_partitions=1))
    client = edge.seller("alone")
    log = Log()
    edge.usage_log.logs.append(log)
    log.append(control(meters=BOOK.meters, tenant="alone"), key=b"alone")
    store = UsageStore(edge.workers, edge.parts.layout, None)
    yield Counting(edge, client, log, store, edge.parts.clock.now().replace(microsecond=0) - timedelta(hours=1))
    edge.close()


def define(usage: Counting, meters: tuple[Meter, ...]) -> None:
    """As the meter publisher notes what it tells the usage log."""
    with postgres.transaction(usage.edge.workers) as tx:
        tx.execute(
            "INSERT INTO app.meter_set VALUES (%s, 2, %s)",
            (usage.client.tenant, encode_usage(control(2, meters=meters, tenant=usage.client.tenant))),
        )


def test_a_dry_run_tells_what_would_change_and_changes_nothing(
    alone: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.send("e1", "e2", region="us", bytes="10")
    alone.send("e3", region="eu", bytes="2.50")
    alone.send("e4", region="eu", bytes="1", customer="c2")
    alone.send("e5", region="us", bytes="1", customer="c3")
    alone.apply()
    (calls, bytes_) = BOOK.meters
    define(alone, (calls, replace(bytes_, filters=(Filter(property="region", values=("eu",)),))))
    begins = f"from={quote((alone.began - timedelta(hours=1)).isoformat())}"
    path = f"/v1/meters/bytes/backfills/dry-run?{begins}"
    told = alone.client.get(path)
    assert told.status_code == 200, told.text
    assert told.json() == {
        "events": 5,
        "unmeasured": 0,
        "customers": 2,
        "changes": [
            {"customer": "c1", "before": "22.5", "after": "2.5", "events_before": 3, "events_after": 1},
            {"customer": "c3", "before": "1", "after": "0", "events_before": 1, "events_after": 0},
        ],
    }
    assert [each["customer"] for each in alone.client.get(f"{path}&limit=1").json()["changes"]] == ["c1"]
    assert alone.client.get("/v1/meters/bytes/backfills").json()["data"] == []
    stranger = alone.edge.seller("stranger").get(path)
    assert (stranger.status_code, stranger.json()["code"]) == (422, "unknown_meter")
    for query, code in ((begins.replace("from", "to") + f"&{begins}", "out_of_range"), ("from=2026", "invalid_time")):
        refused = alone.client.get(f"/v1/meters/bytes/backfills/dry-run?{query}")
        assert (refused.status_code, refused.json()["code"]) == (422, code)
    for bound, allowed in (
        ("EVENTS_MAX", 5),
        ("BYTES_MAX", sum(len(each.value or b"") for each in alone.log.records[1:])),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(meter_backfills, bound, allowed)
            assert alone.client.get(path).status_code == 200
            changed.setattr(meter_backfills, bound, allowed - 1)
            assert alone.client.get(path).json()["code"] == "too_much_to_read"
    alone.edge.usage_log.first[0] = 3
    assert alone.client.get(path).json()["code"] == "log_too_short"


def test_what_cannot_be_done_is_refused_before_it_begins(usage: Counting) -> None:
    usage.send("e1", "e2")
    usage.apply()
    asked = {"from": usage.began.isoformat()}
    for path, body, code in (
        ("/v1/meters/nothing/backfills", asked, "unknown_meter"),
        (PATH, {"from": (usage.began - timedelta(days=40)).isoformat()}, "too_early"),
        (PATH, {**asked, "to": usage.began.isoformat()}, "out_of_range"),
    ):
        refused = usage.client.post(path, body)
        assert (refused.status_code, refused.json()["code"]) == (422, code), refused.text
    assert usage.client.post(PATH, {}).status_code == 422
