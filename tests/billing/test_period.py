"""Periods tile time: for every anchor, zone and interval, without gap or overlap (SEMANTICS 7 to 10)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from billing.errors import Rejected
from billing.period import (
    Alignment,
    Cadence,
    Period,
    add_days,
    add_interval,
    boundary,
    check_cadence,
    check_interval,
    floor,
    full_period,
    moved,
    multiple,
    parse_interval,
    period_from,
    periods,
)

# Zones with every oddity: DST at midnight, half-hour shifts, a skipped day, moved standard time, Ramadan pauses.
ZONES = (
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "Pacific/Kwajalein",
    "Asia/Pyongyang",
    "America/Caracas",
    "Antarctica/Troll",
)
INTERVALS = ("P1D", "P3D", "P1W", "P2W", "P1M", "P2M", "P3M", "P6M", "P1Y", "P2Y", "P18M", "P1M15D")
anchors = st.datetimes(datetime(1985, 1, 1), datetime(2025, 12, 31, 23, 59, 59))  # noqa: DTZ001  # local by design
cadences = st.builds(
    Cadence,
    st.sampled_from(ZONES),
    anchors,
    st.sampled_from(INTERVALS),
    st.sampled_from(Alignment),
).filter(lambda each: not (each.alignment is Alignment.CALENDAR and each.interval == "P1M15D"))
instants = st.datetimes(datetime(1985, 1, 2), datetime(2025, 12, 30)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


def starts(cadence: Cadence, count: int) -> list[str]:
    zone = ZoneInfo(cadence.zone)
    return [f"{boundary(cadence, n).astimezone(zone):%Y-%m-%d}" for n in range(count)]


@given(cadences, instants)
@example(Cadence("Pacific/Apia", datetime(2011, 12, 1), "P1D"), utc("2011-12-30T09:00"))  # noqa: DTZ001
def test_every_instant_lies_in_exactly_one_period(cadence: Cadence, at: datetime) -> None:
    period = full_period(cadence, at)
    assert period.start <= at < period.end
    assert full_period(cadence, period.start) == period
    assert full_period(cadence, period.end).start == period.end
    assert full_period(cadence, period.start - timedelta(microseconds=1)).end == period.start


@settings(deadline=None, max_examples=40)  # a daily cadence has thousands of periods
@given(cadences)
def test_periods_tile_forty_years(cadence: Cadence) -> None:
    start, end = utc("1986-01-01"), utc("2026-01-01")
    if cadence.interval in ("P1D", "P3D"):
        start = utc("2010-01-01")
        end = utc("2012-06-01")
    made = list(periods(cadence, start, end))
    assert made[0].start == start
    assert made[-1].start < end <= made[-1].end
    assert all(before.end == after.start for before, after in pairwise(made))
    assert all(each.start < each.end for each in made)


@given(cadences, instants, instants)
def test_what_is_due_are_the_ends_of_periods(cadence: Cadence, a: datetime, b: datetime) -> None:
    start, until = min(a, b), min(max(a, b), min(a, b) + timedelta(days=400))
    due = [each.end for each in periods(cadence, start, until) if each.end <= until]
    assert due == [each for each in due if full_period(cadence, each).start == each]
    assert len(due) == len(set(due))


@pytest.mark.parametrize(
    ("anchor", "interval", "expected"),
    [
        ("2025-01-31", "P1M", ["2025-01-31", "2025-02-28", "2025-03-31", "2025-04-30"]),
        ("2024-01-30", "P1M", ["2024-01-30", "2024-02-29", "2024-03-30"]),
        ("2024-02-29", "P1Y", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2025-08-31", "P6M", ["2025-08-31", "2026-02-28", "2026-08-31"]),
        ("2025-01-31", "P1W", ["2025-01-31", "2025-02-07"]),
        ("2025-01-31", "P1M15D", ["2025-01-31", "2025-03-15", "2025-04-30"]),
    ],
)
def test_a_clamped_day_comes_back(anchor: str, interval: str, expected: list[str]) -> None:
    assert starts(Cadence("UTC", local(anchor), interval, Alignment.ANCHOR), len(expected)) == expected


@pytest.mark.parametrize(
    ("anchor", "interval", "expected"),
    [
        ("2025-05-17T13:45", "P1D", "2025-05-17"),
        ("2025-05-17", "P1W", "2025-05-12"),  # the Monday
        ("2025-05-17", "P1M", "2025-05-01"),
        ("2025-05-17", "P2M", "2025-05-01"),
        ("2025-05-17", "P3M", "2025-04-01"),
        ("2025-11-17", "P6M", "2025-07-01"),
        ("2025-05-17", "P1Y", "2025-01-01"),
    ],
)
def test_calendar_periods_start_with_the_calendar(anchor: str, interval: str, expected: str) -> None:
    assert starts(Cadence("Europe/Berlin", local(anchor), interval), 1) == [expected]


def test_a_billing_day_is_clamped_and_comes_back() -> None:
    cadence = Cadence("UTC", local("2025-02-10"), "P1M", Alignment.ANCHOR, day=31)
    assert starts(cadence, 3) == ["2025-02-28", "2025-03-31", "2025-04-30"]


@pytest.mark.parametrize(("day", "hours"), [("2013-03-10", 23), ("2013-11-03", 25), ("2013-07-04", 24)])
def test_a_day_of_23_or_25_hours_is_one_day(day: str, hours: int) -> None:
    cadence = Cadence("America/New_York", local("2013-01-01"), "P1D")
    period = full_period(cadence, local(day).replace(hour=12, tzinfo=ZoneInfo("America/New_York")).astimezone(UTC))
    assert period.seconds == hours * 3600


def test_a_boundary_in_the_gap_moves_behind_it_and_one_of_two_is_the_first() -> None:
    spring = Cadence("America/New_York", local("2013-03-09T02:30"), "P1D", Alignment.ANCHOR)
    assert boundary(spring, 1) == utc("2013-03-10T07:30")
    autumn = Cadence("America/New_York", local("2013-11-02T01:30"), "P1D", Alignment.ANCHOR)
    assert boundary(autumn, 1) == utc("2013-11-03T05:30")


def test_a_day_that_a_zone_skipped_is_no_period() -> None:
    cadence = Cadence("Pacific/Apia", local("2011-12-01"), "P1D")
    made = list(periods(cadence, utc("2011-12-29T10:00"), utc("2011-12-31T10:00")))
    assert [f"{each.start.astimezone(ZoneInfo('Pacific/Apia')):%d}" for each in made] == ["29", "31"]


def test_a_calendar_plan_that_starts_within_a_month_has_a_partial_first_period() -> None:
    cadence = Cadence("America/New_York", local("2013-02-14"), "P1M")
    start = utc("2013-02-14T05:00")
    assert next(periods(cadence, start, utc("2014-01-01"))) == Period(start, utc("2013-03-01T05:00"))
    assert full_period(cadence, start) == Period(utc("2013-02-01T05:00"), utc("2013-03-01T05:00"))


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("P6M", "2026-09-01", "2027-03-01"),  # a monthly subscription turns half-yearly and keeps its day
        ("P6M", "2026-09-05", "2027-01-01"),  # any other day runs to the next boundary
        ("P2W", "2026-07-01", "2026-07-15"),
        ("P1Y", "2026-06-30", "2026-07-01"),  # the anchor is still to come
    ],
)
def test_a_change_of_interval_keeps_the_anchors_day(interval: str, start: str, end: str) -> None:
    cadence = Cadence("UTC", local("2026-07-01"), interval, Alignment.ANCHOR)
    assert period_from(cadence, utc(start)) == Period(utc(start), utc(end))


def test_a_calendar_period_ends_with_the_calendar_whenever_it_starts() -> None:
    yearly = Cadence("UTC", local("2024-03-01"), "P1Y")
    assert period_from(yearly, utc("2024-03-01")) == Period(utc("2024-03-01"), utc("2025-01-01"))
    assert period_from(yearly, utc("2025-01-01")) == full_period(yearly, utc("2025-01-01"))


def test_a_change_of_interval_keeps_the_billing_day() -> None:
    cadence = Cadence("UTC", local("2026-01-10"), "P6M", Alignment.ANCHOR, day=31)
    assert period_from(cadence, utc("2026-04-30")) == Period(utc("2026-04-30"), utc("2026-10-31"))
    assert period_from(cadence, utc("2026-04-10")) == Period(utc("2026-04-10"), utc("2026-07-31"))
    anchor = Cadence("UTC", local("2026-01-10T12:00"), "P1M", Alignment.ANCHOR)
    assert period_from(anchor, utc("2026-01-10T08:00")).end == utc("2026-02-10T12:00")


@given(cadences, instants)
def test_a_period_from_a_boundary_is_the_full_period(cadence: Cadence, at: datetime) -> None:
    start = full_period(cadence, at).start
    if boundary(cadence, 0) <= start and cadence.zone not in ("Pacific/Apia", "Pacific/Kwajalein"):
        assert period_from(cadence, start) == full_period(cadence, start)


def test_a_change_of_zone_leaves_nothing_out() -> None:
    january = Period(utc("2022-01-31T15:00"), utc("2022-02-28T15:00"))
    assert moved(january, "Asia/Tokyo", "America/Los_Angeles") == Period(january.start, utc("2022-03-01T08:00"))


def test_calendar_arithmetic_is_local() -> None:
    assert add_days(utc("2026-10-30T04:00"), 3, "America/New_York") == utc("2026-11-02T05:00")
    assert add_interval(utc("2025-01-31T12:00"), "P1M", 1, "UTC") == utc("2025-02-28T12:00")
    assert floor(utc("2026-08-13T14:37"), "hour", "Asia/Kathmandu") == utc("2026-08-13T14:15")
    kathmandu = floor(utc("2026-08-13T14:37:12.5"), "hour", "Asia/Kathmandu")
    assert (kathmandu.microsecond, kathmandu.second, kathmandu.tzinfo) == (0, 0, UTC)
    assert floor(utc("2026-08-13T14:37"), "half_year", "UTC") == utc("2026-07-01")
    assert floor(utc("2026-08-13T14:37:12.5"), "day", "UTC") == utc("2026-08-13")
    with pytest.raises(Rejected) as refused:
        floor(utc("2026-08-13"), "fortnight", "UTC")
    assert refused.value.code == "invalid_unit"
    assert refused.value.detail == "allowed are hour, day, week, month, quarter, half_year and year"


def test_a_period_is_half_open() -> None:
    period = Period(utc("2026-01-01"), utc("2026-02-01"))
    assert period.start in period
    assert period.end not in period
    assert period.overlap(Period(period.end, utc("2026-03-01"))) is None
    assert period.overlap(Period(utc("2025-01-01"), utc("2026-01-02"))) == Period(period.start, utc("2026-01-02"))
    assert period.split(utc("2026-01-10"), period.start, utc("2030-01-01"), utc("2026-01-10")) == (
        Period(period.start, utc("2026-01-10")),
        Period(utc("2026-01-10"), period.end),
    )


@pytest.mark.parametrize("wrong", ["P0D", "P", "1M", "P1H", "PT1H", "P-1M", "P1.5M", "monthly", "", "P1M "])
def test_an_interval_that_gives_no_periods_is_refused(wrong: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_interval(wrong, Alignment.ANCHOR, "plans[0].interval")
    assert (refused.value.code, refused.value.field) == ("invalid_interval", "plans[0].interval")


def test_an_interval_reads_years_months_weeks_and_days() -> None:
    parsed = parse_interval("P1Y2M1W3D")
    assert (parsed.months, parsed.days) == (14, 10)


@pytest.mark.parametrize(
    ("cadence", "field", "code", "detail"),
    [
        (
            Cadence("UTC", local("2026-01-01"), "P1M", Alignment.CALENDAR, day=31),
            "day",
            "unexpected",
            "a calendar plan starts on its calendar's first day",
        ),
        (
            Cadence("UTC", local("2026-01-01"), "P1M", Alignment.ANCHOR, day=32),
            "day",
            "out_of_range",
            "32 is no day of a month; allowed is 1 to 31",
        ),
        (
            Cadence("UTC", local("2026-01-01"), "P1M", Alignment.ANCHOR, day=0),
            "day",
            "out_of_range",
            "0 is no day of a month; allowed is 1 to 31",
        ),
        (
            Cadence("UTC", local("2026-01-01"), "P1W", Alignment.ANCHOR, day=3),
            "day",
            "unexpected",
            "only intervals of months or years have a billing day",
        ),
        (
            Cadence("Mars/Olympus", local("2026-01-01")),
            "zone",
            "unknown_zone",
            "'Mars/Olympus' is no IANA zone such as Europe/Berlin",
        ),
        (
            Cadence("../etc/passwd", local("2026-01-01")),
            "zone",
            "unknown_zone",
            "'../etc/passwd' is no IANA zone such as Europe/Berlin",
        ),
        (
            Cadence("UTC", utc("2026-01-01")),
            "anchor",
            "invalid_time",
            "the anchor is a local date-time without offset",
        ),
        (
            Cadence("UTC", local("2026-01-01"), "P1M15D"),
            "interval",
            "invalid_interval",
            "P1M15D mixes months and days; a calendar plan allows one of them",
        ),
    ],
)
def test_a_cadence_that_gives_no_periods_is_refused_by_field(
    cadence: Cadence, field: str, code: str, detail: str
) -> None:
    with pytest.raises(Rejected) as refused:
        check_cadence(cadence, "terms")
    assert (refused.value.field, refused.value.code, refused.value.detail) == (f"terms.{field}", code, detail)


@pytest.mark.parametrize("day", [1, 31])
def test_every_day_of_a_month_may_be_a_billing_day(day: int) -> None:
    check_cadence(Cadence("UTC", local("2026-01-01"), "P1M", Alignment.ANCHOR, day=day), "terms")
    check_cadence(Cadence("UTC", local("2026-01-01"), "P1M15D", Alignment.ANCHOR, day=day), "terms")


def test_an_end_before_its_start_is_refused() -> None:
    with pytest.raises(Rejected) as refused:
        Period.between(utc("2026-02-01"), utc("2026-01-01"), "window")
    assert (refused.value.code, refused.value.field) == ("end_before_start", "window")
    with pytest.raises(Rejected, match="offset"):
        Period.between(local("2026-01-01"), utc("2026-02-01"))


@pytest.mark.parametrize(
    ("interval", "of", "calendar", "anchor"),
    [
        ("P1Y", "P1M", 12, 12),
        ("P12M", "P1Y", 1, 1),
        ("P3M", "P1M", 3, 3),
        ("P6M", "P3M", 2, 2),
        ("P9M", "P3M", None, 3),
        ("P4M", "P2M", 2, 2),
        ("P6M", "P2M", None, 3),
        ("P1Y", "P2M", None, 6),
        ("P4Y", "P2Y", 2, 2),
        ("P2W", "P1D", 14, 14),
        ("P2W", "P2D", None, 7),
        ("P4D", "P2D", 2, 2),
        ("P2W", "P1W", 2, 2),
        ("P1M", "P1Y", None, None),
        ("P1M", "P1W", None, None),
        ("P28D", "P1M", None, None),
        ("P2M2D", "P1M1D", None, 2),
        ("P2M3D", "P1M1D", None, None),
    ],
)
def test_whose_boundaries_are_boundaries_of_the_plan(
    interval: str, of: str, calendar: int | None, anchor: int | None
) -> None:
    assert multiple(interval, of, Alignment.ANCHOR) == anchor
    if "D" not in of or "M" not in of:
        assert multiple(interval, of, Alignment.CALENDAR) == calendar


INTERVALS = ["P1D", "P2D", "P4D", "P1W", "P2W", "P1M", "P2M", "P3M", "P4M", "P6M", "P9M", "P1Y", "P2Y", "P4Y"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(INTERVALS),
    st.sampled_from(INTERVALS),
    st.sampled_from(list(Alignment)),
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001  # local
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
    st.integers(-30, 30),
)
def test_every_boundary_of_a_multiple_is_a_boundary(
    longer: str, shorter: str, alignment: Alignment, anchor: datetime, zone: str, n: int
) -> None:
    if multiple(longer, shorter, alignment) is None:
        return
    at = boundary(Cadence(zone, anchor, longer, alignment), n)
    assert full_period(Cadence(zone, anchor, shorter, alignment), at).start == at
