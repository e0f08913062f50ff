"""Changes of anchor and zone: when the current period ends, what the stub costs, what waits and is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import Plan
from billing.period import Alignment, Period
from billing.plan_change import ChangeBillingAnchor, ChangeBillingZone, ChangePlan
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
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    until,
)
from tests.billing.test_trials import billed, ended

PRO = Plan(key="pro", name="Pro", currency="USD", alignment=Alignment.ANCHOR, charges=(BASE_FEE, CALLS_CHARGE))
DEAR = replace(PRO, key="dear", charges=(replace(BASE_FEE, model=Flat(Decimal("310.00"))),))
YEARLY = replace(PRO, key="yearly", interval="P1Y")
CALENDAR = replace(PRO, alignment=Alignment.CALENDAR)
JANUARY_11, JANUARY_20 = datetime(2026, 1, 11, tzinfo=UTC), datetime(2026, 1, 20, tzinfo=UTC)
FEBRUARY_20 = datetime(2026, 2, 20, tzinfo=UTC)

TO_THE_20TH = ChangeBillingAnchor(subscription_id=S1, anchor=JANUARY_20)
NOW = ChangeBillingAnchor(subscription_id=S1, at_period_end=False)
CHANGE = ChangePlan(subscription_id=S1, plan="dear")
CANCEL = CancelSubscription(subscription_id=S1)


def to(zone: str) -> ChangeBillingZone:
    return ChangeBillingZone(subscription_id=S1, zone=zone)


def a_subscriber(plan: Plan = PRO, **changes: Any) -> Life:
    """On the plan since the first of January, its fee billed."""
    plans = replace(BOOK, plans=(plan, DEAR, YEARLY))
    life = Life().given(replace(REGISTER, **changes), plans, CREATE_C1, SUBSCRIBE, ACTIVATE)
    if life.event.run is not None:
        billed(life)
    return life


def current(life: Life) -> Period:
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    return active.current.period


def boundary(life: Life) -> datetime:
    active = life.state.subscriptions[S1]
    assert isinstance(active, Active)
    return active.boundary


# --- anchor ---


def test_a_change_of_anchor_waits_for_the_periods_end_and_prorates_the_stub() -> None:
    life = a_subscriber().given(until(JANUARY_11)).when(TO_THE_20TH)
    assert (life.event.effective_at, life.event.anchor) == (FEBRUARY, "2026-01-20T00:00:00")
    # 19 of the 31 days from 20 January to 20 February
    assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..02-20 19.00"]
    assert ended(life) == ["calls 02-01..02-20 10.00", "base 02-20..03-20 31.00"]


def test_a_change_of_anchor_now_ends_the_period_and_gives_its_unused_fee_back() -> None:
    life = a_subscriber().given(until(JANUARY_11), NOW)
    assert boundary(life) == JANUARY_11
    assert ended(life) == ["calls 01-01..01-11 10.00", "base 01-11..02-11 31.00", "base 01-11..02-01 -21.00"]
    assert current(life) == Period(JANUARY_11, datetime(2026, 2, 11, tzinfo=UTC))


def test_a_change_now_to_another_day_has_a_stub_up_to_it() -> None:
    life = a_subscriber().given(until(JANUARY_11), replace(TO_THE_20TH, at_period_end=False))
    assert ended(life) == ["calls 01-01..01-11 10.00", "base 01-11..01-20 9.00", "base 01-11..02-01 -21.00"]


def test_an_anchor_on_the_31st_returns_to_it() -> None:
    life = a_subscriber().given(replace(TO_THE_20TH, anchor=datetime(2025, 12, 31, tzinfo=UTC)))
    ends = []
    for _ in range(4):
        ended(life)
        ends.append(f"{current(life).end:%m-%d}")
    assert ends == ["02-28", "03-31", "04-30", "05-31"]


def test_asking_for_the_anchor_one_has_changes_nothing() -> None:
    a_subscriber().when(replace(TO_THE_20TH, anchor=JANUARY)).then()
    a_subscriber().given(TO_THE_20TH).when(TO_THE_20TH).then()
    life = a_subscriber().given(until(JANUARY_11), NOW)
    life.when(NOW).then()


def test_the_last_anchor_that_waits_counts() -> None:
    life = a_subscriber().given(TO_THE_20TH, replace(TO_THE_20TH, anchor=JANUARY_11))
    ended(life)
    assert current(life).end == datetime(2026, 2, 11, tzinfo=UTC)


def test_a_plan_that_waits_for_the_same_end_takes_over_with_the_new_anchor() -> None:
    for commands in ((TO_THE_20TH, CHANGE), (CHANGE, TO_THE_20TH)):
        life = a_subscriber().given(*commands)
        assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..02-20 190.00"]


def test_a_plan_that_waited_before_the_anchor_changed_keeps_it() -> None:
    life = a_subscriber().given(until(JANUARY_11), NOW)
    ended(life)
    life.given(CHANGE)
    ended(life)
    assert current(life) == Period(datetime(2026, 2, 11, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC))


def test_taking_back_a_plan_of_another_interval_keeps_the_anchor() -> None:
    start = datetime(2026, 1, 31, tzinfo=UTC)
    life = a_subscriber(test_clock=start).given(replace(CHANGE, plan="yearly"), replace(CHANGE, plan="pro"))
    ended(life)
    assert current(life).end == datetime(2026, 3, 31, tzinfo=UTC)


def test_a_trial_is_not_cut_but_the_anchor_waits_for_its_end() -> None:
    life = a_subscriber(replace(PRO, trial="P14D")).given(until(JANUARY_11))
    life.when(NOW).then_rejected("on_trial", "at_period_end")
    life.given(TO_THE_20TH)
    assert ended(life) == ["base 01-15..01-20 5.00"]


def test_after_the_period_ended_a_change_now_cuts_the_next_one() -> None:
    late = datetime(2026, 2, 10, tzinfo=UTC)
    life = a_subscriber().given(until(late), NOW)
    assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..03-01 31.00"]
    assert boundary(life) == late


@pytest.mark.parametrize(
    ("plan", "given", "command", "code", "field"),
    [
        (CALENDAR, (), TO_THE_20TH, "calendar_plan", "subscription_id"),
        (PRO, (CANCEL,), TO_THE_20TH, "ending", ""),
        (PRO, (CANCEL,), NOW, "changes_waiting", "at_period_end"),
        (PRO, (CHANGE,), NOW, "changes_waiting", "at_period_end"),
        (PRO, (), replace(TO_THE_20TH, anchor=JANUARY_20.replace(tzinfo=None)), "invalid_time", "anchor"),
        (PRO, (), to("Europe/Nowhere"), "unknown_zone", "zone"),
        (PRO, (CANCEL, until(FEBRUARY), close(FEBRUARY)), to("Asia/Tokyo"), "invalid_state", ""),
    ],
)
def test_what_could_not_be_billed_is_refused(plan: Plan, given: Any, command: Any, code: str, field: str) -> None:
    life = a_subscriber(plan).given(until(JANUARY_11), *given)
    life.when(command).then_rejected(code, field)


def test_only_what_began_is_moved() -> None:
    life = Life().given(REGISTER, replace(BOOK, plans=(PRO,)), CREATE_C1, replace(SUBSCRIBE, starts_at=FEBRUARY))
    for command in (TO_THE_20TH, to("Asia/Tokyo")):
        life.when(command).then_rejected("invalid_state")


# --- zone ---


def test_in_another_zone_the_period_ends_at_the_same_local_time() -> None:
    """SEMANTICS 8: the next one starts where it ended."""
    life = a_subscriber(CALENDAR).given(until(JANUARY_11)).when(to("America/New_York"))
    assert life.event.period_end == datetime(2026, 2, 1, 5, tzinfo=UTC)
    assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..03-01 31.00"]
    assert current(life) == Period(datetime(2026, 2, 1, 5, tzinfo=UTC), datetime(2026, 3, 1, 5, tzinfo=UTC))


def test_in_a_zone_where_the_period_is_over_already_the_next_one_starts_where_it_ended() -> None:
    life = a_subscriber(CALENDAR).given(until(datetime(2026, 1, 31, 20, tzinfo=UTC)), to("Asia/Tokyo"))
    assert boundary(life) == datetime(2026, 1, 31, 15, tzinfo=UTC)
    ended(life)
    assert current(life) == Period(datetime(2026, 1, 31, 15, tzinfo=UTC), datetime(2026, 2, 28, 15, tzinfo=UTC))


def test_what_waits_for_the_periods_end_waits_for_where_it_moved_to() -> None:
    life = a_subscriber().given(CHANGE, to("America/New_York"))
    assert ended(life) == ["calls 01-01..02-01 10.00", "base 02-01..03-01 310.00"]
    life = a_subscriber().given(CANCEL, to("America/New_York"))
    assert boundary(life) == datetime(2026, 2, 1, 5, tzinfo=UTC)
    assert ended(life) == ["calls 01-01..02-01 10.00"]
    assert life.names[-3] == "SubscriptionEnded"


def test_a_trial_moves_with_the_zone() -> None:
    life = a_subscriber(replace(PRO, trial="P14D")).given(to("America/New_York"))
    assert ended(life) == ["base 01-15..02-15 31.00"]
    assert current(life).start == datetime(2026, 1, 15, 5, tzinfo=UTC)


def test_an_agreed_end_within_the_period_stays_where_it_is() -> None:
    plans = replace(BOOK, plans=(PRO,))
    life = Life().given(REGISTER, plans, CREATE_C1, replace(SUBSCRIBE, ends_at=JANUARY_20), ACTIVATE)
    billed(life)
    life.given(to("America/New_York"))
    assert boundary(life) == JANUARY_20


def test_a_period_that_waits_to_be_closed_keeps_its_end() -> None:
    life = a_subscriber().given(until(FEBRUARY_20), to("America/New_York"))
    assert boundary(life) == FEBRUARY
    ended(life)
    assert current(life) == Period(FEBRUARY, datetime(2026, 2, 1, 5, tzinfo=UTC))


def test_asking_for_the_zone_one_has_changes_nothing() -> None:
    a_subscriber().when(to("UTC")).then()
    a_subscriber().given(to("Asia/Tokyo"), until(MARCH)).when(to("Asia/Tokyo")).then()
