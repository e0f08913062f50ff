"""`when_unknown`, from the catalogue file into the answer of a check: who is let in while nobody can tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from billing.ids import SubscriptionId
from billing.subscription import ActivateSubscription
from infra import postgres
from infra.redis_cache import RedisCache
from infra.settings import Settings
from services.api.app import create_app
from services.catalog_file import BadCatalog, read
from services.entitlements import Entitlements
from tests.api.edge import Client

CATALOG = """\
tenant: {id: shop, name: Shop, currency: USD, zone: UTC}
meters:
  - {key: calls, event_type: call}
plans:
  - key: pro
    name: Pro
    currency: USD
    charges:
      - {key: base, name: Base fee, in_advance: true, model: {type: flat, amount: 20.00}}
    entitlements:
      - {feature: sso, kind: boolean, when_unknown: open}
      - {feature: search, kind: metered, meter: calls, limit: 10, when_unknown: open}
      - {feature: export, kind: metered, meter: calls, limit: 10, when_unknown: closed}
      - {feature: audit, kind: boolean}
"""
FEATURES = ("sso", "search", "export", "audit", "unheard-of")


@pytest.fixture
def ann(client: Client) -> Client:
    """Ann has the plan of the file."""
    book = read(CATALOG.encode()).price_book
    assert book is not None
    client.edge.handler.must(client.tenant, book)
    client.post("/v1/customers", {"id": "ann", "name": "Ann"})
    client.post("/v1/subscriptions", {"id": "s", "customer": "ann", "plan": "pro"})
    client.edge.handler.must(client.tenant, ActivateSubscription(subscription_id=SubscriptionId("s")))
    return client


@pytest.fixture
def nobody() -> Iterator[tuple[RedisCache, postgres.Pool]]:
    """Redis and Postgres, as they are while they are away."""
    cache = RedisCache(Settings(redis="redis://127.0.0.1:1/0"))
    away = postgres._pool(
        "postgresql://nobody@127.0.0.1:1/nothing", timedelta(seconds=1), 1, timedelta(seconds=0.2), pooler=False
    )
    with away as pool:
        yield cache, pool
    cache.close()


def test_each_feature_is_open_or_closed_as_the_catalogue_says(
    ann: Client, nobody: tuple[RedisCache, postgres.Pool]
) -> None:
    cache, away = nobody
    checks = Entitlements(cache, ann.edge.pool)
    with TestClient(create_app(replace(ann.edge.parts, entitlements=checks))) as http:

        def told(feature: str) -> Any:
            path = f"/v1/customers/ann/entitlements/{feature}"
            answer = http.get(path, headers={"Authorization": f"Bearer {ann.key}"})
            assert answer.status_code == 200, answer.text
            return answer.json()

        before = {each: told(each) for each in FEATURES}
        assert {name: (each["allowed"], each["source"]) for name, each in before.items()} == {
            **dict.fromkeys(FEATURES, (True, "database")),
            "unheard-of": (False, "database"),
        }
        assert [name for name, each in before.items() if each["when_unknown"] == "open"] == ["sso", "search"]
        checks._pool = away
        after = {each: told(each) for each in FEATURES}
    assert {name: each["allowed"] for name, each in after.items()} == {
        "sso": True,
        "search": True,
        "export": False,
        "audit": False,  # closed, where the catalogue says nothing
        "unheard-of": False,  # open to nobody, for nobody was ever seen to have it
    }
    assert {(each["reason"], each["source"], each["stale"]) for each in after.values()} == {("unknown", "policy", True)}
    assert {name: each["when_unknown"] for name, each in after.items()} == {
        name: each["when_unknown"] for name, each in before.items()
    }


def test_a_policy_that_is_none_is_refused_by_line_and_field() -> None:
    with pytest.raises(BadCatalog) as refused:
        read(CATALOG.replace("when_unknown: closed", "when_unknown: ajar").encode())
    [(line, fault)] = refused.value.found
    assert (line, fault.field) == (13, "plans[0].entitlements[2].when_unknown")
    assert "open" in fault.detail
    assert "closed" in fault.detail
