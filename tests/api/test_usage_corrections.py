"""Taking usage back and putting it right over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from infra import postgres
from infra.errors import Transient
from services.usage_placing import Layout, Spreads, spread_of
from tests.api.edge import Client, Edge
from tests.api.test_usage_reads import Counting, subscribe, usage

__all__ = ["usage"]


def applied(usage: Counting) -> None:
    """Let the corrections that the broker has reach the log of `usage`, and apply all."""
    for each in usage.edge.broker.corrections:
        usage.log.append(each, key=usage.client.tenant.encode(), at=usage.edge.parts.clock.now())
    usage.edge.broker.corrections.clear()
    usage.apply()


def told(usage: Counting, id: str) -> Any:
    return usage.client.get(f"/v1/usage/events/test/{id}").json()


def body(usage: Counting, **more: Any) -> dict[str, Any]:
    made = {"type": "call", "customer": "c1", "time": usage.began.isoformat(), "properties": {"bytes": "7"}}
    return made | {"reason": "wrong amount"} | more


def test_a_voided_event_is_told_and_does_not_count(usage: Counting) -> None:
    subscribe(usage.client, "c1", usage.began - timedelta(days=1))
    usage.send("e1", "e2", bytes="5")
    answer = usage.client.post("/v1/usage/events/test/e1/void", {"reason": "a test run"}, Idempotency_Key=None)
    assert (answer.status_code, answer.json()) == (202, {"source": "test", "id": "e1", "status": "accepted"})
    applied(usage)
    assert told(usage, "e1")["fate"] == told(usage, "e1")["counted"]["fate"] == "voided"
    assert told(usage, "e2")["fate"] == "counted"
    assert [each["id"] for each in usage.client.get("/v1/usage/events").json()["data"]] == ["e2"]
    assert [each["id"] for each in usage.client.get("/v1/usage/events?meter=bytes").json()["data"]] == ["e2"]


def test_an_amended_event_is_told_as_it_is_now(usage: Counting) -> None:
    subscribe(usage.client, "c1", usage.began - timedelta(days=1))
    usage.send("e1", bytes="5")
    answer = usage.client.send("PUT", "/v1/usage/events/test/e1", body(usage), Idempotency_Key=None)
    assert answer.status_code == 202, answer.text
    applied(usage)
    found = told(usage, "e1")
    assert (found["fate"], found["counted"]["properties"]) == ("amended", {"bytes": "7"})
    assert [(each["meter"], each["quantity"]) for each in found["counted"]["measured"]] == [
        ("bytes", "7"),
        ("calls", "1"),
    ]
    assert found["counted"]["position"] == {"partition": usage.log.partition, "offset": 2, "index": 0}


def test_a_correction_of_what_nobody_knows_is_told_as_refused(usage: Counting) -> None:
    usage.client.post("/v1/usage/events/test/none/void", {"reason": "why not"})
    applied(usage)
    found = told(usage, "none")
    assert (found["fate"], found["counted"]) == ("rejected", None)
    assert (found["refusals"][0]["code"], found["refusals"][0]["events"]) == ("unknown_event", 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "unheard"}, "unknown_meter"),
        ({"properties": {"bytes": "many"}}, "invalid_decimal"),
        ({"time": "2010-01-01T00:00:00Z"}, "too_late"),
        ({"customer": ""}, "invalid_customer"),
        ({"reason": ""}, "invalid_text"),
        ({"source": "other"}, "unknown_field"),
    ],
)
def test_a_bad_amendment_is_refused_at_once(usage: Counting, changes: dict[str, Any], code: str) -> None:
    answer = usage.client.send("PUT", "/v1/usage/events/test/e1", body(usage, **changes))
    assert answer.status_code == 422, answer.text
    assert code in (answer.json()["code"], answer.json()["errors"][0]["code"])
    assert usage.edge.broker.corrections == []


def test_a_source_with_slashes_is_named_whole(edge: Edge, client: Client) -> None:
    client.post("/v1/usage/events/https://a.example/x/e1/void", {"reason": "oops"})
    [void] = edge.broker.corrections
    edge.broker.corrections.clear()
    assert (getattr(void, "source", ""), getattr(void, "id", "")) == ("https://a.example/x", "e1")


def test_a_broker_that_does_not_answer_is_unavailable(edge: Edge, client: Client) -> None:
    edge.broker.error = Transient("Kafka did not acknowledge")
    assert client.post("/v1/usage/events/test/e1/void", {"reason": "oops"}).status_code == 503


@pytest.fixture
def spread(usage: Counting) -> Layout:
    """The usage of the tenant is spread over two partitions, since yesterday."""
    layout = usage.edge.parts.layout
    with postgres.transaction(usage.edge.workers) as tx:
        tx.execute(
            "INSERT INTO app.usage_spread (tenant_id, effective_from, partitions) VALUES (%s, %s, 2)",
            (usage.client.tenant, usage.began - timedelta(days=1)),
        )
    return layout


def scattered(usage: Counting, layout: Layout) -> str:
    """An id whose partition follows from the time."""
    known = spreads_of(usage)
    ids = (f"e{number}" for number in range(100))
    return next(each for each in ids if len(layout.candidates(usage.client.tenant, known, "test", each)) > 1)


def spreads_of(usage: Counting) -> Spreads:
    with postgres.transaction(usage.edge.workers) as tx:
        return spread_of(tx, usage.client.tenant)


def test_a_void_of_spread_usage_goes_where_its_event_counted(usage: Counting, spread: Layout) -> None:
    id = scattered(usage, spread)
    usage.send(id)
    usage.apply()
    assert usage.client.post(f"/v1/usage/events/test/{id}/void", {"reason": "oops"}).status_code == 202
    assert usage.edge.broker.corrected_in[-1] == usage.log.partition
    usage.edge.broker.corrections.clear()


def test_a_void_of_spread_usage_that_is_not_counted_yet_needs_its_time(usage: Counting, spread: Layout) -> None:
    id = scattered(usage, spread)
    answer = usage.client.post(f"/v1/usage/events/test/{id}/void", {"reason": "oops"})
    assert (answer.status_code, answer.json()["code"], answer.json()["errors"][0]["field"]) == (
        422,
        "unknown_event",
        "time",
    )
    for days in (0, 2):
        at = usage.began - timedelta(days=days)
        told = {"reason": "oops", "time": at.isoformat()}
        assert usage.client.post(f"/v1/usage/events/test/{id}/void", told).status_code == 202
    home = spread.home(usage.client.tenant)
    assert usage.edge.broker.corrected_in[-2:] == [(home + 1) % spread.partitions, home]
    usage.edge.broker.corrections.clear()


def test_an_amendment_that_moves_spread_usage_elsewhere_is_refused_at_once(usage: Counting, spread: Layout) -> None:
    id = scattered(usage, spread)
    usage.send(id)
    usage.apply()
    home, counted_in = spread.home(usage.client.tenant), usage.log.partition
    moved_to = usage.began - timedelta(days=0 if counted_in == home else 2)
    moved = usage.client.send("PUT", f"/v1/usage/events/test/{id}", body(usage, time=moved_to.isoformat()))
    assert (moved.status_code, moved.json()["code"]) == (422, "key_mismatch")
    assert usage.edge.broker.corrections == []
