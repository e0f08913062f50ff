"""The short way of a check: what it answers is what the route would answer, and all else is left to the route."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing.entitlement import NOT_GRANTED, Access
from tests.api.edge import Client, Edge

PATH = "/v1/customers/ann/entitlements/calls"
WITHIN = Access(True, "within_limit", Decimal("399.5"), Decimal(1000), Decimal("600.5"))
OTHERS = Access(True, "granted")


@pytest.fixture
def at_hand(edge: Edge, client: Client) -> dict[tuple[str, str, str], Access]:
    """What is answered without a thread; the key of `client` is known."""
    edge.entitlements.at_hand.clear()
    edge.entitlements.answers.clear()
    assert client.get(PATH).status_code == 200
    return edge.entitlements.at_hand


@pytest.mark.parametrize("access", [WITHIN, NOT_GRANTED, OTHERS], ids=lambda each: str(each.reason))
def test_it_answers_byte_for_byte_as_the_route_does(
    edge: Edge, client: Client, at_hand: dict[tuple[str, str, str], Access], access: Access
) -> None:
    edge.entitlements.answers[client.tenant, "ann", "calls"] = access
    by_route = client.get(PATH)
    at_hand[client.tenant, "ann", "calls"] = access
    edge.entitlements.answers.clear()
    short = client.get(PATH)
    assert (short.status_code, short.content) == (by_route.status_code, by_route.content)
    assert dict(short.headers) == dict(by_route.headers)


def test_it_counts_among_the_requests_of_the_route(client: Client, at_hand: dict[tuple[str, str, str], Access]) -> None:
    def counted() -> float:
        text = client.get("/metrics").text
        name = 'tallybook_api_requests_total{method="GET",route="/v1/customers/{customer_id}/entitlements/{feature}",'
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + 'status="200"}'))

    before = counted()
    at_hand[client.tenant, "ann", "calls"] = WITHIN
    client.get(PATH)
    assert counted() == before + 1


def test_it_speaks_to_a_known_key_of_the_same_tenant_only(
    edge: Edge, client: Client, other: Client, at_hand: dict[tuple[str, str, str], Access]
) -> None:
    at_hand[client.tenant, "ann", "calls"] = WITHIN
    assert client.get(PATH).json()["allowed"]
    assert not other.get(PATH).json()["allowed"]  # by the route: the key is new
    assert not other.get(PATH).json()["allowed"]
    for presented in (f"Bearer {client.key[:-1]}", f"Basic {client.key}", "Bearer", ""):
        refused = client.get(PATH, Authorization=presented)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), presented


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{PATH}?now=1", 422),
        ("GET", "/v1/customers/%20ann/entitlements/calls", 422),
        ("GET", f"/v1/customers/{'a' * 129}/entitlements/calls", 422),
        ("POST", PATH, 405),
        ("GET", f"{PATH}/more", 404),
    ],
)
def test_what_the_route_refuses_stays_refused(
    client: Client, at_hand: dict[tuple[str, str, str], Access], method: str, path: str, status: int
) -> None:
    for customer in ("ann", " ann", "a" * 129):
        at_hand[client.tenant, customer, "calls"] = WITHIN
    assert client.send(method, path).status_code == status


def test_what_needs_a_thread_is_left_to_the_route(
    edge: Edge, client: Client, at_hand: dict[tuple[str, str, str], Access]
) -> None:
    edge.entitlements.answers[client.tenant, "ann", "calls"] = WITHIN
    assert not at_hand
    assert client.get(PATH).json()["used"] == "399.5"
