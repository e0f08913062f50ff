"""Changing plans and versions: what is decided, which segments a period has, what they cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import Plan
from billing.customer import RedeemCoupon
from billing.invoicing import LineKind, RatedLine, lines, needs
from billing.metering import Measured
from billing.period import Alignment, Period
from billing.plan_change import ChangePlan, MigrateSubscription
from billing.price import Charge, Flat, Graduated, PerUnit, Tier
from billing.subscription import CancelSubscription
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
    BASE_FEE,
    BOOK,
    C1,
    CALLS_CHARGE,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    issue,
    until,
)

# 31 days, so that a day of a fee of 31.00 is 1.00
TIERS = Graduated((Tier(up_to=Decimal(100), unit=Decimal("0.10")), Tier(unit=Decimal("0.05"))))
STARTER = Plan(
    key="starter",
    name="Starter",
    currency="USD",
    charges=(BASE_FEE, replace(CALLS_CHARGE, model=TIERS)),
)
GROWTH = Plan(
    key="growth",
    name="Growth",
    currency="USD",
    charges=(
        replace(BASE_FEE, model=Flat(Decimal("62.00"))),
        replace(CALLS_CHARGE, model=PerUnit(Decimal("0.02"))),
        Charge(key="support", name="Support", model=Flat(Decimal("31.00"))),
    ),
    minimum_commitment=Decimal("310.00"),
)
YEARLY = replace(STARTER, key="yearly", interval="P1Y")
EURO = replace(STARTER, key="euro", currency="EUR")
PLANS = replace(BOOK, plans=(STARTER, GROWTH, YEARLY, EURO))
NEWER = replace(PLANS, plans=(replace(STARTER, charges=(BASE_FEE, CALLS_CHARGE)), GROWTH, YEARLY, EURO))

TO_GROWTH = ChangePlan(subscription_id=S1, plan="growth")
GROWTH_NOW = replace(TO_GROWTH, at_period_end=False)
TO_STARTER = replace(TO_GROWTH, plan="starter")
MIGRATE = MigrateSubscription(subscription_id=S1)
MIGRATE_NOW = replace(MIGRATE, at_period_end=False)
DAY_11, DAY_21 = (datetime(2026, 1, day, tzinfo=UTC) for day in (11, 21))


def a_starter(**changes: Any) -> Life:
    """On Starter since the first of January, its fee billed."""
    life = Life().given(replace(REGISTER, **changes), PLANS, CREATE_C1, replace(SUBSCRIBE, plan="starter"), ACTIVATE)
    return billed(life)


def rated(life: Life, calls: int = 0) -> tuple[RatedLine, ...]:
    """The lines of the latest run, with as many calls in each span."""
    run = next(run for each in reversed(life.envelopes) if (run := getattr(each.event, "run", None)))
    books = life.state.catalog.by_version
    return lines(run, books, (), dict.fromkeys(needs(run, books, ()), Measured(Decimal(calls))))


def billed(life: Life, calls: int = 0) -> Life:
    return life.given(issue(life, *rated(life, calls)))


def amounts(found: tuple[RatedLine, ...]) -> dict[tuple[str, str, str], str]:
    """Amount by kind, charge and days."""
    return {
        (str(each.kind), each.charge, f"{each.period.start:%m-%d}..{each.period.end:%m-%d}"): str(each.amount.major())
        for each in found
    }


# --- what is decided ---


def test_a_change_waits_for_the_periods_end_unless_it_is_asked_for_now() -> None:
    life = a_starter().given(until(DAY_11))
    change = life.when(TO_GROWTH).event
    assert (change.effective_at, change.terms.plan, change.terms.price_book_version) == (FEBRUARY, "growth", 1)
    assert life.when(GROWTH_NOW).event.effective_at == DAY_11


def test_changing_to_the_plan_one_has_changes_nothing() -> None:
    a_starter().when(TO_STARTER).then()
    a_starter().given(TO_GROWTH).when(TO_GROWTH).then()


def test_the_period_after_the_change_is_on_the_new_plan_and_prepays_its_fee() -> None:
    life = a_starter().given(TO_GROWTH, until(FEBRUARY), close(FEBRUARY))
    run = life.event.run
    assert [each.pricing.plan for each in run.segments] == ["starter"]
    assert (run.plan, run.advance.pricing.plan, life.event.next.pricing.plan) == ("starter", "growth", "growth")
    assert amounts(rated(life)) == {
        ("usage", "calls", "01-01..02-01"): "0.00",
        ("fee", "base", "02-01..03-01"): "62.00",
    }


def test_the_last_of_several_changes_that_wait_counts() -> None:
    life = a_starter().given(TO_GROWTH, replace(TO_GROWTH, plan="yearly"), until(FEBRUARY), close(FEBRUARY))
    assert life.event.next.pricing.plan == "yearly"


def test_a_change_that_waits_is_taken_back_by_asking_for_the_present_plan() -> None:
    life = a_starter().given(TO_GROWTH, NEWER, TO_STARTER, until(FEBRUARY), close(FEBRUARY))
    (before,) = life.event.run.segments
    assert life.event.next.pricing == replace(before.pricing, period_number=2)


def test_a_change_now_replaces_a_plan_that_waits() -> None:
    life = a_starter().given(replace(TO_GROWTH, plan="yearly"), until(DAY_11), GROWTH_NOW, until(FEBRUARY))
    assert life.given(close(FEBRUARY)).event.next.pricing.plan == "growth"


def test_a_plan_is_taken_from_the_price_book_in_force_when_it_takes_effect() -> None:
    life = a_starter().given(replace(NEWER, effective_at=FEBRUARY), until(DAY_11))
    assert life.when(GROWTH_NOW).event.terms.price_book_version == 1
    assert a_starter().given(replace(NEWER, effective_at=FEBRUARY)).when(TO_GROWTH).event.terms.price_book_version == 2


def test_a_migration_puts_the_subscription_on_the_newest_version_of_its_plan() -> None:
    life = a_starter().given(NEWER)
    migrated = life.when(MIGRATE).event
    assert (migrated.effective_at, migrated.terms.plan, migrated.terms.price_book_version) == (FEBRUARY, "starter", 2)
    life.when(MIGRATE).then()
    life.given(until(FEBRUARY), close(FEBRUARY))
    assert (life.event.run.price_book_version, life.event.next.pricing.price_book_version) == (1, 2)


def test_nobody_is_migrated_by_publishing_alone() -> None:
    life = a_starter().given(NEWER, until(FEBRUARY), close(FEBRUARY))
    assert life.event.next.pricing.price_book_version == 1


def test_a_migration_now_leaves_a_plan_that_waits() -> None:
    life = a_starter().given(TO_GROWTH, NEWER, until(DAY_11), MIGRATE_NOW, until(FEBRUARY), close(FEBRUARY))
    assert [each.pricing.price_book_version for each in life.event.run.segments] == [1, 2]
    assert life.event.next.pricing.plan == "growth"


@pytest.mark.parametrize(
    ("given", "command", "code", "field"),
    [
        ((), replace(TO_GROWTH, plan="gold"), "unknown_plan", "plan"),
        ((), replace(TO_GROWTH, plan="euro"), "currency_mismatch", "plan"),
        ((), replace(GROWTH_NOW, plan="yearly"), "other_interval", "at_period_end"),
        ((CancelSubscription(subscription_id=S1),), TO_GROWTH, "ending", ""),
        ((replace(PLANS, plans=(GROWTH,)),), MIGRATE, "unknown_plan", "plan"),
    ],
)
def test_a_change_that_could_not_be_billed_is_refused(given: Any, command: Any, code: str, field: str) -> None:
    a_starter().given(*given).when(command).then_rejected(code, field)


@pytest.mark.parametrize("command", [TO_GROWTH, MIGRATE])
def test_only_a_subscription_that_bills_or_will_is_changed(command: Any) -> None:
    life = Life().given(REGISTER, PLANS, CREATE_C1)
    life.when(command).then_rejected("unknown_subscription", "subscription_id")
    ended = a_starter().given(CancelSubscription(subscription_id=S1), until(FEBRUARY), close(FEBRUARY))
    ended.when(command).then_rejected("invalid_state")


def test_a_scheduled_subscription_starts_on_the_plan_it_was_changed_to() -> None:
    life = Life().given(REGISTER, PLANS, CREATE_C1, replace(SUBSCRIBE, plan="starter", starts_at=FEBRUARY))
    assert life.when(GROWTH_NOW).event.effective_at == FEBRUARY
    life.given(until(FEBRUARY))
    assert life.when(ACTIVATE).event.first.pricing.plan == "growth"


def test_a_plan_of_another_interval_starts_its_rhythm_at_the_change() -> None:
    anniversary = replace(YEARLY, alignment=Alignment.ANCHOR)
    life = a_starter().given(replace(PLANS, plans=(STARTER, anniversary)), replace(TO_GROWTH, plan="yearly"))
    life.given(until(FEBRUARY), close(FEBRUARY))
    assert life.event.next.period == Period(FEBRUARY, datetime(2027, 2, 1, tzinfo=UTC))
    life.given(TO_STARTER)
    assert life.event.effective_at == datetime(2027, 2, 1, tzinfo=UTC)


def test_a_change_while_the_last_period_waits_to_be_closed_belongs_to_the_next_one() -> None:
    life = a_starter().given(until(FEBRUARY + timedelta(hours=1)), GROWTH_NOW)
    life.given(close(FEBRUARY))
    assert (len(life.event.run.segments), life.event.next.pricing.plan) == (1, "starter")
    billed(life).given(until(MARCH), close(MARCH))
    assert [each.pricing.plan for each in life.event.run.segments] == ["starter", "growth"]


# --- what it costs ---


def test_the_unused_fee_is_credited_and_the_new_one_charged_for_the_rest() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life, calls=150)) == {
        ("usage", "calls", "01-01..01-11"): "12.50",  # 100 x 0.10 + 50 x 0.05
        ("fee", "base", "01-11..02-01"): "42.00",  # 21 of 31 days of 62.00
        ("usage", "calls", "01-11..02-01"): "3.00",  # rated by itself, from zero
        ("fee", "support", "01-11..02-01"): "21.00",
        ("commitment", "minimum_commitment", "01-11..02-01"): "144.00",  # 21 of 31 days of 310.00, less 66.00
        ("fee", "base", "02-01..03-01"): "62.00",
        ("unused_fee", "base", "01-11..02-01"): "-21.00",
    }


def test_the_lines_of_a_period_with_several_plans_name_them() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, until(FEBRUARY), close(FEBRUARY))
    names = [each.description for each in rated(life)]
    assert names[:2] == ["Starter: Calls", "Growth: Base fee"]
    assert names[-1] == "Starter: Base fee, unused time"


def test_usage_at_the_instant_of_the_switch_belongs_to_the_new_plan() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, until(FEBRUARY), close(FEBRUARY))
    first, second = needs(life.event.run, life.state.catalog.by_version, ())
    assert (DAY_11 in first.period, DAY_11 in second.period) == (False, True)


def test_of_several_changes_in_one_instant_only_the_last_is_charged() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, replace(TO_STARTER, at_period_end=False))
    life.given(until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life)) == {
        ("usage", "calls", "01-01..02-01"): "0.00",
        ("fee", "base", "02-01..03-01"): "31.00",
    }


def test_a_change_in_the_instant_in_which_a_period_begins_gives_its_whole_fee_back() -> None:
    life = a_starter().given(GROWTH_NOW, until(FEBRUARY), close(FEBRUARY))
    found = amounts(rated(life))
    assert found["unused_fee", "base", "01-01..02-01"] == "-31.00"
    assert found["fee", "base", "01-01..02-01"] == "62.00"
    assert ("usage", "calls", "01-01..02-01") in found


def test_a_charge_that_the_new_version_leaves_alone_goes_on() -> None:
    """Its fee is neither credited nor charged again; only the charge that changed is rated per version."""
    life = a_starter().given(NEWER, until(DAY_11), MIGRATE_NOW, until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life, calls=150)) == {
        ("usage", "calls", "01-01..01-11"): "12.50",
        ("usage", "calls", "01-11..02-01"): "15.00",
        ("fee", "base", "02-01..03-01"): "31.00",
    }


def test_a_new_name_alone_does_not_start_the_tiers_again() -> None:
    renamed = replace(STARTER, charges=(BASE_FEE, replace(STARTER.charges[1], name="API calls")))
    life = a_starter().given(replace(PLANS, plans=(renamed,)), until(DAY_11), MIGRATE_NOW, until(FEBRUARY))
    life.given(close(FEBRUARY))
    assert amounts(rated(life, calls=150))["usage", "calls", "01-01..02-01"] == "12.50"


def test_the_credit_comes_from_what_was_billed_after_discounts() -> None:
    """SEMANTICS 22: 10 % off 31.00 were 27.90, of which 21 of 31 days are given back."""
    life = Life().given(REGISTER, PLANS, CREATE_C1, RedeemCoupon(customer_id=C1, coupon="TENTH"))
    billed(life.given(replace(SUBSCRIBE, plan="starter"), ACTIVATE))
    life.given(until(DAY_11), GROWTH_NOW, until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life))["unused_fee", "base", "01-11..02-01"] == "-18.90"


def test_a_change_waits_for_the_invoice_of_the_fee_it_gives_back() -> None:
    life = Life().given(REGISTER, PLANS, CREATE_C1, replace(SUBSCRIBE, plan="starter"), ACTIVATE)
    life.given(until(DAY_11), GROWTH_NOW, until(FEBRUARY)).when(close(FEBRUARY)).then_rejected("awaiting_invoice")


def test_an_end_after_a_change_charges_each_plan_for_its_time() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, until(DAY_21))
    life.given(CancelSubscription(subscription_id=S1, at_period_end=False), close(DAY_21))
    run = life.decided[0].run
    assert [each.period for each in run.segments] == [Period(JANUARY, DAY_11), Period(DAY_11, DAY_21)]
    found = amounts(rated(life))
    assert found["unused_fee", "base", "01-11..02-01"] == "-21.00"
    assert found["fee", "base", "01-11..01-21"] == "20.00"
    assert found["commitment", "minimum_commitment", "01-11..01-21"] == "70.00"  # 100.00 - 20.00 - 10.00


def test_late_usage_is_rated_again_under_the_segments_it_fell_into() -> None:
    life = a_starter().given(until(DAY_11), GROWTH_NOW, until(FEBRUARY), close(FEBRUARY), until(MARCH))
    billed(life)
    run = life.given(close(MARCH)).event.run
    books = life.state.catalog.by_version
    (late,) = run.late
    measured = {}
    for need in needs(run, books, (late,)):
        after = need.positions == run.cut.positions
        measured[need] = Measured(Decimal(150 if after else 100))
    made = lines(run, books, (replace(late, since=()),), {**measured, **{
        replace(need, positions=()): Measured(Decimal(100)) for need in measured
    }})  # fmt: skip
    found = amounts(tuple(each for each in made if each.kind is LineKind.LATE_USAGE))
    assert found["late_usage", "calls", "01-01..01-11"] == "2.50"
    assert found["late_usage", "calls", "01-11..02-01"] == "1.00"
    assert found["late_usage", "minimum_commitment", "01-11..02-01"] == "-1.00"


def test_a_changed_subscription_is_folded_from_its_log() -> None:
    life = a_starter().given(NEWER, TO_GROWTH, until(DAY_11), MIGRATE_NOW, until(FEBRUARY), close(FEBRUARY))
    billed(life).given(until(APRIL), GROWTH_NOW)
    assert life.folded() == life.state
