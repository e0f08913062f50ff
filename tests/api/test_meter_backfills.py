"""Backfills of a meter over HTTP: asked for, told, done, and refused before they begin."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from billing.backfilling import Backfill
from billing.metering import Filter
from services.usage_backfilling import Backfilling
from tests.api.edge import BOOK, Client
from tests.api.test_usage_reads import Counting, usage
from tests.usage.making import control
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
