"""The API as a process of its own, with the real handler, projector, Kafka, Postgres and Valkey behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import pytest

from infra import postgres
from infra.kafka import KafkaConfig, scan, start_offsets
from infra.local.ports import Ports
from infra.settings import Settings
from schemas import codec
from services import api_keys
from services.commands import CommandClient
from tests.api.edge import BOOK, SELLER
from tests.stack import Stack
from tests.waiting import eventually


@dataclass
class Running:
    """The process under test, and a client of a registered tenant."""

    settings: Settings
    http: httpx.Client

    def usage(self) -> list[tuple[str, str]]:
        """(tenant, id) of every event on the usage log."""
        config = KafkaConfig.of(self.settings)
        starts = start_offsets(config, "usage.events", range(self.settings.usage_partitions))
        batches = [codec.decode_usage(each.value) for page in scan(config, "usage.events", starts) for each in page]
        return [(batch.tenant, each.id) for batch in batches for each in getattr(batch, "events", ())]


@pytest.fixture(scope="module")
def running(stack: Stack) -> Iterator[Running]:
    port = Ports(stack.data / "api-tests").get("api")
    settings = stack.fresh(billing_partitions=1, usage_partitions=1, api_port=port)
    processes = [stack.start(name, settings) for name in ("command-handler", "projector", "api")]
    with CommandClient(settings) as client:
        eventually(lambda: client.request("shop", SELLER, key="test:seller", actor="test"))
        eventually(lambda: client.request("shop", BOOK, key="test:book", actor="test"))
    with postgres.connect(postgres.worker_url(settings)) as connection, connection.cursor() as tx:
        key = api_keys.create(tx, "shop", "test")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        eventually(lambda: http.get("/readyz").status_code == 200)
        eventually(lambda: http.get("/v1/price-books/1").status_code == 200)
        yield Running(settings, http)
    for each in processes[::-1]:
        assert stack.stop(each) == 0, f"{each.args} did not end cleanly"


def test_a_command_over_http_reaches_the_log_and_comes_back_readable(running: Running) -> None:
    wish = {"id": "acme", "name": "Acme"}
    made = running.http.post("/v1/customers", json=wish, headers={"Idempotency-Key": "k1"})
    assert made.status_code == 201, made.text
    again = running.http.post("/v1/customers", json=wish, headers={"Idempotency-Key": "k1"})
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    position = made.headers["Tallybook-Position"]
    read = running.http.get("/v1/customers/acme", headers={"Tallybook-Position": position})
    assert read.json() == made.json()


def test_a_rejection_over_http_says_why(running: Running) -> None:
    body = {"id": "s1", "customer": "nobody", "plan": "pro"}
    answer = running.http.post("/v1/subscriptions", json=body, headers={"Idempotency-Key": "k2"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_customer")
    assert answer.json()["errors"][0]["field"] == "customer_id"


def test_usage_over_http_lies_on_the_log_when_it_is_answered(running: Running) -> None:
    at = datetime.now(UTC).isoformat()
    events = [
        {"id": f"e{n}", "source": "web", "type": "call", "customer": "acme", "time": at, "properties": {"bytes": "1"}}
        for n in range(1000)
    ]
    answer = running.http.post("/v1/usage", json={"events": events})
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1000)
    assert running.usage() == [("shop", f"e{n}") for n in range(1000)]


def test_entitlements_are_answered_for_whom_nothing_is_granted(running: Running) -> None:
    answer = running.http.get("/v1/customers/nobody/entitlements/sso")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["allowed"], answer.json()["reason"]) == (False, "not_granted")


def test_the_process_ends_within_its_ten_seconds(stack: Stack) -> None:
    port = Ports(stack.data / "api-tests").get("other")
    settings = stack.settings.model_copy(update={"api_port": port})
    process = stack.start("api", settings)
    eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
    assert stack.stop(process) == 0
