"""Trials, free periods and agreed ends: what they cost, and when the first billed period begins."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import Plan
from billing.invoice import InvoiceFinalized
from billing.invoicing import lines, needs
from billing.metering import Measured
from billing.period import Alignment, Period
from billing.plan import Phase, TrialUsage
from billing.plan_change import ChangePlan
from billing.price import Flat
from billing.subscription import Active, CancelSubscription
from tests.billing.tenants import (
    ACTIVATE,
    BASE_FEE,
    BOOK,
    CALLS_CHARGE,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    PRO,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    issue,
    until,
)

JANUARY_15, FEBRUARY_15 = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 2, 15, tzinfo=UTC)
TRIED = replace(PRO, trial="P14D", alignment=Alignment.ANCHOR, minimum_commitment=Decimal("62.00"))
CALENDAR = replace(TRIED, alignment=Alignment.CALENDAR)
OTHER = replace(TRIED, key="other", charges=(replace(BASE_FEE, model=Flat(Decimal("310.00"))), CALLS_CHARGE))
YEARLY = replace(OTHER, key="yearly", interval="P1Y")
CANCEL = CancelSubscription(subscription_id=S1)


def subscribed(plan: Plan = TRIED, **wishes: Any) -> Life:
    """On `plan` since the first of January."""
    plans = (plan, OTHER, YEARLY)
    return Life().given(REGISTER, replace(BOOK, plans=plans), CREATE_C1, replace(SUBSCRIBE, **wishes), ACTIVATE)


def billed(life: Life, calls: int = 100) -> list[str]:
    """Issue what is awaited; its lines as `charge days amount`."""
    run = next(run for each in reversed(life.envelopes) if (run := getattr(each.event, "run", None)))
    books = life.state.catalog.by_version
    rated = lines(run, books, (), dict.fromkeys(needs(run, books, ()), Measured(Decimal(calls))))
    life.given(issue(life, *rated))
    return [f"{each.charge} {each.period.start:%m-%d}..{each.period.end:%m-%d} {each.amount.major()}" for each in rated]


def ended(life: Life, calls: int = 100) -> list[str]:
    """Let the current period end; what its closing bills."""
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    life.given(until(max(active.boundary, life.state.tenant.clock)), close(active.boundary))  # type: ignore[union-attr]
    return billed(life, calls)


def test_a_trial_bills_nothing_and_the_first_period_begins_at_its_end() -> None:
    life = subscribed()
    assert (life.event.first.period, life.event.run) == (Period(JANUARY, JANUARY_15), None)
    assert ended(life) == ["base 01-15..02-15 31.00"]
    assert ended(life) == [
        "calls 01-15..02-15 10.00",
        "minimum_commitment 01-15..02-15 21.00",
        "base 02-15..03-15 31.00",
    ]


def test_a_commitment_is_prorated_by_the_time_without_trial() -> None:
    """SEMANTICS 21: of January 17 of 31 days are billable."""
    life = subscribed(CALENDAR)
    assert ended(life) == ["base 01-15..02-01 17.00"]
    assert ended(life) == [
        "calls 01-15..02-01 10.00",
        "minimum_commitment 01-15..02-01 7.00",
        "base 02-01..03-01 31.00",
    ]


def test_usage_of_a_trial_is_billed_at_its_end_if_the_plan_says_so() -> None:
    least = replace(
        TRIED, trial_usage=TrialUsage.BILLED, charges=(BASE_FEE, replace(CALLS_CHARGE, minimum=Decimal(99)))
    )
    assert ended(subscribed(least)) == ["calls 01-01..01-15 10.00", "base 01-15..02-15 31.00"]


@pytest.mark.parametrize(
    ("wish", "end"), [("P0D", None), ("P1W", datetime(2026, 1, 8, tzinfo=UTC)), (None, JANUARY_15)]
)
def test_a_customer_may_have_a_trial_of_its_own_or_none(wish: str | None, end: datetime | None) -> None:
    assert subscribed(trial=wish).state.subscriptions[S1].terms.trial_ends_at == end  # type: ignore[union-attr]


def test_a_trial_ends_at_the_same_local_time() -> None:
    """Over the change of the clocks of 29 March."""
    start = datetime(2026, 3, 20, 9, tzinfo=UTC)
    berlin = replace(REGISTER, zone="Europe/Berlin", test_clock=start)
    life = Life().given(berlin, replace(BOOK, plans=(TRIED,)), CREATE_C1).when(SUBSCRIBE)
    assert life.event.trial_ends_at == start + timedelta(days=14, hours=-1)
    assert life.event.anchor == "2026-04-03T10:00:00"


@pytest.mark.parametrize("cancel", [CANCEL, replace(CANCEL, at_period_end=False)])
def test_who_cancels_in_the_trial_owes_nothing_and_gets_no_invoice(cancel: CancelSubscription) -> None:
    life = subscribed().given(until(datetime(2026, 1, 4, tzinfo=UTC)), cancel)
    assert ended(life) == []
    life.then_names("InvoiceOmitted")
    assert "SubscriptionEnded" in life.names
    assert not any(isinstance(each.event, InvoiceFinalized) for each in life.envelopes)
    assert life.state.serial == 0
    assert life.folded() == life.state


def test_an_invoice_that_was_omitted_stays_so() -> None:
    life = subscribed().given(CANCEL)
    ended(life)
    life.when(issue(life)).then()


@pytest.mark.parametrize("plan", ["other", "yearly"])
def test_a_change_of_plan_within_the_trial_lets_the_trial_run(plan: str) -> None:
    change = ChangePlan(subscription_id=S1, plan=plan, at_period_end=False)
    life = subscribed().given(until(datetime(2026, 1, 4, tzinfo=UTC)), change)
    assert ended(life) == [f"base 01-15..{'02-15' if plan == 'other' else '01-15'} 310.00"]


def test_a_change_of_plan_before_the_start_keeps_the_trial() -> None:
    plans = replace(BOOK, plans=(TRIED, OTHER, YEARLY))
    life = Life().given(REGISTER, plans, CREATE_C1, replace(SUBSCRIBE, starts_at=FEBRUARY))
    life.given(ChangePlan(subscription_id=S1, plan="yearly"), until(FEBRUARY), ACTIVATE)
    assert life.event.first.period == Period(FEBRUARY, FEBRUARY_15)
    assert ended(life) == ["base 02-15..02-15 310.00"]


def test_free_periods_cost_nothing_and_phases_begin_after_them() -> None:
    half = Phase(name="Half price", periods=1, discount_percent=Decimal(50))
    least = (BASE_FEE, replace(CALLS_CHARGE, minimum=Decimal(5)))
    free = replace(PRO, charges=least, free_periods=2, phases=(half,), minimum_commitment=Decimal("62.00"))
    life = subscribed(free)
    assert billed(life) == ["base 01-01..02-01 0.00"]
    assert ended(life) == ["calls 01-01..02-01 0.00", "base 02-01..03-01 0.00"]
    assert ended(life) == ["calls 02-01..03-01 0.00", "base 03-01..04-01 15.50"]
    assert ended(life, 0) == [
        "calls 03-01..04-01 5.00",
        "minimum_commitment 03-01..04-01 41.50",
        "base 04-01..05-01 31.00",
    ]


def test_free_periods_follow_a_trial() -> None:
    life = subscribed(replace(TRIED, free_periods=1))
    assert ended(life) == ["base 01-15..02-15 0.00"]
    assert ended(life) == ["calls 01-15..02-15 0.00", "base 02-15..03-15 31.00"]


def test_nothing_is_given_back_for_a_free_period() -> None:
    life = subscribed(replace(PRO, free_periods=1))
    billed(life)
    life.given(until(JANUARY_15), replace(CANCEL, at_period_end=False))
    assert ended(life) == ["calls 01-01..01-15 0.00"]


def test_an_agreed_end_bills_the_last_period_for_its_part_only() -> None:
    life = subscribed(PRO, ends_at=FEBRUARY_15)
    billed(life)
    assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..02-15 15.50"]
    assert ended(life) == ["calls 02-01..02-15 10.00"]
    assert life.names[-4:-1] == ["BillingPeriodClosed", "SubscriptionEnded", "InvoiceFinalized"]


def test_an_agreed_end_may_be_brought_forward_but_not_put_off() -> None:
    life = subscribed(PRO, ends_at=JANUARY_15)
    assert life.event.first.period == Period(JANUARY, JANUARY_15)
    life.when(CANCEL).then()
    assert life.when(replace(CANCEL, at_period_end=False)).event.ends_at == JANUARY + timedelta(microseconds=1)


def test_a_billing_day_stands_instead_of_the_day_of_the_start() -> None:
    life = subscribed(replace(PRO, alignment=Alignment.ANCHOR), billing_day=31)
    assert life.event.first.period == Period(JANUARY, datetime(2026, 1, 31, tzinfo=UTC))
    billed(life)
    ended(life)
    assert life.state.subscriptions[S1].current.period.end == datetime(2026, 2, 28, tzinfo=UTC)  # type: ignore[union-attr]


def test_a_zone_of_its_own_stands_instead_of_the_sellers() -> None:
    life = subscribed(PRO, zone="Asia/Tokyo")
    assert life.event.first.period == Period(JANUARY, datetime(2026, 1, 31, 15, tzinfo=UTC))


@pytest.mark.parametrize(
    ("plan", "wishes", "code", "field"),
    [
        (PRO, {"billing_day": 31}, "unexpected", "billing_day"),
        (TRIED, {"billing_day": 32}, "out_of_range", "billing_day"),
        (replace(TRIED, interval="P1W"), {"billing_day": 3}, "unexpected", "billing_day"),
        (PRO, {"ends_at": JANUARY}, "end_before_start", "ends_at"),
        (PRO, {"ends_at": JANUARY.replace(tzinfo=None)}, "invalid_time", "ends_at"),
        (PRO, {"starts_at": JANUARY.replace(tzinfo=None)}, "invalid_time", "starts_at"),
        (PRO, {"zone": "Mars/Olympus"}, "unknown_zone", "zone"),
        (PRO, {"trial": "two weeks"}, "invalid_interval", "trial"),
        (PRO, {"trial": "P11Y"}, "out_of_range", "trial"),
    ],
)
def test_what_could_not_be_billed_is_refused(plan: Plan, wishes: dict[str, Any], code: str, field: str) -> None:
    life = Life().given(REGISTER, replace(BOOK, plans=(plan,)), CREATE_C1)
    life.when(replace(SUBSCRIBE, **wishes)).then_rejected(code, field)


@pytest.mark.parametrize(
    ("plan", "code", "field"),
    [
        (replace(PRO, trial="P0D"), "invalid_interval", "plans[0].trial"),
        (replace(PRO, trial="P9999Y"), "out_of_range", "plans[0].trial"),
        (replace(PRO, free_periods=-1), "out_of_range", "plans[0].free_periods"),
        (replace(PRO, free_periods=1201), "out_of_range", "plans[0].free_periods"),
    ],
)
def test_a_plan_with_an_impossible_trial_is_not_published(plan: Plan, code: str, field: str) -> None:
    Life().given(REGISTER).when(replace(BOOK, plans=(plan,))).then_rejected(code, field)


def test_a_last_period_without_anything_to_bill_gets_no_invoice_but_one_at_zero_does() -> None:
    only_fee = replace(PRO, charges=(BASE_FEE,))
    life = subscribed(only_fee).given(CANCEL)
    billed(life)
    assert ended(life) == []
    life.then_names("InvoiceOmitted")
    life = subscribed(PRO).given(CANCEL)
    billed(life)
    assert ended(life, 0) == ["calls 01-01..02-01 0.00"]
    life.then_names("InvoiceFinalized", "InvoicePaid")


def test_a_run_that_was_fixed_earlier_keeps_its_empty_invoice() -> None:
    """Numbers that were given stay as they are when the log is decided again."""
    life = subscribed(replace(PRO, charges=(BASE_FEE,))).given(CANCEL)
    billed(life)
    life.given(until(MARCH), close(FEBRUARY))
    run = life.decided[0].run
    life.state.invoices[run.invoice_id] = replace(
        life.state.invoices[run.invoice_id],
        run=replace(run, rating_engine="1"),  # type: ignore[call-arg]
    )
    life.given(issue(life)).then_names("InvoiceFinalized", "InvoicePaid")
