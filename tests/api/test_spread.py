"""The spread of a tenant's usage over HTTP, as the meter publisher told it."""

from __future__ import annotations

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


def test_more_partitions_than_the_log_has_are_refused(client: Client) -> None:
    refused = client.post(PATH, {"partitions": 999})
    assert (refused.status_code, refused.json()["code"]) == (422, "out_of_range")
