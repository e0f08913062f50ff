"""Subscriptions: when they start, which periods they have, how they end."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from billing.ids import CustomerId, SubscriptionId
from billing.period import Alignment
from billing.subscription import CancelSubscription, CreateSubscription, SubscriptionCanceled, SubscriptionEnded
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
    BOOK,
    C1,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    PRO,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    a_subscriber,
    a_tenant,
    close,
    issue,
    line,
    until,
)

CANCEL = CancelSubscription(subscription_id=S1)
CANCEL_NOW = CancelSubscription(subscription_id=S1, at_period_end=False)
MID_JANUARY = datetime(2026, 1, 15, 12, tzinfo=UTC)


def test_a_subscription_names_the_terms_it_is_billed_under() -> None:
    created = a_tenant().when(SUBSCRIBE).event
    assert (created.plan, created.price_book_version, created.currency) == ("pro", 1, "USD")
    assert (created.starts_at, created.zone, created.anchor) == (JANUARY, "UTC", "2026-01-01T00:00:00")


def test_the_anchor_is_local_to_the_sellers_zone() -> None:
    life = a_tenant(zone="America/New_York")
    created = life.when(replace(SUBSCRIBE, starts_at=datetime(2026, 2, 14, 5, tzinfo=UTC))).event
    assert created.anchor == "2026-02-14T00:00:00"


def test_subscribing_again_on_the_same_terms_changes_nothing() -> None:
    a_tenant().given(SUBSCRIBE).when(SUBSCRIBE).then()


def test_subscribing_again_on_other_terms_is_refused() -> None:
    a_tenant().given(SUBSCRIBE).when(replace(SUBSCRIBE, plan="metered")).then_rejected("subscription_exists")


@pytest.mark.parametrize(
    ("command", "code", "field"),
    [
        (replace(SUBSCRIBE, customer_id=CustomerId("c9")), "unknown_customer", "customer_id"),
        (replace(SUBSCRIBE, plan="gold"), "unknown_plan", "plan"),
        (replace(SUBSCRIBE, subscription_id=SubscriptionId("")), "invalid_id", "subscription_id"),
    ],
)
def test_a_subscription_needs_a_customer_a_plan_and_a_name(command: CreateSubscription, code: str, field: str) -> None:
    a_tenant().when(command).then_rejected(code, field)


def test_a_subscription_starts_when_its_time_has_come() -> None:
    life = a_tenant().given(replace(SUBSCRIBE, starts_at=FEBRUARY))
    life.when(ACTIVATE).then_rejected("not_yet")
    life.given(until(FEBRUARY)).when(ACTIVATE).then_names("SubscriptionActivated")


def test_activating_an_active_subscription_changes_nothing() -> None:
    a_subscriber().when(ACTIVATE).then()


def test_an_unknown_subscription_is_refused() -> None:
    for command in (ACTIVATE, close(FEBRUARY), CANCEL):
        a_tenant().when(command).then_rejected("unknown_subscription", "subscription_id")


def test_a_scheduled_subscription_has_no_period_to_close() -> None:
    a_tenant().given(SUBSCRIBE).when(close(FEBRUARY)).then_rejected("invalid_state")


def test_a_scheduled_subscription_that_is_canceled_never_bills() -> None:
    life = a_tenant().given(replace(SUBSCRIBE, starts_at=FEBRUARY))
    life.when(CANCEL).then(
        SubscriptionCanceled(subscription_id=S1, customer_id=C1, ends_at=JANUARY),
        SubscriptionEnded(subscription_id=S1, customer_id=C1, ended_at=JANUARY),
    )
    life.given(until(FEBRUARY)).when(ACTIVATE).then_rejected("invalid_state")


def test_canceling_at_the_periods_end_lets_the_period_run() -> None:
    life = a_subscriber().given(until(MID_JANUARY))
    life.when(CANCEL).then(SubscriptionCanceled(subscription_id=S1, customer_id=C1, ends_at=FEBRUARY))
    life.given(until(FEBRUARY)).when(close(FEBRUARY)).then_names("BillingPeriodClosed", "SubscriptionEnded")
    assert life.decided[0].next is None


def test_canceling_twice_ends_it_once() -> None:
    a_subscriber().given(CANCEL).when(CANCEL).then()


def test_an_end_can_be_brought_forward_but_not_put_off() -> None:
    life = a_subscriber().given(until(MID_JANUARY), CANCEL)
    life.when(CANCEL_NOW).then(SubscriptionCanceled(subscription_id=S1, customer_id=C1, ends_at=MID_JANUARY))
    life.when(CANCEL).then()


def test_canceling_an_ended_subscription_changes_nothing() -> None:
    life = a_subscriber().given(CANCEL, until(FEBRUARY), close(FEBRUARY))
    life.when(CANCEL).then()
    life.when(close(FEBRUARY)).then()


def test_the_end_of_the_period_is_that_of_the_one_the_clock_is_in() -> None:
    """The first period waits to be closed while the customer, already in the second, cancels at its end."""
    life = a_subscriber().given(until(FEBRUARY + timedelta(hours=1)))
    life.when(CANCEL).then(SubscriptionCanceled(subscription_id=S1, customer_id=C1, ends_at=MARCH))
    life.given(close(FEBRUARY)).then_names("BillingPeriodClosed")
    life.given(until(MARCH), close(MARCH)).then_names("BillingPeriodClosed", "SubscriptionEnded")


def test_canceling_in_the_instant_in_which_a_period_begins_gives_its_fee_back() -> None:
    life = a_subscriber()
    life.given(issue(life, line("31.00")), until(FEBRUARY), close(FEBRUARY))
    life.given(issue(life, line("31.00", period=life.event.run.advance.period)))
    ends_at = life.when(CANCEL_NOW).event.ends_at
    assert ends_at == FEBRUARY + timedelta(microseconds=1)
    life.given(until(MARCH)).when(close(ends_at)).then_names("BillingPeriodClosed", "SubscriptionEnded")
    (unused,) = life.decided[0].run.unused
    assert (unused.charge, unused.billed.minor) == ("base", 3100)


def boundaries(life: Life, count: int) -> list[str]:
    """The next boundaries, as the clock passes each."""
    found = []
    for _ in range(count):
        end = life.state.subscriptions[S1].boundary  # type: ignore[union-attr]
        found.append(end.isoformat())
        life.given(until(end), close(end))
    return found


def test_calendar_periods_end_with_the_local_month_whatever_the_start() -> None:
    start = datetime(2026, 3, 8, 5, 30, tzinfo=UTC)
    life = a_tenant(zone="America/New_York", test_clock=start).given(SUBSCRIBE, ACTIVATE)
    assert boundaries(life, 3) == [
        "2026-04-01T04:00:00+00:00",
        "2026-05-01T04:00:00+00:00",
        "2026-06-01T04:00:00+00:00",
    ]


def test_anniversary_periods_return_to_their_day_after_a_short_month() -> None:
    book = replace(BOOK, plans=(replace(PRO, alignment=Alignment.ANCHOR),))
    start = datetime(2026, 1, 31, tzinfo=UTC)
    life = Life().given(replace(REGISTER, test_clock=start), book, CREATE_C1, SUBSCRIBE, ACTIVATE)
    assert boundaries(life, 3) == [
        "2026-02-28T00:00:00+00:00",
        "2026-03-31T00:00:00+00:00",
        "2026-04-30T00:00:00+00:00",
    ]


def test_every_period_begins_where_the_one_before_ended() -> None:
    life = a_subscriber()
    spans = [life.event.first]
    for end in (FEBRUARY, MARCH, APRIL):
        life.given(until(end), close(end))
        spans.append(life.event.next)
    assert [(a.period.end, b.period.start) for a, b in pairwise(spans)] == [
        (FEBRUARY, FEBRUARY),
        (MARCH, MARCH),
        (APRIL, APRIL),
    ]
