"""Bad input gets one clear refusal, never a crash, and leaves nothing on the log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.api.edge import Client, Edge

CUSTOMER = '{"id": "c1", "name": "Acme"}'
SUBSCRIPTION = '{"id": "s1", "customer": "c1", "plan": "pro", "starts_at": %s}'
STARTS, MEDIA = "/v1/subscriptions", "unsupported_media_type"
CARD = '{"id": "c", "payment_method": {"provider": "stripe", "token": "4242 4242 4242 4242"}}'
CARD_NAME = '{"id": "c", "name": "4242424242424242"}'
CARD_CODE = '{"id": "c", "payment_method": {"cvc": "123"}}'
PAYPAL = '{"id": "c", "payment_method": {"provider": "paypal"}}'
BOOK = json.dumps(
    {
        "meters": [{"key": "calls", "event_type": "call"}],
        "plans": [
            {
                "key": "pro",
                "name": "Pro",
                "currency": "CURRENCY",
                "charges": [
                    {"key": "calls", "name": "Calls", "meter": "calls", "model": {"type": "per_unit", "unit": "PRICE"}}
                ],
            }
        ],
    }
)
EVENT = {"id": "e1", "source": "s", "type": "call", "customer": "c", "properties": {"bytes": "1"}}
DEEP = b'{"id": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def book(price: str = '"1"', currency: str = "USD") -> bytes:
    return BOOK.replace('"PRICE"', price).replace("CURRENCY", currency).encode()


@dataclass(frozen=True)
class Bad:
    """A request, and how it is refused."""

    name: str
    path: str
    body: bytes | str
    status: int
    code: str
    blamed: str = ""
    headers: dict[str, Any] = field(default_factory=dict)


TABLE = [
    Bad("an empty body", "/v1/customers", b"", 400, "malformed_json"),
    Bad("half a body", "/v1/customers", b'{"id":', 400, "malformed_json"),
    Bad("an unknown locale", "/v1/customers", '{"id": "c", "locale": "klingon"}', 422, "unknown_locale", "locale"),
    Bad("no place", "/v1/customers", '{"id": "c", "jurisdiction": "ny"}', 422, "invalid_jurisdiction", "jurisdiction"),
    Bad("a list", "/v1/customers", b"[]", 422, "invalid_type"),
    Bad("null", "/v1/customers", b"null", 422, "invalid_type"),
    Bad("bytes that are not UTF-8", "/v1/customers", b'{"id": "\xff"}', 400, "malformed_json"),
    Bad("a byte-order mark", "/v1/customers", b"\xef\xbb\xbf" + CUSTOMER.encode(), 400, "malformed_json"),
    Bad("NaN", "/v1/price-books", book("NaN"), 422, "not_finite", "plans[0].charges[0].model.unit"),
    Bad("Infinity", "/v1/price-books", book("-Infinity"), 422, "not_finite", "plans[0].charges[0].model.unit"),
    Bad("1e400", "/v1/price-books", book("1e400"), 422, "not_finite", "plans[0].charges[0].model.unit"),
    Bad("an endless exponent", "/v1/price-books", book("1e99999999999"), 422, "not_finite"),
    Bad("a price as a float", "/v1/price-books", book("0.1"), 422, "invalid_type", "plans[0].charges[0].model.unit"),
    Bad("a price as true", "/v1/price-books", book("true"), 422, "invalid_type", "plans[0].charges[0].model.unit"),
    Bad("a huge integer", "/v1/price-books", book("9" * 5000), 422, "not_finite", "plans[0].charges[0].model.unit"),
    Bad("13 decimals", "/v1/price-books", book('"0.1234567890123"'), 422, "invalid_decimal"),
    Bad("an exponent in text", "/v1/price-books", book('"1e3"'), 422, "invalid_decimal"),
    Bad("a plus sign", "/v1/price-books", book('"+5"'), 422, "invalid_decimal"),
    Bad("Arabic digits", "/v1/price-books", book('"٥"'), 422, "invalid_decimal"),
    Bad("NaN as text", "/v1/price-books", book('"NaN"'), 422, "not_finite"),
    Bad("a negative price", "/v1/price-books", book('"-1"'), 422, "out_of_range", "plans[0].charges[0].model.unit"),
    Bad("a lower-case currency", "/v1/price-books", book(currency="usd"), 422, "unknown_currency", "plans[0].currency"),
    Bad("two letters of currency", "/v1/price-books", book(currency="US"), 422, "unknown_currency"),
    Bad("a currency for testing", "/v1/price-books", book(currency="XXX"), 422, "unknown_currency"),
    Bad("an invented currency", "/v1/price-books", book(currency="BTC"), 422, "unknown_currency"),
    Bad("a doubled key", "/v1/customers", b'{"id": "a", "id": "b"}', 400, "duplicate_key"),
    Bad("a doubled key below", "/v1/price-books", b'{"plans": [{"key": "a", "key": "b"}]}', 400, "duplicate_key"),
    Bad("a misspelt field", "/v1/customers", '{"id": "c1", "nmae": "Acme"}', 422, "unknown_field", "nmae"),
    Bad("a missing field", "/v1/customers", '{"name": "Acme"}', 422, "missing_field", "id"),
    Bad("a NUL", "/v1/customers", r'{"id": "c1", "name": "a\u0000b"}', 422, "invalid_text", "name"),
    Bad("a lone surrogate", "/v1/customers", r'{"id": "c1", "name": "\ud800"}', 422, "invalid_text", "name"),
    Bad("a lone surrogate as id", "/v1/customers", r'{"id": "\ud800"}', 422, "invalid_id", "id"),
    Bad("a surrogate as a field", "/v1/customers", r'{"id": "c1", "\ud800": 1}', 422, "invalid_text"),
    Bad("10,000 characters", "/v1/customers", f'{{"id": "c1", "name": "{"x" * 10_000}"}}', 422, "invalid_text", "name"),
    Bad("an overridden direction", "/v1/customers", '{"id": "c1", "name": "a\u202eb"}', 422, "invalid_text", "name"),
    Bad("an empty id", "/v1/customers", '{"id": ""}', 422, "invalid_id", "id"),
    Bad("an id of 129 characters", "/v1/customers", f'{{"id": "{"x" * 129}"}}', 422, "invalid_id", "id"),
    Bad("an id as a number", "/v1/customers", '{"id": 7}', 422, "invalid_type", "id"),
    Bad("5,000 nested brackets", "/v1/customers", DEEP, 400, "too_deep"),
    Bad("3 MB", "/v1/customers", b'{"id": "' + b"x" * 3_000_000 + b'"}', 413, "body_too_large"),
    Bad("a compressed body", "/v1/customers", CUSTOMER, 415, MEDIA, "", {"Content_Encoding": "gzip"}),
    Bad("no media type", "/v1/customers", CUSTOMER, 415, MEDIA, "", {"Content_Type": ""}),
    Bad("a form", "/v1/customers", CUSTOMER, 415, MEDIA, "", {"Content_Type": "text/plain"}),
    Bad("no idempotency key", "/v1/customers", CUSTOMER, 400, "idempotency_key_missing", "", {"Idempotency_Key": None}),
    Bad("an empty key", "/v1/customers", CUSTOMER, 400, "idempotency_key_invalid", "", {"Idempotency_Key": ""}),
    Bad("a long key", "/v1/customers", CUSTOMER, 400, "idempotency_key_invalid", "", {"Idempotency_Key": "k" * 256}),
    Bad("a tab in the key", "/v1/customers", CUSTOMER, 400, "idempotency_key_invalid", "", {"Idempotency_Key": "a\tb"}),
    Bad("no token", "/v1/customers", CUSTOMER, 401, "unauthorized", "", {"Authorization": None}),
    Bad("a broken token", "/v1/customers", CUSTOMER, 401, "unauthorized", "", {"Authorization": "Bearer tb_x"}),
    Bad("no token and a broken body", "/v1/customers", b"{", 401, "unauthorized", "", {"Authorization": None}),
    Bad("a time without zone", STARTS, SUBSCRIPTION % '"2026-02-01T00:00:00"', 422, "invalid_time", "starts_at"),
    Bad("30 February", STARTS, SUBSCRIPTION % '"2026-02-30T00:00:00Z"', 422, "invalid_time", "starts_at"),
    Bad("a leap second", STARTS, SUBSCRIPTION % '"2026-02-01T23:59:60Z"', 422, "invalid_time"),
    Bad("the year 1", STARTS, SUBSCRIPTION % '"0001-01-01T00:00:00Z"', 422, "invalid_time"),
    Bad("the year 9999", STARTS, SUBSCRIPTION % '"9999-12-31T23:59:59Z"', 422, "invalid_time"),
    Bad("an epoch number", STARTS, SUBSCRIPTION % "1767225600", 422, "invalid_time", "starts_at"),
    Bad("a day without time", STARTS, SUBSCRIPTION % '"2026-02-01"', 422, "invalid_time"),
    Bad("a card number as a token", "/v1/customers", CARD, 400, "card_data_refused"),
    Bad("a card number as a name", "/v1/customers", CARD_NAME, 400, "card_data_refused"),
    Bad("a card's code", "/v1/customers", CARD_CODE, 400, "card_data_refused"),
    Bad("an unknown provider", "/v1/customers", PAYPAL, 422, "invalid_value", "payment_method.provider"),
    Bad("an unknown query parameter", "/v1/customers?dry=1", CUSTOMER, 422, "unknown_parameter", "dry"),
    Bad("a batch of nothing", "/v1/usage", '{"events": []}', 422, "invalid_type", "events"),
    Bad("a batch with a stray field", "/v1/usage", '{"events": [{}], "more": 1}', 422, "unknown_field", "more"),
    Bad("10,001 events", "/v1/usage", json.dumps({"events": [EVENT] * 10_001}), 413, "batch_too_large"),
    Bad("usage as a list", "/v1/usage", "[]", 422, "invalid_type"),
]  # fmt: skip


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_input_is_refused_and_leaves_nothing_behind(bad: Bad, edge: Edge, client: Client) -> None:
    asked = len(edge.handler.asked)
    raw = bad.body if isinstance(bad.body, bytes) else bad.body.encode()
    answer = client.send("POST", bad.path, raw=raw, **bad.headers)
    assert (answer.status_code, answer.json()["code"]) == (bad.status, bad.code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json().keys() == {"type", "title", "status", "code", "detail", "errors", "trace_id"}
    if bad.blamed:
        assert [each["field"] for each in answer.json()["errors"]] == [bad.blamed]
    assert len(edge.handler.asked) == asked
    assert edge.broker.published == []


def test_a_misspelt_field_brings_the_name_that_was_meant(client: Client) -> None:
    answer = client.post("/v1/customers", {"id": "c1", "nmae": "Acme"})
    assert "did you mean 'name'?" in answer.json()["detail"]


def test_a_refusal_never_repeats_a_card_number(client: Client) -> None:
    answer = client.post("/v1/customers", {"id": "c1", "name": "4242424242424242"})
    assert "4242" not in answer.text


@pytest.mark.parametrize("limit", ["0", "-1", "1000000000", "x", "1.5"])
def test_a_page_has_a_size(client: Client, limit: str) -> None:
    answer = client.get(f"/v1/customers?limit={limit}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "limit")


def test_an_unknown_address_and_an_unknown_method_are_problems_too(client: Client) -> None:
    assert client.get("/v1/nothing").json()["code"] == "not_found"
    answer = client.send("DELETE", "/v1/customers")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_a_crash_is_a_problem_without_a_trace_of_the_code(edge: Edge, client: Client) -> None:
    edge.broker.error = RuntimeError("secret detail")
    answer = client.post("/v1/usage", EVENT | {"time": "2999-01-01T00:00:00Z"})
    assert answer.status_code == 422  # refused before it could crash
    answer = client.post("/v1/usage", EVENT | {"time": edge.parts.clock.now().isoformat()})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
