"""Charges with intervals of their own: when they are due, what they cost in parts, what comes back of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import Plan
from billing.invoicing import LineKind, lines, needs
from billing.metering import Measured
from billing.money import Money
from billing.period import Alignment, Period
from billing.plan import AddOn
from billing.plan_change import AddAddOn, ChangeBillingAnchor, ChangeBillingZone, ChangePlan
from billing.price import Charge, Flat
from billing.subscription import Active, CancelSubscription
from tests.billing.tenants import (
    ACTIVATE,
    BASE_FEE,
    BOOK,
    CALLS_CHARGE,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    until,
)
from tests.billing.test_trials import billed, ended

YEAR_FEE = Charge(key="licence", name="Licence", model=Flat(Decimal("365.00")), in_advance=True, interval="P1Y")
QUARTER_CALLS = replace(CALLS_CHARGE, interval="P3M")
PRO = Plan(key="pro", name="Pro", currency="USD", charges=(BASE_FEE, YEAR_FEE, QUARTER_CALLS))
BASIC = Plan(key="basic", name="Basic", currency="USD", charges=(replace(YEAR_FEE, model=Flat(Decimal("73.00"))),))
ARREARS = replace(PRO, charges=(BASE_FEE, replace(YEAR_FEE, in_advance=False)))
OWN_ANCHOR = replace(PRO, alignment=Alignment.ANCHOR)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
FEBRUARY_15 = datetime(2026, 2, 15, tzinfo=UTC)
CANCEL_NOW = CancelSubscription(subscription_id=S1, at_period_end=False)


def a_subscriber(plan: Plan = PRO, *more: Plan, start: datetime = JANUARY, **wishes: Any) -> Life:
    """On the plan, with its first invoice issued."""
    book = replace(BOOK, plans=(plan, BASIC, *more))
    return Life().given(replace(REGISTER, test_clock=start), book, CREATE_C1, replace(SUBSCRIBE, **wishes), ACTIVATE)


def to(life: Life, instant: datetime) -> Life:
    return life.given(until(instant)) if life.state.tenant.clock < instant else life  # type: ignore[union-attr]


# --- when they are due ---


def test_a_yearly_fee_is_billed_once_a_year_and_usage_at_the_end_of_its_quarter() -> None:
    life = a_subscriber()
    assert billed(life) == ["base 01-01..02-01 31.00", "licence 01-01..01-01 365.00"]
    found = [ended(life) for _ in range(12)]
    assert found[2] == ["base 04-01..05-01 31.00", "calls 01-01..04-01 10.00"]
    assert found[11] == ["base 01-01..02-01 31.00", "calls 10-01..01-01 10.00", "licence 01-01..01-01 365.00"]
    assert [len(each) for each in found] == [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 3]


def test_within_a_calendar_year_the_first_fee_is_for_what_is_left_of_it() -> None:
    life = a_subscriber(start=datetime(2026, 10, 20, tzinfo=UTC))
    # 73 of 365 days of the year, 12 of 31 of the month
    assert billed(life) == ["base 10-20..11-01 12.00", "licence 10-20..01-01 73.00"]


def test_on_the_anniversary_the_year_begins_with_the_subscription() -> None:
    life = a_subscriber(OWN_ANCHOR, start=datetime(2026, 10, 31, tzinfo=UTC))
    assert billed(life) == ["base 10-31..11-30 31.00", "licence 10-31..10-31 365.00"]
    assert [each for _ in range(3) for each in ended(life)][-1] == "calls 10-31..01-31 10.00"


def test_a_fee_in_arrears_is_billed_when_its_year_is_over() -> None:
    life = a_subscriber(ARREARS)
    billed(life)
    assert [ended(life) for _ in range(12)][-1] == ["base 01-01..02-01 31.00", "licence 01-01..01-01 365.00"]


def test_an_interval_that_is_that_of_the_plan_says_nothing() -> None:
    monthly = replace(PRO, charges=(replace(BASE_FEE, interval="P1M"), CALLS_CHARGE))
    life = a_subscriber(monthly)
    assert life.event.running == ()
    assert billed(life) == ["base 01-01..02-01 31.00"]


def test_own_periods_begin_after_a_trial() -> None:
    life = a_subscriber(replace(OWN_ANCHOR, trial="P14D"))
    assert (life.event.run, life.event.running) == (None, ())
    assert ended(life) == ["base 01-15..02-15 31.00", "licence 01-15..01-15 365.00"]


def test_an_agreed_end_cuts_the_year_that_is_billed() -> None:
    life = a_subscriber(ends_at=datetime(2026, 3, 15, tzinfo=UTC))
    assert billed(life)[1] == "licence 01-01..03-15 73.00"
    ended(life)
    ended(life)
    assert ended(life) == ["calls 01-01..03-15 10.00"]


# --- what ends them sooner ---


def test_who_cancels_gets_the_unused_part_of_the_year_back() -> None:
    life = a_subscriber(replace(PRO, charges=(YEAR_FEE, QUARTER_CALLS)))
    billed(life)
    to(life, datetime(2026, 3, 15, tzinfo=UTC))
    ended(life)
    ended(life)
    life.given(CANCEL_NOW)
    assert ended(life) == ["calls 01-01..03-15 10.00", "licence 03-15..01-01 -292.00"]
    assert life.last_invoice.lines[1].rated.explanation == "-365.00 x 4/5"


def test_what_comes_back_is_what_was_billed_after_discounts() -> None:
    from billing.customer import RedeemCoupon
    from tests.billing.tenants import C1

    life = Life().given(REGISTER, replace(BOOK, plans=(PRO,)), CREATE_C1)
    life.given(RedeemCoupon(customer_id=C1, coupon="TENTH"), SUBSCRIBE, ACTIVATE)
    billed(life)
    to(life, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=1)).given(CANCEL_NOW)
    boundary_at = life.state.subscriptions[S1].boundary  # type: ignore[union-attr]
    life.given(close(boundary_at))
    assert {each.charge: each.billed for each in life.decided[0].run.unused} == {
        "base": Money(2790, "USD"),
        "licence": Money(32850, "USD"),
    }


def test_a_closing_waits_for_the_invoice_of_the_year() -> None:
    life = a_subscriber(replace(PRO, charges=(YEAR_FEE,)))
    to(life, FEBRUARY_15)
    life.given(close(FEBRUARY), CANCEL_NOW)
    life.when(close(FEBRUARY_15)).then_rejected("awaiting_invoice")


def test_a_change_of_plan_now_charges_the_new_year_fee_up_to_the_same_boundary() -> None:
    life = a_subscriber()
    billed(life)
    to(life, datetime(2026, 1, 11, tzinfo=UTC))
    life.given(ChangePlan(subscription_id=S1, plan="basic", at_period_end=False))
    # ten days of January are used: 355 of 365 days of both fees
    assert ended(life) == [
        "calls 01-01..01-11 10.00",
        "licence 01-11..01-01 71.00",
        "base 01-11..02-01 -21.00",
        "licence 01-11..01-01 -355.00",
    ]
    assert ended(life) == []


def test_a_change_of_anchor_begins_another_year() -> None:
    life = a_subscriber(OWN_ANCHOR)
    billed(life)
    to(life, datetime(2026, 3, 15, tzinfo=UTC))
    ended(life)
    ended(life)
    life.given(ChangeBillingAnchor(subscription_id=S1, at_period_end=False))
    assert ended(life)[1:] == [
        "calls 01-01..03-15 10.00",
        "licence 03-15..03-15 365.00",
        "base 03-15..04-01 -17.00",
        "licence 03-15..01-01 -292.00",
    ]


def test_in_another_zone_the_year_ends_at_the_same_local_time() -> None:
    life = a_subscriber()
    billed(life)
    life.given(ChangeBillingZone(subscription_id=S1, zone="America/New_York"))
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    assert {f"{each.span.period.end:%Y-%m-%d %H}" for each in active.running} == {"2027-01-01 05", "2026-04-01 04"}
    found = [ended(life) for _ in range(12)]
    assert [len(each) for each in found] == [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 3]


def test_an_add_on_has_its_own_year_too() -> None:
    seats = AddOn(key="seats", name="Seats", currency="USD", charges=(replace(YEAR_FEE, key="fee"),))
    life = Life().given(REGISTER, replace(BOOK, plans=(PRO,), add_ons=(seats,)), CREATE_C1, SUBSCRIBE, ACTIVATE)
    billed(life)
    to(life, datetime(2026, 1, 11, tzinfo=UTC)).given(AddAddOn(subscription_id=S1, add_on="seats", quantity=2))
    assert ended(life) == ["base 02-01..03-01 31.00", "seats.fee 01-11..01-01 710.00"]
    assert life.last_invoice.lines[1].rated.explanation == "2 x 365.00 x 30,672,000 of 31,536,000 s"


# --- what goes with them ---


def test_a_yearly_fee_counts_toward_a_monthly_commitment_with_a_twelfth() -> None:
    fee = replace(YEAR_FEE, model=Flat(Decimal("120.00")))
    life = a_subscriber(replace(PRO, charges=(fee,), minimum_commitment=Decimal(25)))
    billed(life)
    assert ended(life) == ["minimum_commitment 01-01..02-01 15.00"]


def test_a_fee_ahead_is_deferred_and_one_in_arrears_is_earned() -> None:
    from billing.ledger import Account

    for plan, account in ((PRO, Account.DEFERRED_REVENUE), (ARREARS, Account.REVENUE)):
        life = a_subscriber(replace(plan, charges=plan.charges[1:2]))
        if life.event.run is not None:
            billed(life)
        else:
            for _ in range(12):
                ended(life)
        assert [each.amount.minor for each in life.last_invoice.postings if each.account is account] == [-36500]


def test_late_usage_of_a_quarter_is_looked_for_in_the_whole_quarter() -> None:
    life = a_subscriber(replace(PRO, charges=(QUARTER_CALLS,)))
    for _ in range(3):
        ended(life)
    to(life, datetime(2026, 5, 1, tzinfo=UTC)).given(close(datetime(2026, 5, 1, tzinfo=UTC)))
    run = life.event.run
    late = run.late[-1]
    assert late.period == Period(JANUARY, APRIL)
    books = life.state.catalog.by_version
    wanted = needs(run, books, (late,))
    moved_on = replace(run, cut=replace(run.cut, positions=()))
    quantities: dict[Any, Measured] = dict.fromkeys(needs(moved_on, books, (late,)), Measured(Decimal(100)))
    quantities |= dict.fromkeys([each for each in wanted if each.positions], Measured(Decimal(70)))
    (line,) = lines(moved_on, books, (late,), quantities)
    assert (line.kind, line.period, line.amount) == (LineKind.LATE_USAGE, Period(JANUARY, APRIL), Money(300, "USD"))


# --- what a catalogue may say ---


@pytest.mark.parametrize(
    ("charge", "changes", "code"),
    [
        (replace(BASE_FEE, interval="P1W"), {}, "other_interval"),
        (replace(BASE_FEE, interval="P1M"), {"interval": "P1Y"}, "other_interval"),
        (replace(BASE_FEE, interval="yearly"), {}, "invalid_interval"),
        (QUARTER_CALLS, {"minimum_commitment": Decimal(10)}, "unexpected"),
    ],
)
def test_an_interval_that_does_not_fit_the_plan_is_not_published(
    charge: Charge, changes: dict[str, Any], code: str
) -> None:
    plan = replace(PRO, charges=(charge,), **changes)
    Life().given(REGISTER).when(replace(BOOK, plans=(plan,))).then_rejected(code, "plans[0].charges[0].interval")
    add_on = AddOn(key="more", name="More", currency="USD", charges=(charge,))
    plain = replace(plan, charges=(BASE_FEE,))
    life = Life().given(REGISTER)
    life.when(replace(BOOK, plans=(plain,), add_ons=(add_on,))).then_rejected(code, "add_ons[0].charges[0].interval")
