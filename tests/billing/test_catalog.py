"""Publishing price books: what cannot bill is refused with its path."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import PriceBookPublished, PublishPriceBook
from billing.entitlement import Entitlement, EntitlementKind
from billing.metering import Aggregation, Meter
from billing.period import Alignment
from billing.price import Cell, Charge, Flat, Graduated, Matrix, Tier
from tests.billing.tenants import (
    BASE_FEE,
    BOOK,
    C1,
    CALLS,
    CALLS_CHARGE,
    CREATE_C1,
    FEBRUARY,
    JANUARY,
    MARCH,
    PRO,
    REGISTER,
    SUBSCRIBE,
    TENTH_OFF,
    Life,
    a_tenant,
    until,
)

DEARER = replace(PRO, charges=(replace(BASE_FEE, model=Flat(Decimal("62.00"))),))


def a_seller() -> Life:
    return Life().given(REGISTER)


def test_the_first_price_book_is_version_one_and_effective_at_once() -> None:
    a_seller().when(BOOK).then(
        PriceBookPublished(version=1, effective_at=JANUARY, meters=BOOK.meters, plans=BOOK.plans, coupons=BOOK.coupons)
    )


def test_publishing_the_same_price_book_again_changes_nothing() -> None:
    a_seller().given(BOOK).when(BOOK).then()


def test_a_later_version_leaves_the_earlier_one_to_those_who_subscribed_under_it() -> None:
    life = a_tenant().given(SUBSCRIBE, replace(BOOK, plans=(DEARER,)))
    assert life.event.version == 2
    assert life.state.catalog.books[0].plans == BOOK.plans


def test_a_version_with_a_later_start_is_not_yet_in_force() -> None:
    life = a_tenant().given(PublishPriceBook(effective_at=FEBRUARY, plans=(replace(DEARER, key="next"),)))
    life.when(replace(SUBSCRIBE, plan="next")).then_rejected("unknown_plan", "plan")
    life.given(until(FEBRUARY)).when(replace(SUBSCRIBE, plan="next")).then_names("SubscriptionCreated")


def test_a_version_cannot_start_before_the_newest_one() -> None:
    life = a_seller().given(replace(BOOK, effective_at=MARCH))
    life.when(replace(BOOK, effective_at=FEBRUARY, coupons=())).then_rejected("effective_before_newest", "effective_at")


def test_nobody_can_subscribe_before_a_price_book_is_in_force() -> None:
    Life().given(REGISTER, CREATE_C1).when(SUBSCRIBE).then_rejected("no_price_book")


def charged(**changes: Any) -> PublishPriceBook:
    return replace(BOOK, plans=(replace(PRO, charges=(replace(CALLS_CHARGE, **changes),)),))


def planned(**changes: Any) -> PublishPriceBook:
    return replace(BOOK, plans=(replace(PRO, **changes),))


def granted(**changes: Any) -> PublishPriceBook:
    return planned(entitlements=(Entitlement(**({"feature": "sso"} | changes)),))


DESCENDING = Graduated((Tier(Decimal(10), Decimal(1)), Tier(Decimal(5), Decimal(1)), Tier(None, Decimal(1))))
BY_REGION = Matrix(("region",), (Cell(("eu",), Decimal(1)),))


@pytest.mark.parametrize(
    ("book", "code", "field"),
    [
        (replace(BOOK, meters=(CALLS, CALLS)), "duplicate", "meters[1].key"),
        (replace(BOOK, plans=(PRO, PRO)), "duplicate", "plans[1].key"),
        (replace(BOOK, coupons=(TENTH_OFF, TENTH_OFF)), "duplicate", "coupons[1].code"),
        (replace(BOOK, coupons=(replace(TENTH_OFF, percent=Decimal(0)),)), "out_of_range", "coupons[0].percent"),
        (replace(BOOK, meters=(replace(CALLS, key=""),)), "missing", "meters[0].key"),
        (replace(BOOK, meters=(replace(CALLS, value="n"),)), "unexpected", "meters[0].value"),
        (
            replace(
                BOOK,
                meters=(Meter(key="calls", event_type=""),),
            ),
            "missing",
            "meters[0].event_type",
        ),
        (planned(currency="BTC"), "unknown_currency", "plans[0].currency"),
        (planned(interval="monthly"), "invalid_interval", "plans[0].interval"),
        (planned(interval="P1M3D", alignment=Alignment.CALENDAR), "invalid_interval", "plans[0].interval"),
        (planned(charges=()), "missing", "plans[0].charges"),
        (planned(charges=(BASE_FEE, BASE_FEE)), "duplicate", "plans[0].charges[1].key"),
        (planned(minimum_commitment=Decimal(-1)), "out_of_range", "plans[0].minimum_commitment"),
        (planned(minimum_commitment=Decimal("NaN")), "not_a_number", "plans[0].minimum_commitment"),
        (charged(meter="miles"), "unknown_meter", "plans[0].charges[0].meter"),
        (charged(model=DESCENDING), "overlapping_tiers", "plans[0].charges[0].model.tiers[1].up_to"),
        (charged(model=BY_REGION), "unknown_dimension", "plans[0].charges[0].model.dimensions"),
        (granted(meter="calls"), "unexpected", "plans[0].entitlements[0]"),
        (granted(kind=EntitlementKind.METERED), "unknown_meter", "plans[0].entitlements[0].meter"),
        (
            granted(kind=EntitlementKind.METERED, meter="calls"),
            "out_of_range",
            "plans[0].entitlements[0].limit",
        ),
    ],
)
def test_a_price_book_that_cannot_bill_is_refused_by_field(book: PublishPriceBook, code: str, field: str) -> None:
    life = a_seller().when(book)
    assert life.rejected is not None
    assert life.rejected.field == field
    assert life.rejected.code == code


def test_a_latest_value_cannot_be_priced_by_cell() -> None:
    level = Meter(
        key="level", event_type="tank.read", aggregation=Aggregation.LATEST, value="litres", dimensions=("region",)
    )
    charge = Charge(key="level", name="Level", model=BY_REGION, meter="level")
    book = PublishPriceBook(meters=(level,), plans=(replace(PRO, charges=(charge,)),))
    a_seller().when(book).then_rejected("not_additive", "plans[0].charges[0].model.dimensions")


def test_redeeming_takes_the_coupon_as_it_is_in_force_now() -> None:
    from billing.customer import RedeemCoupon

    life = a_tenant().given(RedeemCoupon(customer_id=C1, coupon="TENTH"))
    assert life.event.coupon == TENTH_OFF
