"""Every form in which usage is taken comes to the same events, and blames the sender's own names."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from services.api.usage_bodies import EVENTS_MAX, SIZE_MAX_BYTES
from tests.api.edge import Client, Edge

CLOUDEVENT, CLOUDEVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"
LINES = "application/x-ndjson"


@pytest.fixture
def now(edge: Edge) -> str:
    return edge.parts.clock.now().isoformat()


def plain(now: str, id: str = "e1", **changes: Any) -> dict[str, Any]:
    made = {"id": id, "source": "web", "type": "call", "customer": "acme", "time": now, "properties": {"bytes": "12"}}
    return made | changes


def cloud(now: str, id: str = "e1", **changes: Any) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": id, "source": "web", "type": "call", "subject": "acme", "time": now}
    return (
        made
        | {"data": {"bytes": 12}, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        | changes
    )


def send(client: Client, kind: str | None, raw: bytes, path: str = "/v1/usage", **headers: Any) -> httpx.Response:
    return client.send("POST", path, raw=raw, Content_Type=kind, Idempotency_Key=None, **headers)


def binary(client: Client, now: str, raw: bytes = b'{"bytes": "12"}', **changes: str | None) -> httpx.Response:
    names = {"specversion": "1.0", "id": "e1", "source": "web", "type": "call", "subject": "acme", "time": now}
    kind = changes.pop("kind", "application/json")
    return send(client, kind, raw, **{f"ce_{name}": value for name, value in (names | changes).items()})


def test_every_form_comes_to_the_same_event(edge: Edge, client: Client, now: str) -> None:
    answers = [
        send(client, "application/json", json.dumps(plain(now)).encode()),
        send(client, "application/json; charset=utf-8", json.dumps([plain(now)]).encode()),
        send(client, "application/json", json.dumps({"events": [plain(now)]}).encode()),
        send(client, LINES, json.dumps(plain(now)).encode()),
        send(client, "application/jsonl", b"\n" + json.dumps(plain(now)).encode() + b"\r\n\n"),
        send(client, CLOUDEVENT, json.dumps(cloud(now)).encode()),
        send(client, CLOUDEVENTS, json.dumps([cloud(now, time=now.replace("+", "000+"))]).encode()),
        binary(client, now),
        binary(client, now, source="%77eb"),
    ]
    assert [(each.status_code, each.json().get("accepted")) for each in answers] == [(202, 1)] * len(answers)
    published = [event for _, event in edge.broker.published]
    assert len(published) == len(answers)
    assert all(each == published[0] for each in published)


def test_a_cloudevent_needs_no_data_if_its_meters_need_none(edge: Edge, client: Client, now: str) -> None:
    assert binary(client, now, b"", type="visit", kind=None).json()["code"] == "unknown_meter"
    answer = binary(client, now, b"", kind=None)
    assert (answer.json()["code"], answer.json()["errors"][0]["field"]) == ("missing_value", "data.bytes")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"specversion": "0.3"}, "invalid_value", "specversion"),
        ({"subject": ""}, "invalid_customer", "subject"),
        ({"subject": 7}, "invalid_type", "subject"),
        ({"time": None}, "invalid_time", "time"),
        ({"data": {"bytes": 1.5}}, "invalid_type", "data.bytes"),
        ({"data": {"bytes": {"in": "1"}}}, "invalid_type", "data.bytes"),
        ({"data": ["1"]}, "invalid_type", "data"),
        ({"data": {}}, "missing_value", "data.bytes"),
        ({"data_base64": "eA=="}, "unknown_field", "data_base64"),
        ({"datacontenttype": "text/xml"}, "invalid_value", "datacontenttype"),
    ],
)
def test_a_bad_cloudevent_is_refused_by_its_own_names(
    edge: Edge, client: Client, now: str, changes: dict[str, Any], code: str, field: str
) -> None:
    answer = send(client, CLOUDEVENT, json.dumps(cloud(now, **changes)).encode())
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert [each["field"] for each in answer.json()["errors"]] == [field]
    batch = send(client, CLOUDEVENTS, json.dumps([cloud(now, **changes), cloud(now, "good")]).encode())
    assert [each["field"] for each in batch.json()["items"]] == [field, ""]
    assert [event.id for _, event in edge.broker.published] == ["good"]


@pytest.mark.parametrize("name", ["id", "source", "type", "subject", "time"])
def test_a_missing_attribute_is_named(client: Client, now: str, name: str) -> None:
    answer = send(client, CLOUDEVENT, json.dumps({n: v for n, v in cloud(now).items() if n != name}).encode())
    assert answer.json()["errors"][0] == {"code": "missing_field", "detail": "it is needed here", "field": name}
    told = binary(client, now, **{name: None})
    assert told.json()["errors"][0]["field"] == f"ce-{name}"


def test_a_line_that_cannot_be_read_keeps_no_other_from_being_taken(edge: Edge, client: Client, now: str) -> None:
    lines = [plain(now, f"e{number}") for number in range(4)]
    raw = b"\n".join([json.dumps(each).encode() for each in lines[:2]] + [b'{"id": ', b"\xff", b"", b"7"])
    raw += b"\n" + json.dumps(lines[3]).encode()
    answer = send(client, LINES, raw)
    told = [(each["index"], each["status"], each["code"]) for each in answer.json()["items"]]
    assert answer.status_code == 207
    assert told == [
        (0, "accepted", ""),
        (1, "accepted", ""),
        (2, "rejected", "malformed_json"),
        (3, "rejected", "malformed_json"),
        (4, "rejected", "invalid_type"),
        (5, "accepted", ""),
    ]
    assert answer.json()["items"][2]["detail"].startswith("line 3 of the body: ")
    assert [event.id for _, event in edge.broker.published] == ["e0", "e1", "e3"]


def test_all_or_nothing_takes_none_if_one_is_wrong(edge: Edge, client: Client, now: str) -> None:
    events = [plain(now), plain(now, "e2", type="unheard_of"), plain(now, "e3", time="soon")]
    answer = client.post("/v1/usage?all_or_nothing=true", events)
    assert (answer.status_code, answer.json()["code"]) == (422, "batch_refused")
    assert [each["field"] for each in answer.json()["errors"]] == ["[1].type", "[2].time"]
    assert edge.broker.published == []
    assert client.post("/v1/usage?all_or_nothing=true", events[:1]).status_code == 202


def test_ten_thousand_events_fit_one_call_and_not_one_more(edge: Edge, client: Client, now: str) -> None:
    events = [plain(now, f"e{number}") for number in range(EVENTS_MAX + 1)]
    answer = client.post("/v1/usage", events[:-1])
    assert (answer.status_code, answer.json()["accepted"]) == (202, EVENTS_MAX)
    lines = b"\n".join(json.dumps(each).encode() for each in events)
    for kind, raw in (
        ("application/json", json.dumps(events).encode()),
        ("application/json", json.dumps({"events": events}).encode()),
        (LINES, lines),
        (CLOUDEVENTS, json.dumps([cloud(now)] * (EVENTS_MAX + 1)).encode()),
    ):
        refused = send(client, kind, raw)
        assert (refused.status_code, refused.json()["code"]) == (413, "batch_too_large"), kind
    assert len(edge.broker.published) == EVENTS_MAX


@pytest.mark.parametrize(
    ("kind", "raw", "status", "code"),
    [
        ("text/plain", b"{}", 415, "unsupported_media_type"),
        (None, b"{}", 415, "unsupported_media_type"),
        ("application/cloudevents+avro", b"{}", 415, "unsupported_media_type"),
        ("application/json", b"", 400, "malformed_json"),
        ("application/json", b"[]", 422, "invalid_type"),
        ("application/json", b"7", 422, "invalid_type"),
        ("application/json", b'{"events": [], "more": 1}', 422, "unknown_field"),
        (LINES, b"\n \n", 400, "malformed_json"),
        (CLOUDEVENT, b"[]", 422, "invalid_type"),
        (CLOUDEVENTS, b"{}", 422, "invalid_type"),
        ("application/json", b" " * (SIZE_MAX_BYTES + 1), 413, "body_too_large"),
    ],
)
def test_what_is_no_usage_is_one_problem(
    edge: Edge, client: Client, kind: str | None, raw: bytes, status: int, code: str
) -> None:
    answer = send(client, kind, raw)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert edge.broker.published == []


def test_usage_needs_a_key(client: Client, now: str) -> None:
    answer = send(client, "application/json", json.dumps(plain(now)).encode(), Authorization="Bearer tb_none")
    assert answer.status_code == 401
