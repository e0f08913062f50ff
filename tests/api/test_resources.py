"""What applications do: commands under a key, reads that know them, pages, positions."""

from __future__ import annotations

import pytest

from infra.errors import Transient
from tests.api.edge import Client, Edge


def a_customer(client: Client, id: str = "acme") -> None:
    assert client.post("/v1/customers", {"id": id, "name": id.title()}).status_code == 201


def test_a_customer_is_created_and_read(client: Client) -> None:
    made = client.post("/v1/customers", {"id": "acme", "name": "Acme Ltd", "email": "billing@acme.example"})
    assert made.status_code == 201
    assert int(made.headers["Tallybook-Position"]) > 0
    read = client.get("/v1/customers/acme")
    assert read.json() == made.json()
    assert (read.json()["name"], read.json()["provider"]) == ("Acme Ltd", "manual")


def test_a_customer_is_taxed_and_credited_as_asked(client: Client) -> None:
    a_customer(client)
    moved = client.send("PUT", "/v1/customers/acme/jurisdiction", {"jurisdiction": "US-NY"})
    assert moved.json()["jurisdiction"] == "US-NY"
    gift = {"id": "spring", "amount": "20.00", "currency": "USD", "priority": 3, "expires_at": "2099-01-01T00:00:00Z"}
    made = client.post("/v1/customers/acme/credits", gift)
    assert made.status_code == 201
    (grant,) = made.json()["grants"]
    assert (grant["id"], grant["left"]["decimal"], grant["priority"]) == ("spring", "20.00", 3)
    assert [each["decimal"] for each in made.json()["credit"]] == ["20.00"]
    again = client.post("/v1/customers/acme/credits", {**gift, "amount": "21.00"})
    assert (again.status_code, again.json()["code"]) == (409, "grant_exists")
    early = client.post("/v1/customers/acme/credits/spring/expiry", {})
    assert (early.status_code, early.json()["code"]) == (409, "not_yet")


def test_names_stay_out_of_the_log(edge: Edge, client: Client) -> None:
    client.post("/v1/customers", {"id": "acme", "name": "Ada Lovelace", "email": "ada@acme.example"})
    assert not any("Lovelace" in repr(each) or "ada@" in repr(each) for each in edge.handler.log)


def test_the_same_key_answers_the_same_and_says_so(client: Client) -> None:
    body = {"id": "acme", "name": "Acme"}
    first = client.post("/v1/customers", body, Idempotency_Key="k")
    again = client.post("/v1/customers", body, Idempotency_Key="k")
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/customers", {"id": "other", "name": "Acme"}),
        ("/v1/customers", {"id": "acme", "name": "Another name, which is not in the log"}),
        ("/v1/subscriptions", {"id": "s1", "customer": "acme", "plan": "pro"}),
    ],
)
def test_a_key_is_refused_for_another_request(client: Client, path: str, body: dict[str, str]) -> None:
    client.post("/v1/customers", {"id": "acme", "name": "Acme"}, Idempotency_Key="k")
    answer = client.post(path, body, Idempotency_Key="k")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_an_api_key_cannot_take_an_internal_idempotency_key(edge: Edge, client: Client) -> None:
    client.post("/v1/customers", {"id": "acme"}, Idempotency_Key="scheduler:close:1")
    assert edge.handler.asked[-1][0] == "api:scheduler:close:1"


def test_a_rejected_command_may_be_retried_with_its_key(client: Client) -> None:
    body = {"id": "s1", "customer": "acme", "plan": "pro"}
    refused = client.post("/v1/subscriptions", body, Idempotency_Key="k")
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_customer")
    a_customer(client)
    assert client.post("/v1/subscriptions", body, Idempotency_Key="k").status_code == 201


def test_a_customer_with_another_name_is_a_conflict(client: Client) -> None:
    a_customer(client)
    answer = client.post("/v1/customers", {"id": "acme", "name": "Other"})
    assert (answer.status_code, answer.json()["code"]) == (409, "customer_exists")


def test_what_is_not_there_is_not_found(client: Client) -> None:
    for path in ("customers/x", "subscriptions/x", "invoices/x", "price-books/99", "invoices/x.html"):
        answer = client.get(f"/v1/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    for path, body in (
        ("customers/x/coupons", {"coupon": "TEN"}),
        ("subscriptions/x/cancel", {}),
        ("invoices/x/payments", {"reference": "statement 7"}),
    ):
        assert client.post(f"/v1/{path}", body).status_code == 404, path


def test_an_invalid_state_is_a_conflict(client: Client) -> None:
    answer = client.post("/v1/clock", {"to": "2030-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_test_clock")


def test_a_subscription_is_created_listed_and_canceled(client: Client) -> None:
    a_customer(client)
    made = client.post("/v1/subscriptions", {"id": "s1", "customer": "acme", "plan": "pro"})
    assert (made.status_code, made.json()["status"]) == (201, "scheduled")
    assert [each["id"] for each in client.get("/v1/subscriptions?customer=acme").json()["data"]] == ["s1"]
    assert client.get("/v1/subscriptions?customer=nobody").json()["data"] == []
    canceled = client.post("/v1/subscriptions/s1/cancel", {})
    assert (canceled.status_code, canceled.json()["status"]) == (200, "ended")


def test_a_subscription_has_a_trial_an_end_and_no_billing_day_in_a_calendar_plan(client: Client) -> None:
    a_customer(client)
    wish = {"id": "s1", "customer": "acme", "plan": "pro", "starts_at": "2026-03-01T00:00:00Z", "trial": "P1W"}
    made = client.post("/v1/subscriptions", {**wish, "ends_at": "2026-12-01T00:00:00Z"}).json()
    assert (made["trial_ends_at"], made["ends_at"]) == ("2026-03-08T00:00:00Z", "2026-12-01T00:00:00Z")
    for more, field in (({"ends_at": wish["starts_at"]}, "ends_at"), ({"billing_day": 31}, "billing_day")):
        answer = client.post("/v1/subscriptions", {**wish, "id": "s2", **more})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_a_coupon_and_a_payment_method_reach_the_customer(client: Client) -> None:
    a_customer(client)
    answer = client.post("/v1/customers/acme/coupons", {"coupon": "TEN"})
    assert [each["code"] for each in answer.json()["coupons"]] == ["TEN"]
    method = {"provider": "sandbox", "token": "pm_card_visa"}
    answer = client.send("PUT", "/v1/customers/acme/payment-method", method)
    assert (answer.status_code, answer.json()["payment_token"]) == (200, "pm_card_visa")


def test_a_price_book_says_the_same_when_it_is_published_again(client: Client) -> None:
    book = client.get("/v1/price-books/1").json()
    wish = {name: book[name] for name in ("meters", "plans", "coupons")}
    assert client.post("/v1/price-books", wish).json()["version"] == 1
    wish["plans"][0]["charges"][0]["model"]["amount"] = "25.00"
    published = client.post("/v1/price-books", wish)
    assert (published.status_code, published.json()["version"]) == (201, 2)
    assert [each["version"] for each in client.get("/v1/price-books").json()["data"]] == [2, 1]


def test_a_list_comes_in_pages_that_neither_skip_nor_repeat(client: Client) -> None:
    ids = [f"c{number:02}" for number in range(7)]
    for id in reversed(ids):
        a_customer(client, id)
    seen, path = [], "/v1/customers?limit=3"
    while path:
        page = client.get(path).json()
        seen += [each["id"] for each in page["data"]]
        path = f"/v1/customers?limit=3&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert seen == ids


def test_a_cursor_is_good_for_its_own_list_only(client: Client, other: Client) -> None:
    for id in ("a", "b", "c"):
        a_customer(client, id)
        a_customer(other, id)
    cursor = client.get("/v1/customers?limit=1").json()["next_cursor"]
    turned = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for who, path in (
        (client, f"/v1/customers?cursor={turned}"),
        (client, "/v1/customers?cursor=x"),
        (client, "/v1/customers?cursor="),
        (client, "/v1/customers?cursor=%F0%9F%92%A9"),
        (client, f"/v1/subscriptions?cursor={cursor}"),
        (other, f"/v1/customers?cursor={cursor}"),
    ):
        answer = who.get(path)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor"), path
    assert client.get(f"/v1/customers?cursor={cursor}").status_code == 200


def test_a_read_waits_for_its_position(edge: Edge, client: Client) -> None:
    edge.lagging = True
    late = client.post("/v1/customers", {"id": "acme"})
    assert (late.status_code, late.json()["status"]) == (202, "accepted")
    position = late.headers["Tallybook-Position"]
    behind = client.get("/v1/customers", Tallybook_Position=position)
    assert (behind.status_code, behind.json()["code"], behind.headers["Retry-After"]) == (503, "behind", "1")
    assert client.get(f"/v1/customers?position={position}").status_code == 503
    assert client.get("/v1/customers").status_code == 200


@pytest.mark.parametrize("position", ["-1", "x", "1.5", "9" * 30, "٥"])
def test_a_position_is_a_number(client: Client, position: str) -> None:
    answer = client.get(f"/v1/customers?position={position}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_position")


def test_a_lost_answer_is_unavailable_and_its_retry_is_free(edge: Edge, client: Client) -> None:
    edge.handler.lose_after = 1
    body = {"id": "acme", "name": "Acme"}
    lost = client.post("/v1/customers", body, Idempotency_Key="k")
    assert (lost.status_code, lost.headers["Retry-After"]) == (503, "1")
    again = client.post("/v1/customers", body, Idempotency_Key="k")
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.json()["name"] == "Acme"


def test_one_who_asks_is_remembered_by_the_events(edge: Edge, client: Client) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    client.post("/v1/customers", {"id": "acme"}, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert edge.handler.log[-1].meta.actor.startswith("api_key:")
    refused = client.get("/v1/customers/x", traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert refused.json()["trace_id"] == trace


def test_nobody_needs_a_key_to_see_how_the_api_does(edge: Edge) -> None:
    assert edge.http.get("/healthz").json() == {"status": "alive"}
    assert edge.http.get("/readyz").json() == {"status": "ready"}
    metrics = edge.http.get("/metrics").text
    assert 'tallybook_api_requests_total{method="GET",route="/healthz",status="200"}' in metrics


def test_the_api_is_not_ready_without_postgres(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Transient("Postgres is away")

    monkeypatch.setattr("services.api.operations.entered", away)
    assert edge.http.get("/readyz").status_code == 503
