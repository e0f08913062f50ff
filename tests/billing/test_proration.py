"""Proration: parts of a period add up to it, by second and by day (SEMANTICS 11, 12, 22)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import Rejected
from billing.money import Money
from billing.period import Alignment, Cadence, Period, full_period
from billing.proration import (
    Proration,
    ProrationUnit,
    billed_shares,
    cap_credit,
    change,
    fixed_month_days,
    fraction,
    leading_fraction,
    local_days,
    prorate,
    settled,
    share,
    to_decimals,
    trailing_fraction,
)

DAY, SECOND = ProrationUnit.DAY, ProrationUnit.SECOND
ZONE = "America/New_York"
MARCH = full_period(Cadence(ZONE, datetime(2013, 3, 1)), datetime(2013, 3, 15, tzinfo=UTC))  # noqa: DTZ001
fees = st.integers(0, 10**9).map(lambda minor: Money(minor, "USD"))
moments = st.integers(0, 31 * 86_400 * 1_000_000 - 3_600_000_001).map(
    lambda us: MARCH.start + timedelta(microseconds=us)
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_month_with_a_day_of_23_hours_is_shorter_by_seconds_but_not_by_days() -> None:
    start = utc("2013-03-10T16:00")  # noon in New York, after the clocks moved
    used = Period(start, MARCH.end)
    assert MARCH.seconds == 31 * 86_400 - 3600
    assert fraction(used, MARCH) == Fraction(21 * 86_400 + 43_200, 31 * 86_400 - 3600)
    assert fraction(used, MARCH, by=DAY, zone=ZONE) == Fraction(22, 31)


@given(st.lists(moments, max_size=8), st.sampled_from([SECOND, DAY]))
def test_any_chain_of_changes_adds_up_to_the_full_period(changes: list[datetime], by: ProrationUnit) -> None:
    shares = [fraction(part, MARCH, by=by, zone=ZONE) for part in MARCH.split(*changes)]
    assert sum(shares) == 1


@given(fees, st.lists(moments, max_size=8), st.sampled_from([SECOND, DAY]))
def test_no_cent_is_lost_or_made_by_changes(fee: Money, changes: list[datetime], by: ProrationUnit) -> None:
    parts = prorate(fee, MARCH.split(*changes), by=by, zone=ZONE)
    assert sum((part.minor for part in parts), 0) == fee.minor


@given(fees, moments, st.sampled_from([SECOND, DAY]))
def test_what_is_credited_was_charged(fee: Money, at: datetime, by: ProrationUnit) -> None:
    made = change(fee, fee, MARCH, at, by=by, zone=ZONE)
    assert made.credit == made.charge <= fee
    assert made.net == Money.zero("USD")


def test_the_day_of_a_change_belongs_to_the_new_plan() -> None:
    made = change(Money(10000, "USD"), Money(3000, "USD"), MARCH, utc("2013-03-15T20:00"), by=DAY, zone=ZONE)
    assert (made.remaining, made.credit, made.charge) == (Fraction(17, 31), Money(5484, "USD"), Money(1645, "USD"))
    assert made.net == Money(-3839, "USD")


@pytest.mark.parametrize(
    ("at", "remaining"), [("2012-01-01", 1), ("2013-03-01T05:00", 1), ("2013-04-01T04:00", 0), ("2014-01-01", 0)]
)
def test_a_change_outside_its_period_is_one_at_its_edge(at: str, remaining: int) -> None:
    assert change(Money(100, "USD"), Money(200, "USD"), MARCH, utc(at)).remaining == remaining


@pytest.mark.parametrize(
    ("credit", "billed", "before", "given_back"),
    [(100, 200, 50, 100), (100, 200, 180, 20), (100, 200, 250, 0), (-50, 200, 0, 0), (100, 0, 0, 0)],
)
def test_a_credit_never_exceeds_what_was_billed_and_not_yet_credited(
    credit: int, billed: int, before: int, given_back: int
) -> None:
    assert cap_credit(*(Money(minor, "USD") for minor in (credit, billed, before))) == Money(given_back, "USD")


def test_a_credit_counts_what_was_given_back_before() -> None:
    made = change(Money(100, "USD"), Money(0, "USD"), MARCH, MARCH.start, credited=Money(70, "USD"))
    assert made.credit == Money(30, "USD")


def test_a_fee_is_divided_by_seconds_or_by_days() -> None:
    parts = MARCH.split(utc("2013-03-10T16:00"))  # the clocks moved at 07:00 of that day
    fee = Money(3100000, "USD")
    assert [part.minor for part in prorate(fee, parts)] == [947106, 2152894]
    assert [part.minor for part in prorate(fee, parts, by=DAY, zone=ZONE)] == [900000, 2200000]
    late = MARCH.split(utc("2013-03-11T02:00"))  # still the 10th in New York
    assert [part.minor for part in prorate(fee, late, by=DAY, zone=ZONE)] == [900000, 2200000]


@pytest.mark.parametrize(
    ("parts", "currency", "expected"),
    [
        (["1/3", "1/3", "1/3"], "USD", [34, 33, 33]),
        (["1/3", "-1/3"], "USD", [33, -33]),
        (["-1/3", "-1/3", "-1/3"], "USD", [-33, -33, -34]),
        (["0.004", "0.006"], "USD", [0, 1]),
        (["0.005"], "USD", [1]),
        (["1/2", "1/2"], "JPY", [1, 0]),
        (["0.0005", "0.0004"], "KWD", [1, 0]),
        ([], "USD", []),
    ],
)
def test_exact_parts_become_money_that_adds_up(parts: list[str], currency: str, expected: list[int]) -> None:
    assert settled([Fraction(each) for each in parts], currency) == tuple(Money(each, currency) for each in expected)


def test_a_part_costs_what_the_plans_rule_says() -> None:
    used, whole = Period(utc("2026-03-08T05:00"), utc("2026-03-09T04:00")), Period(utc("2026-03-01"), utc("2026-04-01"))
    assert share(used, whole, Proration.SECOND, ZONE) == Fraction(23, 31 * 24)
    assert share(used, MARCH, Proration.DAY, ZONE) == Fraction(1, 31)
    assert share(used, whole, Proration.NONE, ZONE) == 1
    midnight = Period(utc("2026-03-08T03:00"), utc("2026-03-08T05:30"))  # two dates in New York, one in UTC
    assert share(midnight, whole, Proration.DAY, ZONE) == Fraction(1, 31)


def test_spans_without_length_cannot_share() -> None:
    with pytest.raises(Rejected) as refused:
        prorate(Money(5, "USD"), [Period(MARCH.start, MARCH.start)])
    assert refused.value.code == "no_time"
    assert refused.value.detail == "spans of no length cannot share a fee; allowed is one of some length"
    hour = Period(MARCH.start, MARCH.start + timedelta(hours=1))
    with pytest.raises(Rejected) as refused:
        fraction(hour, hour, by=DAY, zone=ZONE)
    assert refused.value.code == "no_days"
    assert refused.value.detail == "a period of 3600 seconds holds no day; allowed is proration by second"


@pytest.mark.parametrize(
    ("start", "end", "days", "expected"),
    [("2023-05-23", "2023-06-15", 28, 20), ("2023-02-23", "2023-03-15", 30, 22), ("2023-05-15", "2023-05-23", 30, 8)],
)
def test_months_may_count_as_so_many_days(start: str, end: str, days: int, expected: int) -> None:
    assert fixed_month_days(Period(utc(start), utc(end)), days, "UTC") == expected


def test_the_days_of_a_fixed_month_are_local() -> None:
    night = Period(utc("2023-06-01T02:00"), utc("2023-07-01T02:00"))  # 31 May to 30 June in New York
    assert fixed_month_days(night, 30, ZONE) == 29
    assert fixed_month_days(night, 30, "UTC") == 30
    short = Period(utc("2023-06-01T02:00"), utc("2023-06-20T02:00"))
    assert (fixed_month_days(short, 28, ZONE), fixed_month_days(short, 28, "UTC")) == (16, 19)


def test_partial_periods_may_refer_to_the_interval_next_to_them() -> None:
    assert leading_fraction(Period(utc("2011-02-14"), utc("2011-02-28")), "P1M", zone="UTC") == Fraction(14, 31)
    assert trailing_fraction(Period(utc("2011-02-15"), utc("2011-02-27")), "P1M", zone="UTC") == Fraction(12, 28)


def test_partial_periods_are_measured_in_local_days_or_in_seconds() -> None:
    used = Period(utc("2013-03-10T16:00"), utc("2013-04-01T04:00"))
    assert leading_fraction(used, "P1M", zone=ZONE) == Fraction(22, 31)
    assert leading_fraction(used, "P1M", by=SECOND, zone=ZONE) == fraction(used, MARCH)
    evening = Period(utc("2013-03-01T05:00"), utc("2013-03-11T02:00"))  # until the evening of the 10th
    assert trailing_fraction(evening, "P1M", zone=ZONE) == Fraction(9, 31)
    assert trailing_fraction(evening, "P1M", by=SECOND, zone=ZONE) == fraction(evening, MARCH)
    cadence = Cadence(ZONE, datetime(2013, 3, 1), "P1M", Alignment.ANCHOR)  # noqa: DTZ001
    by_second = list(billed_shares(cadence, used.start, utc("2013-04-11T04:00"), utc("2014-01-01"), by=SECOND))
    assert by_second == [fraction(used, MARCH), Fraction(1, 3)]
    evening_on = Period(evening.end, MARCH.end)
    assert leading_fraction(evening_on, "P1M", zone=ZONE) == Fraction(22, 31)
    noon = list(billed_shares(cadence, MARCH.start, utc("2013-03-10T16:00"), MARCH.end, by=SECOND))
    assert noon == [Fraction(227, 743)]
    clamped = Cadence("UTC", datetime(2011, 1, 31), "P1M", Alignment.ANCHOR)  # noqa: DTZ001
    first = list(billed_shares(clamped, utc("2011-02-14"), utc("2011-02-28"), utc("2012-01-01")))
    assert first == [Fraction(14, 31)]  # it ends where its period ends: a first period, not a last one
    arrears = list(billed_shares(clamped, utc("2011-01-31"), None, utc("2011-02-28"), in_advance=False))
    assert arrears == [1]
    to_the_end = list(billed_shares(cadence, MARCH.start, MARCH.end, MARCH.end, by=SECOND))
    assert to_the_end == [1]


def test_a_change_is_measured_in_local_days() -> None:
    night = utc("2013-03-15T03:00")  # the 14th in New York
    assert change(Money(3100, "USD"), Money(0, "USD"), MARCH, night, by=DAY, zone=ZONE).credit == Money(1800, "USD")
    assert change(Money(3100, "USD"), Money(0, "USD"), MARCH, night, by=DAY).credit == Money(1700, "USD")
    assert change(Money(3100, "USD"), Money(0, "USD"), MARCH, night).remaining == Fraction(409, 743)
    assert [part.minor for part in prorate(Money(31, "USD"), MARCH.split(night), by=DAY)] == [14, 17]


def test_periods_are_billed_as_they_begin() -> None:
    cadence = Cadence("UTC", datetime(2011, 1, 1), "P1M", Alignment.ANCHOR, day=15)  # noqa: DTZ001
    start, end = utc("2011-01-01"), utc("2011-02-27")

    def shares(until: str) -> list[Fraction]:
        return list(billed_shares(cadence, start, end, utc(until)))

    assert shares("2011-01-01") == [Fraction(14, 31)]
    assert shares("2011-01-15") == [Fraction(14, 31), 1]
    assert shares("2011-06-01") == [Fraction(14, 31), 1, Fraction(12, 28)]
    arrears = list(billed_shares(cadence, start, end, utc("2011-02-26"), in_advance=False))
    assert arrears == [Fraction(14, 31), 1]
    assert list(billed_shares(cadence, start, start, utc("2011-06-01"))) == []


def test_a_share_may_be_rounded_before_it_is_multiplied() -> None:
    assert to_decimals(Fraction(20, 31), 9) == Decimal("0.645161290")
    assert to_decimals(Fraction(1, 2), 0) == 1


def test_days_are_counted_between_local_dates() -> None:
    assert local_days(Period(utc("2024-11-02T04:00"), utc("2024-11-04T05:00")), ZONE) == 2
