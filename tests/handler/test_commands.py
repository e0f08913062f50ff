"""One handler, one partition: what a caller is told."""

from __future__ import annotations

from billing.customer import CreateCustomer, PaymentMethod, Provider
from billing.envelope import Outcome
from billing.ids import CustomerId
from tests.handler.conftest import SELLER, Handlers

CARD = PaymentMethod(provider=Provider.SANDBOX, token="tok_visa")


def test_a_command_is_answered_with_the_events_that_follow(handlers: Handlers) -> None:
    handlers.start()
    result = handlers.ask("acme", SELLER, "test:register")
    assert (result.outcome, result.first_sequence, result.last_sequence) == (Outcome.ACCEPTED, 1, 1)
    assert result.aggregate_ids == ("tenant",)
    (event,) = handlers.events("acme")
    assert event.meta.type == "TenantRegistered"
    assert event.meta.idempotency_key == "test:register"


def test_a_repeated_command_gets_its_result_again_and_changes_nothing(handlers: Handlers) -> None:
    handlers.start()
    first = handlers.ask("acme", SELLER, "test:register")
    handlers.ask("acme", CreateCustomer(customer_id=CustomerId("c1")), "test:c1")
    again = handlers.ask("acme", SELLER, "test:register")
    assert (again.outcome, again.replayed) == (Outcome.ACCEPTED, True)
    assert (again.first_sequence, again.last_sequence) == (first.first_sequence, first.last_sequence)
    assert again.aggregate_ids == first.aggregate_ids
    assert len(handlers.events()) == 2


def test_a_key_reused_for_another_request_is_refused(handlers: Handlers) -> None:
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")
    handlers.ask("acme", CreateCustomer(customer_id=CustomerId("c1")), "test:c1")
    refused = handlers.ask("acme", CreateCustomer(customer_id=CustomerId("c2")), "test:c1")
    assert (refused.outcome, refused.code, refused.field) == (
        Outcome.REJECTED,
        "idempotency_key_reused",
        "idempotency_key",
    )
    assert len(handlers.events()) == 2


def test_a_rejection_has_no_effect_and_its_retry_is_decided_anew(handlers: Handlers) -> None:
    handlers.start()
    command = CreateCustomer(customer_id=CustomerId("c1"), payment_method=CARD)
    assert handlers.ask("acme", command, "test:c1").code == "unknown_tenant"
    assert handlers.events() == []
    handlers.ask("acme", SELLER, "test:register")
    retried = handlers.ask("acme", command, "test:c1")
    assert (retried.outcome, retried.replayed, retried.first_sequence) == (Outcome.ACCEPTED, False, 2)
