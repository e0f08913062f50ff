"""Usage over HTTP: answered when the broker has it; one bad event keeps no other from being taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from infra.errors import Transient
from tests.api.edge import Client, Edge


@pytest.fixture
def now(edge: Edge) -> str:
    return edge.parts.clock.now().isoformat()


def event(now: str, **changes: Any) -> dict[str, Any]:
    made = {
        "id": "e1",
        "source": "web",
        "type": "call",
        "customer": "acme",
        "time": now,
        "properties": {"bytes": "12.5"},
    }
    return made | changes


def test_an_event_is_accepted_once_the_broker_has_it(edge: Edge, client: Client, now: str) -> None:
    answer = client.post("/v1/usage", event(now))
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
    [(tenant, published)] = edge.broker.published
    assert (tenant, published.id, published.properties) == (client.tenant, "e1", {"bytes": "12.5"})


def test_usage_needs_no_idempotency_key_because_its_id_is_one(client: Client, now: str) -> None:
    assert client.post("/v1/usage", event(now), Idempotency_Key=None).status_code == 202


def test_a_broker_that_does_not_answer_is_unavailable(edge: Edge, client: Client, now: str) -> None:
    edge.broker.error = Transient("Kafka did not acknowledge")
    answer = client.post("/v1/usage", event(now))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"id": ""}, "invalid_id", "id"),
        ({"id": "x" * 129}, "invalid_id", "id"),
        ({"id": "a\nb"}, "invalid_id", "id"),
        ({"id": 7}, "invalid_type", "id"),
        ({"source": ""}, "invalid_source", "source"),
        ({"customer": ""}, "invalid_customer", "customer"),
        ({"type": "unheard_of"}, "unknown_meter", "type"),
        ({"time": "2026-02-01T00:00:00"}, "invalid_time", "time"),
        ({"time": 1767225600}, "invalid_time", "time"),
        ({"properties": {}}, "missing_value", "properties.bytes"),
        ({"properties": {"bytes": "-1"}}, "out_of_range", "properties.bytes"),
        ({"properties": {"bytes": "many"}}, "invalid_decimal", "properties.bytes"),
        ({"properties": {"bytes": "1" * 30}}, "out_of_range", "properties.bytes"),
        ({"properties": {"bytes": 1.5}}, "invalid_type", "properties.bytes"),
        ({"properties": {"bytes": True}}, "invalid_type", "properties.bytes"),
        ({"properties": {"bytes": None}}, "invalid_type", "properties.bytes"),
        ({"properties": {"bytes": "1", "note": "a\0b"}}, "invalid_text", "properties.note"),
        ({"properties": ["bytes"]}, "invalid_type", "properties"),
        ({"quantity": 5}, "unknown_field", "quantity"),
    ],
)
def test_a_bad_event_is_refused_by_name(
    edge: Edge, client: Client, now: str, changes: dict[str, Any], code: str, field: str
) -> None:
    answer = client.post("/v1/usage", event(now, **changes))
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert [each["field"] for each in answer.json()["errors"]] == [field]
    assert edge.broker.published == []


@pytest.mark.parametrize(("offset", "code"), [(timedelta(days=-400), "too_late"), (timedelta(days=2), "in_future")])
def test_time_bounds_are_the_tenants(edge: Edge, client: Client, offset: timedelta, code: str) -> None:
    answer = client.post("/v1/usage", event((edge.parts.clock.now() + offset).isoformat()))
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_one_bad_event_of_a_hundred_keeps_no_other_from_being_taken(edge: Edge, client: Client, now: str) -> None:
    events = [event(now, id=f"e{number}") for number in range(100)]
    events[41]["time"] = "yesterday"
    answer = client.post("/v1/usage", {"events": events})
    assert answer.status_code == 207
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (99, 1)
    bad = answer.json()["items"][41]
    assert (bad["status"], bad["code"], bad["field"], bad["id"]) == ("rejected", "invalid_time", "time", "e41")
    assert [each.id for _, each in edge.broker.published] == [f"e{number}" for number in range(100) if number != 41]


def test_the_same_id_twice_in_a_batch_is_a_duplicate_and_with_other_content_a_conflict(
    edge: Edge, client: Client, now: str
) -> None:
    batch = [event(now), event(now), event(now, properties={"bytes": "13"}), event(now, source="app")]
    answer = client.post("/v1/usage", {"events": batch})
    assert [each["status"] for each in answer.json()["items"]] == ["accepted", "duplicate", "rejected", "accepted"]
    assert answer.json()["items"][2]["code"] == "id_conflict"
    assert len(edge.broker.published) == 2


def test_whatever_stands_in_a_batch_gets_an_answer_of_its_own(client: Client, now: str) -> None:
    answer = client.post("/v1/usage", {"events": [7, None, [], {}, {"id": "\ud800"}, event(now)]})
    statuses = [each["status"] for each in answer.json()["items"]]
    assert (answer.status_code, statuses) == (207, ["rejected"] * 5 + ["accepted"])


def test_an_unregistered_tenant_is_not_found(edge: Edge, now: str) -> None:
    answer = edge.client("nobody").post("/v1/usage", event(now))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
