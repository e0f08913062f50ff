"""Collecting: one attempt at a time, an unknown outcome is no licence for another."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from billing.customer import AttachPaymentMethod, CreateCustomer
from billing.ids import CustomerId, InvoiceId
from billing.money import Money
from billing.payment import (
    DeclineKind,
    RecordManualPayment,
    RecordPaymentDecline,
    RecordPaymentSuccess,
    RecordPaymentUnknown,
    StartPaymentAttempt,
)
from billing.tenant import Policies
from tests.billing.tenants import (
    ACTIVATE,
    C1,
    JANUARY,
    OTHER_CARD,
    SUBSCRIBE,
    WALL,
    Life,
    a_subscriber,
    a_tenant,
    issue,
    line,
)


class Collection:
    """An open invoice of 31.00 and the commands about it."""

    def __init__(self, life: Life | None = None, **policies: Any) -> None:
        self.life = life or a_subscriber(policies=Policies(**policies))
        self.life.given(issue(self.life, line("31.00")))
        self.id = self.life.last_invoice.invoice_id

    def start(self, attempt: int = 1) -> StartPaymentAttempt:
        return StartPaymentAttempt(invoice_id=self.id, attempt=attempt)

    def success(self, attempt: int = 1, minor: int = 3100, reference: str = "pi_1") -> RecordPaymentSuccess:
        return RecordPaymentSuccess(
            invoice_id=self.id, attempt=attempt, amount=Money(minor, "USD"), reference=reference
        )

    def decline(self, attempt: int = 1, kind: DeclineKind = DeclineKind.SOFT) -> RecordPaymentDecline:
        return RecordPaymentDecline(invoice_id=self.id, attempt=attempt, kind=kind, code="insufficient_funds")

    def unknown(self, attempt: int = 1) -> RecordPaymentUnknown:
        return RecordPaymentUnknown(invoice_id=self.id, attempt=attempt, detail="timed out")

    def manual(self) -> RecordManualPayment:
        return RecordManualPayment(invoice_id=self.id, reference="statement 7")


def test_an_attempt_is_claimed_with_its_key_before_the_provider_is_asked() -> None:
    it = Collection()
    started = it.life.when(it.start()).event
    assert (started.key, started.amount, started.started_at) == (f"{it.id}-attempt-1", Money(3100, "USD"), WALL)


def test_claiming_the_attempt_under_way_again_changes_nothing() -> None:
    it = Collection()
    it.life.given(it.start()).when(it.start()).then()


def test_no_attempt_can_be_skipped_or_made_beside_another() -> None:
    it = Collection()
    it.life.when(it.start(2)).then_rejected("invalid_state")
    it.life.given(it.start()).when(it.start(2)).then_rejected("invalid_state")


def test_a_collected_attempt_pays_the_invoice() -> None:
    it = Collection()
    it.life.given(it.start()).when(it.success()).then_names("PaymentSucceeded", "InvoicePaid")


def test_a_repeated_webhook_changes_nothing() -> None:
    it = Collection()
    it.life.given(it.start(), it.success()).when(it.success()).then()


def test_an_amount_other_than_the_one_due_is_refused() -> None:
    it = Collection()
    it.life.given(it.start()).when(it.success(minor=3099)).then_rejected("amount_differs", "amount")


def test_a_soft_decline_is_tried_again_by_the_sellers_schedule() -> None:
    it = Collection(retry_days=(1, 3))
    life = it.life.given(it.start())
    assert life.when(it.decline()).event.retry_at == JANUARY + timedelta(days=1)
    life.given(it.start(2))
    assert life.when(it.decline(2)).event.retry_at == JANUARY + timedelta(days=3)
    life.given(it.start(3))
    life.when(it.decline(3)).then_names("PaymentDeclined", "DunningExhausted")
    assert life.decided[0].retry_at is None
    assert life.decided[1].attempts == 3


def test_a_hard_decline_ends_dunning_at_once() -> None:
    it = Collection()
    it.life.given(it.start()).when(it.decline(kind=DeclineKind.HARD)).then_names("PaymentDeclined", "DunningExhausted")


def test_a_decline_is_collected_on_the_retry_with_a_key_of_its_own() -> None:
    it = Collection()
    started = it.life.given(it.start(), it.decline()).when(it.start(2)).event
    assert started.key == f"{it.id}-attempt-2"
    it.life.when(it.success(2)).then_names("PaymentSucceeded", "InvoicePaid")


def test_an_unknown_outcome_holds_the_invoice_until_it_is_resolved() -> None:
    it = Collection()
    life = it.life.given(it.start())
    life.when(it.unknown()).then_names("PaymentOutcomeUnknown")
    life.when(it.unknown()).then()
    life.when(it.start(2)).then_rejected("invalid_state")
    life.when(it.manual()).then_rejected("invalid_state")
    life.when(it.success()).then_names("PaymentSucceeded", "InvoicePaid")


def test_an_unknown_outcome_may_turn_out_a_decline() -> None:
    it = Collection()
    it.life.given(it.start(), it.unknown()).when(it.decline()).then_names("PaymentDeclined")
    it.life.when(it.start(2)).then_names("PaymentAttemptStarted")


def test_a_late_decline_after_success_is_refused() -> None:
    it = Collection()
    it.life.given(it.start(), it.success()).when(it.decline()).then_rejected("invalid_state")


def test_a_payment_outside_is_not_recorded_while_an_attempt_is_pending() -> None:
    it = Collection()
    it.life.given(it.start()).when(it.manual()).then_rejected("invalid_state")


@pytest.mark.parametrize("exhausted", [False, True])
def test_a_payment_outside_settles_an_open_invoice(exhausted: bool) -> None:
    it = Collection()
    if exhausted:
        it.life.given(it.start(), it.decline(kind=DeclineKind.HARD))
    it.life.when(it.manual()).then_names("PaymentSucceeded", "InvoicePaid")
    assert it.life.decided[0].attempt == 0
    it.life.when(it.manual()).then_rejected("invalid_state")
    it.life.when(it.start()).then_rejected("invalid_state")


def test_an_exhausted_invoice_is_not_charged_by_itself() -> None:
    it = Collection()
    it.life.given(it.start(), it.decline(kind=DeclineKind.HARD)).when(it.start(2)).then_rejected("invalid_state")


def test_the_next_attempt_uses_the_card_that_was_attached_since() -> None:
    it = Collection()
    it.life.given(it.start(), it.decline(), AttachPaymentMethod(customer_id=C1, payment_method=OTHER_CARD))
    assert it.life.when(it.start(2)).event.method == OTHER_CARD


def test_a_customer_who_pays_outside_is_never_charged() -> None:
    payer = CustomerId("c2")
    life = a_tenant().given(CreateCustomer(customer_id=payer), replace(SUBSCRIBE, customer_id=payer), ACTIVATE)
    it = Collection(life)
    it.life.when(it.start()).then_rejected("manual_payment")


def test_nothing_can_be_collected_for_an_invoice_that_is_not_due() -> None:
    it = Collection()
    other = replace(it.start(), invoice_id=InvoiceId("inv_x"))
    it.life.when(other).then_rejected("unknown_invoice", "invoice_id")
