"""A subscription on another plan: what is read of it, and what its customer may use."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from billing.catalog import PublishPriceBook
from billing.entitlement import Entitlement
from billing.ids import SubscriptionId
from billing.plan import AddOn
from billing.plan_change import AddAddOn, ChangePlan, MigrateSubscription, RemoveAddOn
from billing.price import Charge, Flat
from infra import postgres
from projections import entitlements, generation
from tests.projections.history import CALLS, PLAN, START, History
from tests.projections.test_billing_set import project

ANN = SubscriptionId("sub_ann")
MORE = AddOn(
    key="more",
    name="More calls",
    currency="USD",
    charges=(Charge(key="fee", name="More calls", model=Flat(Decimal(5)), in_advance=True),),
    entitlements=(replace(PLAN.entitlements[1], limit=Decimal(100)),),
)
TEAM = replace(PLAN, key="team", name="Team", entitlements=(Entitlement(feature="sso"), Entitlement(feature="audit")))
LARGER = replace(PLAN, entitlements=(PLAN.entitlements[0], replace(PLAN.entitlements[1], limit=Decimal(5000))))
NOW = ChangePlan(subscription_id=ANN, plan="team", at_period_end=False)


def ann() -> History:
    history = History().register()
    history.send(PublishPriceBook(meters=(CALLS,), plans=(PLAN, TEAM), add_ons=(MORE,)))
    return history.subscribe("ann")


def plan(pool: postgres.Pool) -> tuple[str, int]:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        row = tx.execute("SELECT plan, price_book_version FROM subscriptions").fetchone()
        assert row is not None
        return row[0], row[1]


def granted(pool: postgres.Pool) -> dict[str, Decimal | None]:
    """Limits by feature of what is granted and not revoked."""
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        found = entitlements.of_all(tx, [("acme", "ann", each) for each in ("sso", "audit", "calls")])
    grants = [grant for each in found.values() for grant in each if grant.revoked_at is None]
    return {each.entitlement.feature: each.entitlement.limit for each in grants}


def test_a_change_now_is_in_force_at_once_and_its_features_follow(pool: postgres.Pool) -> None:
    history = ann()
    history.advance(START + timedelta(days=10)).send(NOW)
    project(pool, history)
    assert plan(pool) == ("team", 2)
    assert granted(pool) == {"sso": None, "audit": None}


def test_a_change_at_the_periods_end_waits_for_it(pool: postgres.Pool) -> None:
    history = ann()
    history.send(replace(NOW, at_period_end=True))
    project(pool, history)
    assert (plan(pool), granted(pool)) == (("pro", 2), {"sso": None, "calls": Decimal(1000)})
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    assert (plan(pool), granted(pool)) == (("team", 2), {"sso": None, "audit": None})


def test_a_change_that_is_taken_back_never_shows(pool: postgres.Pool) -> None:
    history = ann()
    history.send(replace(NOW, at_period_end=True))
    history.send(ChangePlan(subscription_id=ANN, plan="pro"))
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    assert (plan(pool), granted(pool)) == (("pro", 2), {"sso": None, "calls": Decimal(1000)})


def test_a_migration_brings_the_newest_versions_limits(pool: postgres.Pool) -> None:
    history = ann()
    history.send(PublishPriceBook(meters=(CALLS,), plans=(LARGER, TEAM)))
    history.send(MigrateSubscription(subscription_id=ANN))
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    assert (plan(pool), granted(pool)) == (("pro", 3), {"sso": None, "calls": Decimal(5000)})


def test_a_change_in_a_period_that_is_not_opened_yet_stays_in_force_when_it_is(pool: postgres.Pool) -> None:
    history = ann()
    boundary = history.state.subscriptions[ANN].boundary  # type: ignore[union-attr]
    history.advance(boundary + timedelta(hours=1)).send(NOW)
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    assert (plan(pool), granted(pool)) == (("team", 2), {"sso": None, "audit": None})


def test_a_feature_that_comes_back_is_granted_again(pool: postgres.Pool) -> None:
    history = ann()
    for day, key in ((5, "team"), (9, "pro")):
        history.advance(START + timedelta(days=day)).send(replace(NOW, plan=key))
    project(pool, history)
    assert granted(pool) == {"sso": None, "calls": Decimal(1000)}


def test_add_ons_raise_limits_while_they_last(pool: postgres.Pool) -> None:
    history = ann()
    history.advance(START + timedelta(days=5)).send(AddAddOn(subscription_id=ANN, add_on="more", quantity=3))
    project(pool, history)
    assert granted(pool) == {"sso": None, "calls": Decimal(1300)}
    history.send(RemoveAddOn(subscription_id=ANN, add_on="more"))
    project(pool, history)
    assert granted(pool) == {"sso": None, "calls": Decimal(1300)}
    history.issue_awaited()
    history.close("ann")
    project(pool, history)
    assert granted(pool) == {"sso": None, "calls": Decimal(1000)}
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        assert tx.execute("SELECT add_ons FROM subscriptions").fetchall() == [({},)]
