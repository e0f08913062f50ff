"""The mistakes of a price book through the API: refused by the field's path, and nothing comes to the log."""

from __future__ import annotations

import pytest

from tests.api.edge import Client, Edge
from tests.cli.mistakes import MISTAKES, Mistake


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: each.name)
def test_a_price_book_names_the_field(mistake: Mistake, edge: Edge, client: Client) -> None:
    answer = client.post("/v1/price-books", mistake.book())
    assert (answer.status_code, answer.json()["code"]) == (422, mistake.code), answer.text
    [fault] = answer.json()["errors"]
    assert fault["field"].startswith(mistake.field)
    assert mistake.allowed in fault["detail"]
    assert edge.broker.published == []


@pytest.mark.parametrize(
    ("terms", "code", "allowed"),
    [
        ({"ends_at": "2026-01-31T00:00:00Z"}, "end_before_start", "any later time"),
        ({"billing_day": 31}, "unexpected", "calendar's first day"),
        ({"currency": "EUR"}, "currency_mismatch", "USD"),
        ({"zone": "Mars/Olympus"}, "unknown_zone", "IANA zone"),
    ],
)
def test_terms_that_do_not_fit_the_plan_name_the_field(
    client: Client, terms: dict[str, object], code: str, allowed: str
) -> None:
    assert client.post("/v1/customers", {"id": "c1", "name": "Acme"}).status_code == 201
    asked = {"id": "s1", "customer": "c1", "plan": "pro", "starts_at": "2026-02-01T00:00:00Z", **terms}
    answer = client.post("/v1/subscriptions", asked)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert [each["field"] for each in answer.json()["errors"]] == list(terms)
    assert allowed in answer.json()["detail"]
