"""A subscription on trial: what is read of it, what its customer may use, and an invoice that is omitted."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from billing.catalog import PublishPriceBook
from billing.customer import CreateCustomer
from billing.ids import CustomerId, SubscriptionId
from billing.invoice import IssueInvoice
from billing.subscription import ActivateSubscription, CreateSubscription
from infra import postgres
from projections import entitlements, generation
from services import read_models
from tests.projections.history import CALLS, PLAN, History
from tests.projections.test_billing_set import project

ANN = SubscriptionId("sub_ann")


def on_trial() -> History:
    history = History().register()
    history.send(PublishPriceBook(meters=(CALLS,), plans=(replace(PLAN, trial="P14D"),)))
    history.send(CreateCustomer(customer_id=CustomerId("ann")))
    history.send(CreateSubscription(subscription_id=ANN, customer_id=CustomerId("ann"), plan="pro"))
    history.send(ActivateSubscription(subscription_id=ANN))
    return history


def read(pool: postgres.Pool) -> tuple[str, datetime | None, datetime | None]:
    with postgres.transaction(pool) as tx:
        row = read_models.subscription(read_models.entered(tx), "acme", ANN)
        assert row is not None
        return row.status, row.trial_ends_at, row.period_end


def test_a_trial_grants_features_and_is_over_with_its_period(pool: postgres.Pool) -> None:
    history = on_trial()
    project(pool, history)
    status, trial_ends_at, period_end = read(pool)
    assert (status, trial_ends_at) == ("trialing", period_end)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        (granted,) = entitlements.of(tx, "acme", "ann", "calls")
    assert (granted.revoked_at, granted.period.end) == (None, trial_ends_at)
    history.close("ann")
    project(pool, history)
    assert read(pool)[0] == "active"


def test_an_omitted_invoice_is_awaited_no_more(pool: postgres.Pool) -> None:
    history = on_trial().cancel("ann")
    run = history.close("ann")
    history.send(IssueInvoice(invoice_id=run.invoice_id, lines=()))
    project(pool, history)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT state FROM runs").fetchall() == [("omitted",)]
        assert tx.execute("SELECT count(*) FROM invoices").fetchall() == [(0,)]
    assert read(pool)[0] == "ended"
