"""Allowances: windows that cover every use once, within the billing period, on the local calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.allowance import Opening, Window, next_window, status, together, windows
from billing.errors import Rejected
from billing.period import Period

JULY = Period(datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 8, 1, tzinfo=UTC))
FIVE_HOURS = Window(unit="hour", count=5)
a_window = st.builds(
    Window,
    unit=st.sampled_from(["hour", "day", "week"]),
    count=st.integers(1, 40),
    opening=st.sampled_from(Opening),
    zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]),
)
some_usage = st.lists(st.integers(-100, 800 * 60).map(lambda n: JULY.start + timedelta(minutes=n)), max_size=20)


@given(a_window, some_usage)
def test_every_use_of_the_period_lies_in_exactly_one_window(window: Window, usage: list[datetime]) -> None:
    found = list(windows(window, usage, JULY))
    for at in usage:
        assert sum(at in each for each in found) == (at in JULY)
    assert all(each.end <= JULY.end and any(at in each for at in usage) for each in found)
    assert found == sorted(found, key=lambda each: each.start)


def test_a_window_opens_with_the_first_use_that_none_covers() -> None:
    used = [JULY.start + timedelta(hours=n) for n in (2, 4, 9)]
    first, second = windows(FIVE_HOURS, used, JULY)
    assert first == Period(used[0], used[0] + timedelta(hours=5))
    assert second.start == used[2]


def test_what_would_leave_less_than_an_hour_runs_to_the_periods_end() -> None:
    late = JULY.end - timedelta(hours=5, minutes=59)
    assert next_window(FIVE_HOURS, [late], JULY) == Period(late, JULY.end)
    earlier = JULY.end - timedelta(hours=6)
    assert next_window(FIVE_HOURS, [earlier], JULY) == Period(earlier, JULY.end - timedelta(hours=1))


def test_a_day_of_twenty_three_hours_is_one_day() -> None:
    march = Period(datetime(2026, 3, 6, 5, tzinfo=UTC), datetime(2026, 4, 6, 4, tzinfo=UTC))
    daily = Window(unit="day", opening=Opening.CALENDAR, zone="America/New_York")
    found = next_window(daily, [datetime(2026, 3, 8, 12, tzinfo=UTC)], march)
    assert found == Period(datetime(2026, 3, 8, 5, tzinfo=UTC), datetime(2026, 3, 9, 4, tzinfo=UTC))


def test_a_window_of_the_whole_period_needs_no_usage() -> None:
    whole = Window(unit="period")
    assert list(windows(whole, [], JULY)) == [JULY]
    assert next_window(whole, [], JULY, covered=JULY.end) is None


def test_an_allowance_is_exhausted_at_its_quota() -> None:
    quota = Decimal(100)
    assert not status(quota, Decimal("99.999")).exhausted
    at = status(quota, quota)
    assert (at.remaining, at.overage, at.exhausted) == (0, 0, True)
    assert status(quota, Decimal(250)).overage == 150


def test_several_allowances_add_up_unless_one_has_no_limit() -> None:
    assert together([Decimal(100), Decimal("250.5")]) == Decimal("350.5")
    assert together([Decimal(100), None]) is None
    assert together([]) == 0


@pytest.mark.parametrize(
    ("window", "field", "allowed"),
    [
        (Window(unit="month"), "grant.unit", "hour, day, week and period"),
        (Window(unit="day", count=0), "grant.count", "1 or more"),
    ],
)
def test_a_window_that_never_opens_is_refused(window: Window, field: str, allowed: str) -> None:
    with pytest.raises(Rejected) as refused:
        window.check("grant")
    assert refused.value.field == field
    assert allowed in refused.value.detail
