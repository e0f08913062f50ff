"""Reservations over HTTP: granted or refused, committed or given back, each free to repeat."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from billing.ids import SubscriptionId
from billing.subscription import ActivateSubscription
from tests.api.edge import Client

PATH = "/v1/entitlements/reservations"


@pytest.fixture
def ann(client: Client) -> Client:
    """Ann subscribes to the plan with ten calls a month."""
    client.post("/v1/customers", {"id": "ann", "name": "Ann"})
    client.post("/v1/subscriptions", {"id": "s", "customer": "ann", "plan": "pro"})
    client.edge.handler.must(client.tenant, ActivateSubscription(subscription_id=SubscriptionId("s")))
    return client


def reserve(client: Client, quantity: str, **more: Any) -> httpx.Response:
    headers = {name: more.pop(name) for name in list(more) if name == "Idempotency_Key"}
    body = {"customer": "ann", "feature": "calls", "quantity": quantity, **more}
    return client.post(PATH, body, **headers)


def test_what_is_promised_never_exceeds_the_limit(ann: Client) -> None:
    first = reserve(ann, "7")
    assert (first.status_code, first.json()["remaining"]) == (201, "3")
    refused = reserve(ann, "4")
    assert (refused.status_code, refused.json()["code"]) == (409, "limit_exceeded")
    assert "3 can be reserved" in refused.json()["detail"]
    made = first.json()["reservation"]["id"]
    assert ann.post(f"{PATH}/{made}/release", {}).json()["state"] == "released"
    assert reserve(ann, "10").status_code == 201


def test_a_retry_gets_the_same_promise(ann: Client) -> None:
    first, again = (reserve(ann, "7", Idempotency_Key="k") for _ in range(2))
    assert again.json()["reservation"] == first.json()["reservation"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = reserve(ann, "6", Idempotency_Key="k")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert reserve(ann, "1", Idempotency_Key=None).json()["code"] == "idempotency_key_missing"


def test_a_committed_promise_names_its_event_and_is_not_given_back(ann: Client) -> None:
    made = reserve(ann, "7").json()["reservation"]["id"]
    event = {"source": "gateway", "event_id": "e-1"}
    for _ in range(2):
        assert ann.post(f"{PATH}/{made}/commit", event).json()["state"] == "committed"
    assert ann.get(f"{PATH}/{made}").json()["event_id"] == "e-1"
    refused = ann.post(f"{PATH}/{made}/release", {})
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"quantity": "0"}, "quantity"),
        ({"quantity": "-1"}, "quantity"),
        ({"quantity": 1.5}, "quantity"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": 100_000}, "ttl_seconds"),
        ({"custmer": "ann"}, "custmer"),
    ],
)
def test_a_bad_wish_is_refused_by_field(client: Client, body: dict[str, Any], field: str) -> None:
    wish = {"customer": "ann", "feature": "calls", "quantity": "1"} | body
    answer = client.post(PATH, wish)
    assert answer.status_code == 422
    assert field in {each["field"] for each in answer.json()["errors"]}


def test_nothing_of_another_tenant_is_seen(ann: Client, other: Client) -> None:
    made = reserve(ann, "7").json()["reservation"]["id"]
    for answer in (other.get(f"{PATH}/{made}"), other.post(f"{PATH}/{made}/release", {})):
        assert answer.status_code == 404
    assert reserve(other, "1").json()["code"] == "not_granted"
