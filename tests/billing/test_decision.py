"""Deciding for a tenant: keys, order, chain."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from billing.customer import CreateCustomer
from billing.decision import KEY_RETENTION, TenantState
from billing.envelope import GENESIS
from billing.errors import CorruptHistory
from billing.ids import CustomerId, InvoiceId, TenantId
from billing.money import Money
from billing.payment import RecordPaymentSuccess
from billing.subscription import CreateSubscription
from schemas.hashing import payload_hash
from tests.billing.tenants import BOOK, CREATE_C1, REGISTER, S1, SUBSCRIBE, Life, a_subscriber, a_tenant, issue, line

C2 = CreateCustomer(customer_id=CustomerId("c2"))


def test_the_same_key_and_payload_returns_the_first_outcome() -> None:
    life = a_tenant().when(C2, key="api:1")
    first = life.state.sequence
    life.when(C2, key="api:1")
    assert life.replayed is not None
    assert (life.replayed.accepted.first_sequence, life.replayed.accepted.last_sequence) == (first, first)
    assert life.replayed.accepted.aggregate_ids == ("customer:c2",)
    assert life.state.sequence == first


def test_the_same_key_with_another_payload_is_refused() -> None:
    a_tenant().given().when(C2, key="api:1").when(CREATE_C1, key="api:1").then_rejected(
        "idempotency_key_reused", "idempotency_key"
    )


def test_a_rejected_key_is_decided_anew() -> None:
    life = Life().given(REGISTER, CREATE_C1).when(SUBSCRIBE, key="api:1").then_rejected("no_price_book")
    life.given(BOOK).when(SUBSCRIBE, key="api:1").then_names("SubscriptionCreated")


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_one_to_255_characters(key: str) -> None:
    a_tenant().when(C2, key=key).then_rejected("idempotency_key_invalid", "idempotency_key")


def test_a_key_is_known_for_thirty_days_and_forgotten_after() -> None:
    life = a_tenant().when(C2, key="api:1").later(KEY_RETENTION)
    life.given(CreateCustomer(customer_id=CustomerId("c3"))).when(C2, key="api:1")
    assert life.replayed is not None
    life.later(timedelta(seconds=1)).given(CreateCustomer(customer_id=CustomerId("c4")))
    assert life.when(C2, key="api:1").replayed is None


def test_all_events_of_one_command_are_its_outcome() -> None:
    life = a_subscriber()
    command = issue(life, line("31.00"))
    life.when(command, key="invoicing:1").when(command, key="invoicing:1")
    assert life.replayed is not None
    outcome = life.replayed.accepted
    assert outcome.last_sequence - outcome.first_sequence == 1
    assert [each.partition(":")[0] for each in outcome.aggregate_ids] == ["invoice", "payment"]


def test_events_are_numbered_and_chained_without_gaps() -> None:
    life = a_subscriber()
    assert [each.meta.sequence for each in life.envelopes] == list(range(1, len(life.envelopes) + 1))
    assert life.envelopes[0].meta.previous_hash == GENESIS
    for (_, hashed), (following, _) in pairwise(zip(life.envelopes, life.hashes, strict=True)):
        assert following.meta.previous_hash == hashed


def test_the_log_alone_gives_the_same_state() -> None:
    life = a_subscriber()
    assert life.folded() == life.state


@pytest.mark.parametrize("index", [0, 2])
def test_an_event_that_does_not_follow_is_corruption(index: int) -> None:
    life = a_subscriber()
    state = TenantState(TenantId("acme"))
    state.apply(life.envelopes[0], life.hashes[0])
    with pytest.raises(CorruptHistory, match="after 1"):
        state.apply(life.envelopes[index], life.hashes[index])


def test_a_changed_event_breaks_the_chain() -> None:
    life = a_subscriber()
    state = TenantState(TenantId("acme"))
    state.apply(life.envelopes[0], bytes(32))
    with pytest.raises(CorruptHistory, match="hash chain"):
        state.apply(life.envelopes[1], life.hashes[1])


def test_an_aggregate_version_out_of_order_is_corruption() -> None:
    life = a_tenant()
    broken = replace(life.envelopes[1], meta=replace(life.envelopes[1].meta, aggregate_version=7))
    state = TenantState(TenantId("acme"))
    state.apply(life.envelopes[0], life.hashes[0])
    with pytest.raises(CorruptHistory, match="version 7"):
        state.apply(broken, life.hashes[1])


def test_an_impossible_event_is_corruption_and_never_skipped() -> None:
    life = a_subscriber()
    created = life.envelopes[3]
    assert created.meta.type == "SubscriptionCreated"
    again = replace(
        created,
        meta=replace(
            created.meta,
            sequence=life.state.sequence + 1,
            previous_hash=life.state.last_hash,
            aggregate_version=life.state.versions[created.meta.aggregate_id] + 1,
        ),
    )
    with pytest.raises(CorruptHistory, match="SubscriptionCreated after Active"):
        life.state.apply(again, bytes(32))


def test_an_observed_field_is_no_part_of_the_payload() -> None:
    def success(reference: str, minor: int = 100) -> RecordPaymentSuccess:
        return RecordPaymentSuccess(
            invoice_id=InvoiceId("i"), attempt=1, amount=Money(minor, "USD"), reference=reference
        )

    assert payload_hash(success("pi_1")) == payload_hash(success("pi_2"))
    assert payload_hash(success("pi_1")) != payload_hash(success("pi_1", 101))


def test_a_payload_is_known_by_its_values_not_by_how_they_were_written() -> None:
    plan = BOOK.plans[0]
    written = [
        replace(BOOK, plans=(replace(plan, minimum_commitment=Decimal(text)),)) for text in ("10", "10.00", "1E+1")
    ]
    assert len({payload_hash(each) for each in written}) == 1


def test_payloads_that_differ_in_any_field_have_other_hashes() -> None:
    made = [
        REGISTER,
        replace(REGISTER, name="Harbour"),
        replace(REGISTER, test_clock=None),
        CREATE_C1,
        C2,
        SUBSCRIBE,
        CreateSubscription(subscription_id=S1, customer_id=CustomerId("c1"), plan="Pro"),
    ]
    assert len({payload_hash(each) for each in made}) == len(made)


def test_a_payload_hash_is_the_same_in_every_release() -> None:
    """Keys outlive releases: this value must never change."""
    assert payload_hash(CreateCustomer(customer_id=CustomerId("c1"))).hex() == (
        "399c989d7ca0793654bbdbe82752655efd8ea4fea28a1e445617886d457b7765"
    )
