"""Ordering that a meter counts again what came before it was changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from billing.backfilling import BackfillMeter, MeterBackfillOrdered
from tests.billing.tenants import BOOK, JANUARY, REGISTER, Life

FIRST = JANUARY - timedelta(days=34)
"""The oldest event time that the tenant accepts."""
ASKED = BackfillMeter(meter="calls", from_time=FIRST)


def test_a_meter_is_counted_again_as_far_back_as_events_are_accepted() -> None:
    Life().given(REGISTER, BOOK).when(ASKED).then(MeterBackfillOrdered(meter="calls", from_time=FIRST))


def test_every_order_is_one_of_its_own() -> None:
    ordered = MeterBackfillOrdered(meter="calls", from_time=FIRST, to_time=JANUARY)
    life = Life().given(REGISTER, BOOK)
    life.when(replace(ASKED, to_time=JANUARY)).then(ordered)
    life.when(replace(ASKED, to_time=JANUARY)).then(ordered)


def test_older_events_are_not_known_one_by_one() -> None:
    early = replace(ASKED, from_time=FIRST - timedelta(microseconds=1))
    Life().given(REGISTER, BOOK).when(early).then_rejected("too_early", "from_time")


def test_an_empty_span_and_an_unknown_meter_are_refused() -> None:
    life = Life().given(REGISTER, BOOK)
    life.when(replace(ASKED, to_time=FIRST)).then_rejected("out_of_range", "to_time")
    life.when(replace(ASKED, meter="bytes")).then_rejected("unknown_meter", "meter")


def test_a_meter_that_a_newer_book_leaves_out_is_measured_on_and_counted_again() -> None:
    life = Life().given(REGISTER, BOOK, replace(BOOK, meters=(replace(BOOK.meters[0], key="other"),), plans=()))
    life.when(ASKED).then(MeterBackfillOrdered(meter="calls", from_time=FIRST))
