"""A subscription on trial: what is read of it, what its customer may use, and an invoice that is omitted."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from billing.catalog import PublishPriceBook
from billing.customer import CreateCustomer
from billing.ids import CustomerId, SubscriptionId
from billing.invoice import IssueInvoice
from billing.period import Alignment
from billing.plan_change import ChangeBillingAnchor, ChangeBillingZone
from billing.subscription import ActivateSubscription, CreateSubscription
from infra import postgres
from projections import entitlements, generation
from services import read_models
from tests.projections.history import CALLS, PLAN, START, History
from tests.projections.test_billing_set import project

ANN = SubscriptionId("sub_ann")
CALLS_OF_ANN = ("acme", "ann", "calls")


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
        (granted,) = entitlements.of_all(tx, [CALLS_OF_ANN])[CALLS_OF_ANN]
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


def boundaries(pool: postgres.Pool) -> tuple[str, datetime | None, datetime, datetime | None]:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        row = tx.execute("SELECT zone, period_end, next_boundary, ends_at FROM subscriptions").fetchone()
        assert row is not None
        return row[0], row[1], row[2], row[3]


def test_a_change_of_anchor_now_is_due_at_once_and_one_at_the_end_is_not(pool: postgres.Pool) -> None:
    history = History().register()
    history.send(PublishPriceBook(meters=(CALLS,), plans=(replace(PLAN, alignment=Alignment.ANCHOR),)))
    history.subscribe("ann")
    now = START + timedelta(days=10)
    history.advance(now)
    history.send(ChangeBillingAnchor(subscription_id=ANN, anchor=START + timedelta(days=15)))
    project(pool, history)
    assert boundaries(pool)[1] == boundaries(pool)[2]
    history.send(ChangeBillingAnchor(subscription_id=ANN, at_period_end=False))
    project(pool, history)
    assert boundaries(pool)[2] == now
    assert history.state.subscriptions[ANN].boundary == now  # type: ignore[union-attr]


def test_a_change_of_zone_moves_the_period_and_what_waits_for_its_end(pool: postgres.Pool) -> None:
    history = on_trial().change_plan("ann").cancel("ann")
    history.send(ChangeBillingZone(subscription_id=ANN, zone="Asia/Tokyo"))
    project(pool, history)
    moved = START + timedelta(days=14, hours=-14)
    assert boundaries(pool) == ("Asia/Tokyo", moved, moved, moved)
    assert read(pool) == ("trialing", moved, moved)
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT effective_at FROM subscription_changes").fetchall() == [(moved,)]
        assert {each.period.end for each in entitlements.of_all(tx, [CALLS_OF_ANN])[CALLS_OF_ANN]} == {moved}
