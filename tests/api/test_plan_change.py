"""Changing plans over HTTP."""

from __future__ import annotations

import pytest

from billing.ids import SubscriptionId
from billing.subscription import ActivateSubscription
from tests.api.edge import Client, Edge


@pytest.fixture
def subscribed(edge: Edge, client: Client) -> Client:
    client.post("/v1/customers", {"id": "acme", "name": "Acme"})
    client.post("/v1/subscriptions", {"id": "s1", "customer": "acme", "plan": "pro"})
    edge.handler.must(client.tenant, ActivateSubscription(subscription_id=SubscriptionId("s1")))
    return client


def test_a_plan_there_is_none_of_is_refused(subscribed: Client) -> None:
    answer = subscribed.post("/v1/subscriptions/s1/change", {"plan": "gold"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_plan")


def test_a_subscription_that_is_up_to_date_stays_as_it_is(subscribed: Client) -> None:
    for body in ({}, {"plan": "pro", "at_period_end": False}):
        answer = subscribed.post("/v1/subscriptions/s1/change", body)
        assert (answer.status_code, answer.json()["changes"]) == (200, [])


def test_a_subscription_that_is_not_there_is_not_found(client: Client) -> None:
    assert client.post("/v1/subscriptions/x/change", {"plan": "pro"}).status_code == 404


def test_an_add_on_there_is_none_of_is_refused_and_one_that_is_not_there_is_no_more(subscribed: Client) -> None:
    answer = subscribed.post("/v1/subscriptions/s1/add-ons", {"add_on": "gold"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_add_on")
    answer = subscribed.post("/v1/subscriptions/s1/add-ons", {"add_on": "gold", "quantity": 0})
    assert (answer.status_code, answer.json()["add_ons"]) == (200, {})
    for body in ({"add_on": "gold", "quantity": -1}, {"add_on": "gold", "quantity": 10**9}):
        answer = subscribed.post("/v1/subscriptions/s1/add-ons", body)
        assert (answer.status_code, answer.json()["code"]) == (422, "out_of_range"), body


def test_a_currency_without_prices_is_refused(client: Client) -> None:
    client.post("/v1/customers", {"id": "acme", "name": "Acme"})
    body = {"id": "s1", "customer": "acme", "plan": "pro", "currency": "JPY"}
    answer = client.post("/v1/subscriptions", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "currency_mismatch")


def test_a_customer_gets_own_prices(client: Client) -> None:
    client.post("/v1/customers", {"id": "acme", "name": "Acme"})
    assert client.send("PUT", "/v1/customers/acme/prices", {"plan": "pro", "discount_percent": "10"}).status_code == 200
    answer = client.send("PUT", "/v1/customers/acme/prices", {"plan": "gold"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_plan")
    assert client.send("PUT", "/v1/customers/nobody/prices", {"plan": "pro"}).status_code == 404


def test_an_anchor_of_a_calendar_plan_is_refused_and_a_zone_is_changed(subscribed: Client) -> None:
    answer = subscribed.post("/v1/subscriptions/s1/billing-anchor", {"anchor": "2026-02-10T00:00:00Z"})
    assert (answer.status_code, answer.json()["code"]) == (422, "calendar_plan")
    answer = subscribed.post("/v1/subscriptions/s1/billing-zone", {"zone": "Mars/Olympus"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_zone")
    before = subscribed.get("/v1/subscriptions/s1").json()
    after = subscribed.post("/v1/subscriptions/s1/billing-zone", {"zone": "Asia/Tokyo"}).json()
    assert after["zone"] == "Asia/Tokyo"
    assert after["period_end"] < before["period_end"]
