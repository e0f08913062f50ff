"""Taking usage back and putting it right over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from infra.errors import Transient
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
