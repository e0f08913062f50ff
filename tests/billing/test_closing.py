"""Closing a period: one event that fixes every input of its invoice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from billing.ids import SubscriptionId
from billing.invoicing import Cut, InvoiceReason, PartitionPosition
from billing.period import Period
from billing.proration import Proration
from billing.subscription import CancelSubscription
from billing.tenant import Policies
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
    C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    POSITIONS,
    S1,
    SUBSCRIBE,
    a_subscriber,
    a_tenant,
    awaited,
    close,
    issue,
    line,
    taxed,
    until,
)


def test_the_start_bills_the_first_fee_and_no_usage() -> None:
    run = a_tenant().given(SUBSCRIBE).when(ACTIVATE).event.run
    assert (run.reason, run.arrears, run.advance.period) == (
        InvoiceReason.SUBSCRIPTION_START,
        None,
        Period(JANUARY, FEBRUARY),
    )
    assert run.cut == Cut(until=JANUARY, positions=())


def test_a_plan_without_fees_in_advance_has_no_invoice_at_the_start() -> None:
    assert a_tenant().given(replace(SUBSCRIBE, plan="metered")).when(ACTIVATE).event.run is None


def test_a_start_within_the_month_bills_its_share_of_the_full_period() -> None:
    start = datetime(2026, 1, 17, tzinfo=UTC)
    life = a_tenant(test_clock=start).given(SUBSCRIBE)
    assert life.when(ACTIVATE).event.run.advance.span.share(Proration.SECOND) == Fraction(15, 31)


def test_the_end_bills_the_periods_usage_and_the_next_fee_up_to_the_cut() -> None:
    run = a_subscriber().given(until(FEBRUARY)).when(close(FEBRUARY)).event.run
    assert run.reason is InvoiceReason.PERIOD_END
    assert run.arrears.period == Period(JANUARY, FEBRUARY)
    assert run.advance.period == Period(FEBRUARY, MARCH)
    assert run.cut == Cut(until=FEBRUARY, positions=POSITIONS)
    assert (run.customer_id, run.currency, run.plan, run.price_book_version) == (C1, "USD", "pro", 1)


def test_a_period_is_not_closed_before_its_end() -> None:
    life = a_subscriber().given(until(FEBRUARY - timedelta(microseconds=1)))
    life.when(close(FEBRUARY)).then_rejected("not_yet")


def test_a_period_is_not_closed_before_the_grace_is_over() -> None:
    life = a_subscriber(policies=Policies(invoice_grace_minutes=60)).given(until(FEBRUARY + timedelta(minutes=59)))
    life.when(close(FEBRUARY)).then_rejected("not_yet")
    life.given(until(FEBRUARY + timedelta(minutes=60))).when(close(FEBRUARY)).then_names("BillingPeriodClosed")
    assert life.event.run.cut.until == FEBRUARY


def test_closing_a_closed_period_again_changes_nothing() -> None:
    a_subscriber().given(until(FEBRUARY), close(FEBRUARY)).when(close(FEBRUARY)).then()


def test_a_period_other_than_the_current_one_is_refused() -> None:
    a_subscriber().given(until(MARCH)).when(close(MARCH)).then_rejected("other_period", "period_end")


def test_the_observed_positions_are_no_part_of_the_wish() -> None:
    life = a_subscriber().given(until(FEBRUARY))
    life.when(close(FEBRUARY), key="scheduler:close").then_names("BillingPeriodClosed")
    moved = replace(close(FEBRUARY), positions=(PartitionPosition(partition=0, offset=999),))
    life.when(moved, key="scheduler:close")
    assert life.replayed is not None


def test_each_period_and_subscription_has_an_invoice_of_its_own() -> None:
    other = SubscriptionId("s2")
    life = a_subscriber().given(replace(SUBSCRIBE, subscription_id=other), replace(ACTIVATE, subscription_id=other))
    invoices = [each.event.run.invoice_id for each in life.envelopes if getattr(each.event, "run", None)]
    for end in (FEBRUARY, MARCH):
        life.given(until(end), close(end), close(end, other))
        invoices += [each.event.run.invoice_id for each in life.envelopes[-2:]]
    assert len(set(invoices)) == 6


def test_a_closed_period_is_looked_at_again_for_late_usage() -> None:
    life = a_subscriber()
    for end, offset in ((FEBRUARY, 10), (MARCH, 20), (APRIL, 30)):
        life.given(until(end), replace(close(end), positions=(PartitionPosition(partition=0, offset=offset),)))
    late = life.event.run.late
    assert [(each.period.end, each.since[0].offset) for each in late] == [(FEBRUARY, 20), (MARCH, 20)]


def test_the_taxes_of_the_moment_are_frozen_on_the_run() -> None:
    life = a_subscriber(taxes=taxed("8.875")).given(until(FEBRUARY)).when(close(FEBRUARY))
    assert life.event.run.taxes == taxed("8.875")


def test_an_end_within_the_period_gives_back_the_unused_fee() -> None:
    middle = datetime(2026, 1, 16, 12, tzinfo=UTC)
    life = a_subscriber()
    life.given(issue(life, line("31.00")), until(middle))
    life.given(CancelSubscription(subscription_id=S1, at_period_end=False)).given(close(middle))
    run = life.decided[0].run
    (unused,) = run.unused
    assert (unused.billed.minor, unused.period, unused.unused) == (
        3100,
        Period(JANUARY, FEBRUARY),
        Period(middle, FEBRUARY),
    )
    assert (run.arrears.period, run.advance) == (Period(JANUARY, middle), None)


def test_what_is_given_back_follows_what_was_billed_after_discounts() -> None:
    from billing.customer import RedeemCoupon

    middle = datetime(2026, 1, 16, 12, tzinfo=UTC)
    life = a_tenant().given(RedeemCoupon(customer_id=C1, coupon="TENTH"), SUBSCRIBE, ACTIVATE)
    life.given(issue(life, line("31.00")), until(middle))
    life.given(CancelSubscription(subscription_id=S1, at_period_end=False)).given(close(middle))
    assert life.decided[0].run.unused[0].billed.minor == 2790


def test_an_end_waits_for_the_invoice_of_the_fee_it_gives_back() -> None:
    middle = datetime(2026, 1, 16, 12, tzinfo=UTC)
    life = a_subscriber().given(until(middle), CancelSubscription(subscription_id=S1, at_period_end=False))
    life.when(close(middle)).then_rejected("awaiting_invoice")
    life.given(issue(life, line("31.00"))).when(close(middle)).then_names("BillingPeriodClosed", "SubscriptionEnded")


def test_periods_that_were_missed_are_closed_one_after_the_other() -> None:
    life = a_subscriber().given(until(APRIL))
    for end in (FEBRUARY, MARCH, APRIL):
        life.given(close(end)).then_names("BillingPeriodClosed")
    assert awaited(life) == life.event.run.invoice_id
