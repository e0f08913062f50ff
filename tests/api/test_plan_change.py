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
