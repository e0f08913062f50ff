"""Invoices, payments and the books over HTTP."""

from __future__ import annotations

import pytest

from billing import invoicing
from billing.ids import SubscriptionId
from billing.invoice import IssueInvoice
from billing.subscription import ActivateSubscription, SubscriptionActivated
from tests.api.edge import Client, Edge


@pytest.fixture
def invoice_id(edge: Edge, client: Client) -> str:
    """An invoice over the first base fee of a customer who pays outside."""
    client.post("/v1/customers", {"id": "acme", "name": "Acme <Ltd>"})
    client.post("/v1/subscriptions", {"id": "s1", "customer": "acme", "plan": "pro"})
    edge.handler.must(client.tenant, ActivateSubscription(subscription_id=SubscriptionId("s1")))
    run = edge.handler.events(SubscriptionActivated)[-1].run
    books = {1: edge.handler.state(client.tenant).catalog.books[0]}
    lines = invoicing.lines(run, books, (), {})
    edge.handler.must(client.tenant, IssueInvoice(invoice_id=run.invoice_id, lines=lines))
    return str(run.invoice_id)


def test_an_invoice_is_found_by_id_by_number_and_by_filter(client: Client, invoice_id: str) -> None:
    [row] = client.get("/v1/invoices").json()["data"]
    assert (row["id"], row["status"], row["customer"]) == (invoice_id, "open", "acme")
    for filters, found in (("customer=acme", 1), ("customer=other", 0), ("status=open", 1), ("status=paid", 0)):
        assert len(client.get(f"/v1/invoices?{filters}").json()["data"]) == found, filters
    whole = client.get(f"/v1/invoices/{invoice_id}").json()
    assert client.get(f"/v1/invoices/{row['number']}").json() == whole
    assert whole["invoice"] == row
    assert [each["charge"] for each in whole["lines"]] == ["base"]
    assert whole["customer_name"] == "Acme <Ltd>"
    assert whole["lines"][0]["explanation"].startswith("20.00")
    assert sum(each["amount"]["minor"] for each in whole["lines"]) == row["subtotal"]["minor"]


def test_an_invoice_can_be_printed_and_carries_no_markup_of_its_customer(client: Client, invoice_id: str) -> None:
    answer = client.get(f"/v1/invoices/{invoice_id}.html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "Acme &lt;Ltd&gt;" in answer.text


def test_a_payment_outside_settles_the_invoice_once(client: Client, invoice_id: str) -> None:
    path, body = f"/v1/invoices/{invoice_id}/payments", {"reference": "statement 7, line 3"}
    paid = client.post(path, body, Idempotency_Key="p1")
    assert (paid.status_code, paid.json()["state"]) == (201, "collected")
    assert client.get(f"/v1/invoices/{invoice_id}").json()["invoice"]["status"] == "paid"
    again = client.post(path, body, Idempotency_Key="p1")
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    twice = client.post(path, body, Idempotency_Key="p2")
    assert (twice.status_code, twice.json()["code"]) == (409, "invalid_state")
    [listed] = client.get("/v1/payments?state=collected").json()["data"]
    assert listed == paid.json()


def test_the_books_balance(client: Client, invoice_id: str) -> None:
    client.post(f"/v1/invoices/{invoice_id}/payments", {"reference": "statement 7"})
    balances = {each["account"]: each["balance"]["minor"] for each in client.get("/v1/ledger/balances").json()}
    assert sum(balances.values()) == 0
    assert balances["receivable"] == 0
    assert balances["cash"] > 0


def test_nobody_else_sees_or_pays_it(client: Client, other: Client, invoice_id: str) -> None:
    number = client.get("/v1/invoices").json()["data"][0]["number"]
    for name in (invoice_id, number, f"{invoice_id}.html"):
        assert other.get(f"/v1/invoices/{name}").status_code == 404
    assert other.get("/v1/invoices").json()["data"] == []
    assert other.get("/v1/ledger/balances").json() == []
    assert other.get("/v1/payments").json()["data"] == []
    assert other.post(f"/v1/invoices/{invoice_id}/payments", {"reference": "mine"}).status_code == 404
    assert client.get(f"/v1/invoices/{invoice_id}").json()["invoice"]["status"] == "open"
