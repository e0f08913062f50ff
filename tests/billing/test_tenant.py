"""Registering a seller, and its clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from billing.tenant import (
    SPREAD_MARGIN,
    AdvanceClock,
    ClockAdvanced,
    Policies,
    SpreadUsage,
    TenantRegistered,
    UsageBounds,
    UsageSpreadSet,
)
from tests.billing.tenants import BOOK, FEBRUARY, JANUARY, REGISTER, Life, taxed, until

REAL_CLOCK = replace(REGISTER, test_clock=None)


def test_a_seller_is_registered_with_all_its_settings() -> None:
    Life().when(REGISTER).then(TenantRegistered(name="Harbour Air", currency="USD", zone="UTC", test_clock=JANUARY))


def test_registering_again_with_the_same_settings_changes_nothing() -> None:
    Life().given(REGISTER).when(REGISTER).then()


def test_registering_again_with_other_settings_is_refused() -> None:
    Life().given(REGISTER).when(replace(REGISTER, currency="EUR")).then_rejected("tenant_exists")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"currency": "usd"}, "unknown_currency", "currency"),
        ({"zone": "Mars/Base"}, "unknown_timezone", "zone"),
        ({"zone": "../etc/passwd"}, "unknown_timezone", "zone"),
        ({"name": ""}, "missing", "name"),
        ({"taxes": taxed("101")}, "out_of_range", "taxes[0].percent"),
        ({"policies": Policies(retry_days=(1, 0))}, "out_of_range", "policies.retry_days[1]"),
        ({"policies": Policies(payment_terms_days=-1)}, "out_of_range", "policies.payment_terms_days"),
        ({"policies": Policies(invoice_grace_minutes=10**9)}, "out_of_range", "policies.invoice_grace_minutes"),
        ({"bounds": UsageBounds(oldest_days=-1)}, "out_of_range", "bounds.oldest_days"),
        ({"bounds": UsageBounds(ahead_minutes=10**12)}, "out_of_range", "bounds.ahead_minutes"),
    ],
)
def test_settings_that_cannot_bill_are_refused_by_name(change: dict[str, Any], code: str, field: str) -> None:
    Life().when(replace(REGISTER, **change)).then_rejected(code, field)


def test_the_test_clock_moves_forward_by_command() -> None:
    Life().given(REGISTER).when(until(FEBRUARY)).then(ClockAdvanced(to=FEBRUARY))


def test_moving_the_clock_to_where_it_stands_changes_nothing() -> None:
    Life().given(REGISTER).when(until(JANUARY)).then()


def test_the_test_clock_never_moves_back() -> None:
    Life().given(REGISTER, until(FEBRUARY)).when(until(JANUARY)).then_rejected("clock_backwards", "to")


def test_the_real_clock_cannot_be_moved() -> None:
    Life().given(REAL_CLOCK).when(until(FEBRUARY)).then_rejected("no_test_clock")


def test_nothing_can_be_asked_of_a_tenant_that_is_not_registered() -> None:
    Life().when(BOOK).then_rejected("unknown_tenant", "tenant")
    Life().when(AdvanceClock(to=FEBRUARY)).then_rejected("unknown_tenant")


def test_events_occur_at_the_test_clock_and_are_recorded_at_the_real_one() -> None:
    life = Life().given(REGISTER, until(FEBRUARY)).when(BOOK)
    (published,) = life.envelopes[-1:]
    assert published.meta.occurred_at == FEBRUARY
    assert published.meta.recorded_at == life.wall


def test_events_of_a_tenant_with_the_real_clock_occur_when_they_are_recorded() -> None:
    life = Life().given(REAL_CLOCK).later(timedelta(days=3)).when(BOOK)
    assert life.envelopes[-1].meta.occurred_at == life.wall


EARLIEST = JANUARY + timedelta(days=1) + SPREAD_MARGIN  # events may be a day ahead


def test_usage_is_spread_from_the_first_time_that_no_event_can_have_yet() -> None:
    Life().given(REGISTER).when(SpreadUsage(partitions=3)).then(UsageSpreadSet(partitions=3, effective_from=EARLIEST))


def test_usage_is_not_spread_at_times_that_events_may_have_already() -> None:
    early = EARLIEST - timedelta(microseconds=1)
    Life().given(REGISTER).when(SpreadUsage(partitions=3, effective_from=early)).then_rejected(
        "too_early", "effective_from"
    )


def test_a_spread_follows_the_one_before_in_time_and_may_shrink() -> None:
    spread = SpreadUsage(partitions=3, effective_from=FEBRUARY)
    life = Life().given(REGISTER, spread)
    life.when(SpreadUsage(partitions=2, effective_from=FEBRUARY)).then_rejected("too_early", "effective_from")
    life.when(SpreadUsage(partitions=1)).then(
        UsageSpreadSet(partitions=1, effective_from=FEBRUARY + timedelta(microseconds=1))
    )


def test_spreading_as_it_is_changes_nothing() -> None:
    spread = SpreadUsage(partitions=3, effective_from=FEBRUARY)
    Life().given(REGISTER).when(SpreadUsage(partitions=1)).then()
    Life().given(REGISTER, spread).when(spread).then()
    Life().given(REGISTER, spread).when(SpreadUsage(partitions=3)).then()


@pytest.mark.parametrize("partitions", [0, -1, 257])
def test_a_spread_has_a_sane_width(partitions: int) -> None:
    Life().given(REGISTER).when(SpreadUsage(partitions=partitions)).then_rejected("out_of_range", "partitions")
