"""What every payment gateway promises, held against the sandbox provider through both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.ids import CustomerId, InvoiceId, TenantId, payment_key
from billing.money import Money
from billing.payment import DeclineKind
from infra.collection import Collected, Collection, Declined
from infra.errors import Misconfigured, Poison, Transient
from infra.sandbox_gateway import SandboxGateway
from infra.stripe_gateway import StripeGateway
from tests.payments.sandbox import RunningSandbox, running_sandbox

Gateway = SandboxGateway | StripeGateway


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[RunningSandbox]:
    with running_sandbox(tmp_path, slow_s=1.0) as running:
        yield running


@pytest.fixture(params=["sandbox", "stripe"])
def connect(request: pytest.FixtureRequest, provider: RunningSandbox) -> Iterator[Callable[[float], Gateway]]:
    made: list[Gateway] = []

    def make(timeout_s: float) -> Gateway:
        if request.param == "stripe":
            made.append(StripeGateway("sk_test_x", url=provider.url, timeout_s=timeout_s))
        else:
            made.append(SandboxGateway(provider.url, timeout_s=timeout_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def gateway(connect: Callable[[float], Gateway]) -> Gateway:
    return connect(5)


def attempt(
    n: int = 1, *, token: str = "pm_card_visa", invoice: str = "inv_1", minor: int = 4900, customer: str = "acme"
) -> Collection:
    return Collection(
        tenant_id=TenantId("airport"),
        invoice_id=InvoiceId(invoice),
        customer_id=CustomerId(customer),
        attempt=n,
        key=payment_key(InvoiceId(invoice), n),
        amount=Money(minor, "USD"),
        token=token,
    )


def test_a_good_card_is_charged_the_amount_due(gateway: Gateway, provider: RunningSandbox) -> None:
    outcome = gateway.collect(attempt())
    assert isinstance(outcome, Collected)
    assert outcome.amount == Money(4900, "USD")
    [charge] = provider.charges()
    assert (charge["id"], charge["amount"], charge["currency"]) == (outcome.reference, 4900, "usd")
    assert charge["metadata"]["invoice_id"] == "inv_1"


def test_repeating_a_key_repeats_the_answer_and_charges_nothing(gateway: Gateway, provider: RunningSandbox) -> None:
    assert gateway.collect(attempt()) == gateway.collect(attempt())
    assert len(provider.charges()) == 1


@pytest.mark.parametrize(
    ("token", "code", "kind"),
    [
        ("pm_card_chargeDeclinedInsufficientFunds", "insufficient_funds", DeclineKind.SOFT),
        ("pm_card_chargeDeclined", "generic_decline", DeclineKind.SOFT),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", DeclineKind.HARD),
        ("pm_card_chargeDeclinedLostCard", "lost_card", DeclineKind.HARD),
        ("pm_card_authenticationRequired", "authentication_required", DeclineKind.HARD),
    ],
)
def test_a_declined_card_is_an_answer_and_is_found_again(
    gateway: Gateway, provider: RunningSandbox, token: str, code: str, kind: DeclineKind
) -> None:
    expected = Declined(code=code, kind=kind)
    assert gateway.collect(attempt(token=token)) == expected
    assert gateway.collect(attempt(token=token)) == expected
    assert gateway.look_up(attempt(token=token)) == expected
    assert provider.charges() == []


def test_the_card_that_declines_once_pays_from_the_second_attempt_on(gateway: Gateway) -> None:
    token = "pm_card_declinesOnceInsufficientFunds"
    assert gateway.collect(attempt(1, token=token)) == Declined(code="insufficient_funds", kind=DeclineKind.SOFT)
    assert isinstance(gateway.collect(attempt(2, token=token)), Collected)
    assert isinstance(gateway.collect(attempt(1, token=token, invoice="inv_2")), Collected)
    assert isinstance(gateway.collect(attempt(token=token, invoice="inv_3", customer="other")), Declined)


@pytest.mark.parametrize("fault", ["after", "reset", "truncated", "500_charged"])
def test_a_lost_answer_is_unknown_and_asking_finds_the_charge(
    gateway: Gateway, provider: RunningSandbox, fault: str
) -> None:
    provider.fail_next(fault)
    with pytest.raises(Transient):
        gateway.collect(attempt())
    assert isinstance(gateway.look_up(attempt()), Collected)
    assert len(provider.charges()) == 1


@pytest.mark.parametrize("fault", ["before", "409", "429"])
def test_a_request_that_was_not_begun_is_unknown_and_may_be_repeated(
    gateway: Gateway, provider: RunningSandbox, fault: str
) -> None:
    provider.fail_next(fault)
    with pytest.raises(Transient):
        gateway.collect(attempt())
    assert gateway.look_up(attempt()) is None
    assert isinstance(gateway.collect(attempt()), Collected)
    assert len(provider.charges()) == 1


def test_a_server_error_is_saved_under_its_key(gateway: Gateway, provider: RunningSandbox) -> None:
    provider.fail_next("500")
    for _ in range(2):
        with pytest.raises(Transient):
            gateway.collect(attempt())
    assert gateway.look_up(attempt()) is None
    assert provider.charges() == []


def test_an_answer_slower_than_the_timeout_is_unknown(
    connect: Callable[[float], Gateway], provider: RunningSandbox
) -> None:
    impatient = connect(0.3)
    with pytest.raises(Transient):
        impatient.collect(attempt(token="pm_card_slow"))
    with pytest.raises(Transient, match="409"):  # the first request is still at work under the key
        impatient.collect(attempt(token="pm_card_slow"))
    assert isinstance(impatient.look_up(attempt(token="pm_card_slow")), Collected)
    assert len(provider.charges()) == 1


def test_the_card_that_loses_its_answer_charges_once(gateway: Gateway, provider: RunningSandbox) -> None:
    lost = attempt(token="pm_card_lostAnswer")
    with pytest.raises(Transient):
        gateway.collect(lost)
    assert isinstance(gateway.collect(lost), Collected)
    assert len(provider.charges()) == 1


def test_a_key_with_another_amount_is_refused_for_good(gateway: Gateway, provider: RunningSandbox) -> None:
    gateway.collect(attempt())
    with pytest.raises(Poison):
        gateway.collect(attempt(minor=5000))
    assert len(provider.charges()) == 1


def test_a_payment_method_that_is_not_known_is_the_customers_to_repair(gateway: Gateway) -> None:
    unknown = attempt(token="pm_none")
    assert gateway.collect(unknown) == Declined(code="payment_method_missing", kind=DeclineKind.HARD)
    assert gateway.look_up(unknown) is None


def test_a_provider_forgets_a_key_after_a_day_but_not_the_charge(gateway: Gateway, provider: RunningSandbox) -> None:
    first = gateway.collect(attempt())
    provider.advance(25 * 3600)
    assert gateway.look_up(attempt()) == first
    gateway.collect(attempt())
    assert len(provider.charges()) == 2  # which is why nobody posts with an old key


def test_the_book_survives_the_provider(tmp_path: Path) -> None:
    with running_sandbox(tmp_path) as first:
        charged = SandboxGateway(first.url).collect(attempt())
    with running_sandbox(tmp_path) as second:
        assert SandboxGateway(second.url).collect(attempt()) == charged
        assert len(second.charges()) == 1


def test_without_a_provider_the_outcome_is_unknown() -> None:
    for gateway in (SandboxGateway("http://127.0.0.1:9"), StripeGateway("sk_test_x", url="http://127.0.0.1:9")):
        with pytest.raises(Transient):
            gateway.collect(attempt())


def test_stripe_without_a_key_names_the_setting() -> None:
    with pytest.raises(Misconfigured, match="TALLYBOOK_STRIPE_KEY"):
        StripeGateway("")
