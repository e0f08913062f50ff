"""The fate of usage over HTTP, what was refused, and quantities: on real Postgres, each tenant its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import Request

from infra import postgres
from infra.faust_app import Batch
from services.api import usage_reads
from services.usage_aggregator import UsageStore
from services.usage_position import fates_in
from tests.api.edge import BOOK, Client, Edge
from tests.usage.making import Home, Log, amendment, batch, control, event, void


@dataclass
class Counting:
    """Usage of one tenant, applied; its events are those of an hour ago, a minute apart."""

    edge: Edge
    client: Client
    log: Log
    store: UsageStore
    began: datetime

    def apply(self) -> None:
        self.store.apply(Batch(self.log.records, self.log.records[0].offset))

    def send(self, *ids: str, **more: Any) -> None:
        at = more.pop("at", self.began)
        events = [event(id, at + timedelta(minutes=number), type="call", **more) for number, id in enumerate(ids)]
        self.log.append(
            batch(*events, tenant=self.client.tenant), key=self.client.tenant.encode(), at=self.edge.parts.clock.now()
        )


@pytest.fixture
def usage(edge: Edge, client: Client) -> Counting:
    log = Log(partition=edge.number())
    edge.usage_log.logs.append(log)
    log.append(control(meters=BOOK.meters, tenant=client.tenant), key=client.tenant.encode())
    store = UsageStore(edge.workers, Home(1, log.partition), None)
    began = edge.parts.clock.now().replace(microsecond=0) - timedelta(hours=1)
    return Counting(edge, client, log, store, began)


def subscribe(client: Client, customer: str, starts_at: datetime) -> None:
    client.post("/v1/customers", {"id": customer, "name": customer})
    body = {"id": f"s-{customer}", "customer": customer, "plan": "pro", "starts_at": starts_at.isoformat()}
    assert client.post("/v1/subscriptions", body).status_code in (201, 200, 202)


def test_a_counted_event_tells_its_place_and_what_it_measured(usage: Counting) -> None:
    subscribe(usage.client, "c1", usage.edge.parts.clock.now())
    usage.send("e1", "e2", bytes="12.5")
    usage.apply()
    answer = usage.client.get("/v1/usage/events/test/e2")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["fate"], told["refusals"]) == ("unmatched", [])
    counted = told["counted"]
    assert (counted["id"], counted["type"], counted["customer"]) == ("e2", "call", "c1")
    assert counted["properties"] == {"bytes": "12.5"}
    assert counted["position"] == {"partition": usage.log.partition, "offset": 1, "index": 1}
    assert [(each["meter"], each["quantity"]) for each in counted["measured"]] == [
        ("bytes", "12.5"),
        ("calls", "1"),
    ]
    assert (counted["late"], counted["billed"]) == (False, [])


def test_conflicts_and_refusals_are_told_with_their_reason(usage: Counting) -> None:
    usage.send("e1", bytes="1")
    usage.send("e1", bytes="2")
    usage.send("bad", bytes="many")
    usage.send("e1", bytes="1")
    usage.apply()
    conflict = usage.client.get("/v1/usage/events/test/e1").json()
    assert (conflict["fate"], conflict["counted"]["position"]["offset"]) == ("unmatched", 1)
    assert conflict["duplicates"] == 1
    assert [each["position"] for each in conflict["copies"]] == [
        {"partition": usage.log.partition, "offset": 4, "index": 0}
    ]
    assert [(each["fate"], each["code"], each["position"]["offset"]) for each in conflict["refusals"]] == [
        ("conflict", "id_conflict", 2)
    ]
    bad = usage.client.get("/v1/usage/events/test/bad").json()
    assert (bad["fate"], bad["counted"]) == ("rejected", None)
    assert (bad["refusals"][0]["code"], bad["refusals"][0]["field"]) == (
        "invalid_decimal",
        "events[0].properties.bytes",
    )


def test_an_event_that_nobody_knows_is_not_found(usage: Counting, other: Client) -> None:
    usage.send("mine")
    usage.apply()
    assert usage.client.get("/v1/usage/events/test/mine").status_code == 200
    for client, path in ((usage.client, "test/none"), (usage.client, "other/mine"), (other, "test/mine")):
        answer = client.get(f"/v1/usage/events/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("source", "id"), [("https://a.example/x?y", "e1"), ("web", "a b"), ("/x/", "é")])
def test_sources_and_ids_may_hold_any_sign(usage: Counting, source: str, id: str) -> None:
    odd = event(id, usage.began, type="call")
    tenant = usage.client.tenant
    usage.log.append(
        batch(type(odd)(**{name: getattr(odd, name) for name in odd.__slots__} | {"source": source}), tenant=tenant),
        key=tenant.encode(),
        at=usage.edge.parts.clock.now(),
    )
    usage.apply()
    answer = usage.client.get(f"/v1/usage/events/{quote(source, safe='/')}/{quote(id, safe='')}")
    assert (answer.status_code, answer.json().get("id")) == (200, id), answer.text


def test_a_slash_in_an_id_is_told_from_one_in_a_source() -> None:
    scope = {"type": "http", "raw_path": b"/v1/usage/events/https://a.example/x/a%2Fb%252F"}
    assert usage_reads.names(Request(scope)) == ("https://a.example/x", "a/b%2F")
    assert usage_reads.names(Request({"type": "http"})) is None


def pages(client: Client, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        join = "&" if "?" in path else "?"
        answer = client.get(f"{path}{join}limit={limit}{cursor}")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["data"]) <= limit
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def test_lists_page_from_the_newest_without_gap_or_repeat(usage: Counting, other: Client) -> None:
    usage.send(*[f"e{number}" for number in range(7)])
    usage.send("same-1", at=usage.began)
    usage.send("same-2", at=usage.began, customer="c2")
    usage.send("old", at=usage.began - timedelta(days=20))
    usage.apply()
    expected = ["e6", "e5", "e4", "e3", "e2", "e1", "same-2", "same-1", "e0", "old"]
    for limit in (1, 3, 50):
        assert [each["id"] for each in pages(usage.client, "/v1/usage/events", limit)] == expected
    assert [each["id"] for each in pages(usage.client, "/v1/usage/events?customer=c2", 1)] == ["same-2"]
    by_meter = pages(usage.client, "/v1/usage/events?meter=calls&customer=c1", 2)
    assert [each["id"] for each in by_meter] == [each for each in expected if each != "same-2"]
    start = quote((usage.began + timedelta(minutes=5)).isoformat())
    assert [each["id"] for each in pages(usage.client, f"/v1/usage/events?from={start}", 50)] == ["e6", "e5"]
    assert pages(usage.client, f"/v1/usage/events?to={start}", 50)[0]["id"] == "e4"
    assert pages(other, "/v1/usage/events", 50) == []


def test_a_list_can_be_told_by_fate(usage: Counting) -> None:
    usage.send("before", at=usage.began)
    subscribe(usage.client, "c1", usage.edge.parts.clock.now() - timedelta(minutes=1))
    usage.send("within", at=usage.edge.parts.clock.now())
    usage.send("nobody", customer="stranger")
    usage.apply()

    def ids(fate: str) -> set[str]:
        return {each["id"] for each in pages(usage.client, f"/v1/usage/events?fate={fate}", 50)}

    assert ids("counted") | ids("unmatched") == {"before", "within", "nobody"}
    assert "nobody" in ids("unmatched")
    assert ids("counted") == {"within"}


def test_corrected_events_are_listed_by_fate(usage: Counting, other: Client) -> None:
    subscribe(usage.client, "c1", usage.edge.parts.clock.now() - timedelta(minutes=1))
    now = usage.edge.parts.clock.now()
    usage.send("a", "b", "c", at=now)
    for correction in (void("b", usage.client.tenant), amendment(event("c", now, type="call"), usage.client.tenant)):
        usage.log.append(correction, key=usage.client.tenant.encode(), at=now)
    usage.send("stranger's", at=usage.began, customer="c2")
    usage.log.append(void("stranger's", usage.client.tenant), key=usage.client.tenant.encode(), at=now)
    usage.apply()

    def told(query: str) -> list[tuple[str, str]]:
        return [(each["fate"], each["id"]) for each in pages(usage.client, f"/v1/usage/events{query}", 1)]

    assert told("?fate=amended") == [("amended", "c")]
    assert told("?fate=voided") == [("voided", "b"), ("voided", "stranger's")]
    assert told("?fate=counted") == [("counted", "a")]
    assert sorted(told("")) == [("amended", "c"), ("counted", "a")], "what is voided is listed if asked for"
    assert sorted(id for _, id in told("?meter=calls&fate=counted")) == ["a", "c"]
    assert pages(other, "/v1/usage/events?fate=voided", 50) == []
    refused = usage.client.get("/v1/usage/events?fate=voided&meter=calls")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_value")


def test_a_position_tells_what_became_of_its_events(usage: Counting, other: Client) -> None:
    """As `tallybook usage at` does; of the caller's own records alone."""
    usage.send("a", "b", "c", bytes="1")
    usage.send("a", bytes="1")
    usage.send("c", bytes="2")
    usage.send("bad", bytes="many")
    for value in (void("a", usage.client.tenant), b"no usage"):
        usage.log.append(value, key=usage.client.tenant.encode(), at=usage.edge.parts.clock.now())
    usage.apply()
    usage.send("late")
    at = f"/v1/usage/positions/{usage.log.partition}"

    def told(offset: int) -> list[tuple[int | None, str | None, str]]:
        found = pages(usage.client, f"{at}/{offset}", 2)
        assert {(each["position"]["partition"], each["position"]["offset"]) for each in found} == {
            (usage.log.partition, offset)
        }
        with postgres.transaction(usage.edge.workers) as tx:
            same = [(each.fate, each.detail) for each in fates_in(tx, usage.log.records[offset])]
        assert [(each["fate"], each["detail"]) for each in found] == same
        return [(each["position"]["index"], each["id"], each["fate"]) for each in found]

    assert told(0) == [(None, None, "applied")]
    assert told(1) == [(0, "a", "voided"), (1, "b", "unmatched"), (2, "c", "unmatched")]
    assert [told(offset) for offset in (2, 3, 4)] == [
        [(0, "a", "duplicate")],
        [(0, "c", "conflict")],
        [(0, "bad", "rejected")],
    ]
    assert told(5) == [(None, "a", "applied")]
    assert told(7) == [(None, None, "waiting")]
    (one,) = usage.client.get(f"{at}/1?index=1").json()["data"]
    assert (one["id"], one["source"], one["position"]["index"]) == ("b", "test", 1)
    nothing = [(usage.client, f"{at}/{rest}") for rest in ("1?index=3", "0?index=0", "6", "8")]
    for client, path in (*nothing, (other, f"{at}/1"), (other, f"{at}/7"), (other, f"{at}/6")):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


def test_duplicates_are_listed_with_their_source_and_id(usage: Counting, other: Client) -> None:
    usage.send("a", "b", "c")
    usage.send("a", "b", "d")
    usage.send("a")
    usage.apply()
    told = pages(usage.client, "/v1/usage/duplicates", 2)
    assert [(each["source"], each["id"], each["position"]["offset"]) for each in told] == [
        ("test", "a", 3),
        ("test", "b", 2),
        ("test", "a", 2),
    ]
    assert pages(usage.client, "/v1/usage/duplicates?to=2026-01-01T00:00:00Z", 50) == []
    assert pages(other, "/v1/usage/duplicates", 50) == []


def test_refusals_are_listed_with_filters(usage: Counting, other: Client) -> None:
    usage.send("good")
    usage.send("good", bytes="7")
    for number in range(5):
        usage.send(f"bad-{number}", bytes="many")
    usage.log.append(
        batch(event("odd", usage.began, type="unheard_of"), tenant=usage.client.tenant),
        key=usage.client.tenant.encode(),
        at=usage.edge.parts.clock.now(),
    )
    usage.apply()
    everything = pages(usage.client, "/v1/usage/rejected", 2)
    assert len(everything) == 7
    assert {each["fate"] for each in everything} == {"conflict", "rejected"}
    assert [each["id"] for each in pages(usage.client, "/v1/usage/rejected?fate=conflict", 50)] == ["good"]
    assert [each["id"] for each in pages(usage.client, "/v1/usage/rejected?code=unknown_meter", 50)] == ["odd"]
    assert len(pages(usage.client, "/v1/usage/rejected?code=invalid_decimal&source=test", 2)) == 5
    assert pages(usage.client, "/v1/usage/rejected?source=web", 50) == []
    assert pages(other, "/v1/usage/rejected", 50) == []


def test_a_cursor_of_another_list_is_refused(usage: Counting) -> None:
    usage.send("a", "b")
    usage.apply()
    cursor = usage.client.get("/v1/usage/events?limit=1").json()["next_cursor"]
    for path in ("/v1/usage/rejected?limit=1", "/v1/usage/events?limit=1&customer=c1"):
        answer = usage.client.get(f"{path}&cursor={cursor}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
