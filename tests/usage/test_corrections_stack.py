"""Voids and amendments through the running system, by HTTP and by the command line, up to the entitlement's counter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from billing.ids import TenantId
from infra import postgres
from infra.kafka import partition_for
from infra.local.ports import Ports
from infra.settings import Settings
from projections import generation, usage_read
from services import api_keys
from services.commands import CommandClient
from tests.api.edge import BOOK, SELLER
from tests.cli.test_commands import Run, runner
from tests.stack import Stack
from tests.waiting import eventually

PROCESSES = ("command-handler", "projector", "usage-aggregator", "meters", "scheduler", "entitlements", "api")
TENANT = "shop"


@dataclass
class Shop:
    """A tenant with one customer on a plan, and all that counts its usage."""

    settings: Settings
    http: httpx.Client
    began: datetime

    def ask(self, method: str, path: str, body: Any) -> Any:
        answer = self.http.request(method, path, json=body, headers={"Idempotency-Key": path})
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def event(self, id: str, **changes: Any) -> dict[str, Any]:
        made = {"id": id, "source": "web", "type": "call", "customer": "acme", "time": self.began.isoformat()}
        return made | {"properties": {"bytes": "5"}} | changes

    def told(self, id: str) -> Any:
        return self.http.get(f"/v1/usage/events/web/{id}").json()

    def quantity(self, meter: str, customer: str = "acme") -> Decimal:
        start = (self.began - timedelta(hours=2)).isoformat()
        asked = {"meter": meter, "from": start, "customer": customer}
        return sum(
            (Decimal(each["quantity"]) for each in self.http.get("/v1/usage", params=asked).json()["data"]), Decimal(0)
        )

    def used(self) -> Decimal | None:
        answer = self.http.get("/v1/customers/acme/entitlements/calls").json()
        return None if answer["used"] is None else Decimal(answer["used"])

    def is_measured(self) -> bool:
        partition = partition_for(TENANT, self.settings.usage_partitions)
        with postgres.connect(postgres.worker_url(self.settings)) as connection, connection.cursor() as tx:
            generation.enter_all(tx)
            return usage_read.measured_from(tx, TenantId(TENANT)).get(partition, 0) >= 2  # with the price book


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Iterator[Shop]:
    port = Ports(stack.data / "api-tests").get("corrections")
    settings = stack.fresh(billing_partitions=1, usage_partitions=2, api_port=port)
    processes = [stack.start(name, settings) for name in PROCESSES]
    with CommandClient(settings) as client:
        eventually(lambda: client.request(TENANT, SELLER, key="test:seller", actor="test"), within_s=120)
        eventually(lambda: client.request(TENANT, BOOK, key="test:book", actor="test"), within_s=60)
    with postgres.connect(postgres.worker_url(settings)) as connection, connection.cursor() as tx:
        key = api_keys.create(tx, TENANT, "test")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        eventually(lambda: http.get("/readyz").status_code == 200, within_s=60)
        made = Shop(settings, http, datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5))
        eventually(lambda: http.get("/v1/price-books/1").status_code == 200, within_s=60)
        made.ask("POST", "/v1/customers", {"id": "acme", "name": "Acme"})
        starts_at = (made.began - timedelta(days=1)).isoformat()
        body = {"id": "s1", "customer": "acme", "plan": "pro", "starts_at": starts_at}
        made.ask("POST", "/v1/subscriptions", body)
        eventually(made.is_measured, within_s=60)
        yield made
    for each in processes[::-1]:
        stack.stop(each)


def test_what_is_taken_back_over_http_is_gone_everywhere(shop: Shop) -> None:
    shop.ask("POST", "/v1/usage", {"events": [shop.event(f"h{number}") for number in range(4)]})
    eventually(lambda: shop.used() == 4, within_s=60)
    shop.ask("POST", "/v1/usage/events/web/h0/void", {"reason": "a test run"})
    eventually(lambda: shop.used() == 3, within_s=30)
    told = shop.told("h0")
    assert told["fate"] == told["counted"]["fate"] == "voided"
    assert (shop.quantity("calls"), shop.quantity("bytes")) == (3, 15)

    other = {
        each: value
        for each, value in shop.event("h1", properties={"bytes": "7"}).items()
        if each not in ("id", "source")
    }
    shop.ask("PUT", "/v1/usage/events/web/h1", other | {"reason": "wrong amount"})
    eventually(lambda: shop.quantity("bytes") == 17, within_s=30)
    told = shop.told("h1")
    assert (told["fate"], told["counted"]["properties"]) == ("amended", {"bytes": "7"})
    shop.ask("PUT", "/v1/usage/events/web/h2", other | {"customer": "nobody", "reason": "wrong customer"})
    eventually(lambda: shop.used() == 2, within_s=30)
    assert (shop.quantity("bytes"), shop.quantity("bytes", "nobody")) == (12, 7)
    assert shop.told("h2")["fate"] == "unmatched"


@pytest.fixture
def tallybook(stack: Stack, shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    environment = stack.environment(shop.settings)
    return runner({n: v for n, v in environment.items() if n.startswith("TALLYBOOK_")}, monkeypatch, capsys)


def test_what_is_put_right_on_the_command_line_counts_as_told(shop: Shop, tallybook: Run, tmp_path: Path) -> None:
    before, bytes_before = shop.used() or Decimal(0), shop.quantity("bytes")
    shop.ask("POST", "/v1/usage", {"events": [shop.event(f"c{number}") for number in range(3)]})
    eventually(lambda: shop.used() == before + 3, within_s=30)
    code, out, err = tallybook("usage", "void", "c0", "--source", "web", "--reason", "a test run")
    assert (code, out) == (0, "1 voids are on Kafka\n"), err
    eventually(lambda: shop.used() == before + 2, within_s=30)
    code, out, _ = tallybook("usage", "show", "c0", "--source", "web", "--json")
    assert (code, json.loads(out)["fate"]) == (0, "voided")

    file = tmp_path / "right.jsonl"
    file.write_text("".join(json.dumps(shop.event(id, properties={"bytes": "8"})) + "\n" for id in ("c1", "c0")))
    code, out, err = tallybook("usage", "amend", str(file), "--reason", "wrong amount")
    assert (code, out) == (0, "2 amendments are on Kafka\n"), err
    eventually(lambda: shop.quantity("bytes") == bytes_before + 13, within_s=30)
    assert shop.used() == before + 2
    assert shop.told("c1")["fate"] == "amended"

    def refused() -> list[str]:
        _, out, _ = tallybook("usage", "rejected", "list", "--json")
        return [each["reason"] for each in json.loads(out) if each["id"] == "c0"]

    eventually(lambda: refused() == ["event_voided"], within_s=30)
    tallybook("usage", "void", "c0", "--source", "web", "--reason", "once more")
    code, out, _ = tallybook("reconcile")
    assert code == 0, out


def test_a_fault_in_the_file_or_in_a_time_sends_nothing(tallybook: Run, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"id": "c1", "type": "call", "customer": "acme", "time": "yesterday"}\n')
    code, _, err = tallybook("usage", "amend", str(file), "--reason", "wrong amount")
    assert (code, err.startswith("line 1: time")) == (1, True), err
    assert tallybook("usage", "void", "c1", "--reason", "why", "--time", "2026-01-01")[0] == 2
