"""The spread of a tenant's usage over HTTP, as the meter publisher told it."""

from __future__ import annotations

from typing import Any

import pytest

from infra import postgres
from projections import generation
from services.meter_publisher import WANTED, publishing
from tests.api.edge import Client, Edge

PATH = "/v1/usage/spread"


def test_a_spread_is_asked_for_published_and_shown_to_its_tenant_only(
    edge: Edge, client: Client, other: Client
) -> None:
    asked = client.post(PATH, {"partitions": 2})
    assert asked.status_code == 202, asked.text
    assert client.get(PATH).json()["versions"] == []
    apply = publishing(lambda *_: None)
    with postgres.transaction(edge.workers) as tx:
        generation.enter(tx, "billing")
        for envelope in edge.handler.log:
            if envelope.meta.tenant == client.tenant and isinstance(envelope.event, WANTED):
                apply(tx, envelope, b"")
    (version,) = client.get(PATH).json()["versions"]
    assert version["partitions"] == 2
    assert other.get(PATH).json()["versions"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"partitions": 999}, "partitions"),
        ({"partitions": 0}, "partitions"),
        ({"partitions": "two"}, "partitions"),
        ({}, "partitions"),
        ({"partitions": 2, "effective_from": "2026-01-01T00:00:00"}, "effective_from"),
        ({"partitions": 2, "effective_from": "2020-01-01T00:00:00Z"}, "effective_from"),
        ({"partitions": 2, "from": "2026-01-01T00:00:00Z"}, "from"),
    ],
)
def test_a_bad_spread_is_refused_by_name(client: Client, body: dict[str, Any], field: str) -> None:
    refused = client.post(PATH, body)
    assert refused.status_code == 422, refused.text
    told = refused.json()
    named = [each["field"] for each in told.get("errors", [])] or [told["detail"].partition(":")[0]]
    assert field in named, told
