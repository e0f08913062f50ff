"""What a catalogue file would change, told by the names of things."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from billing.catalog import Plan, PriceBookPublished, PublishPriceBook
from billing.discount import Coupon
from billing.metering import Meter
from billing.price import Charge, Flat, Graduated, PerUnit, Tier
from services.catalog_plan import CatalogPlan, Difference, as_json, as_text, planned
from services.read_rows import Subscribers

CALLS = Meter(key="calls", event_type="call")
BASE = Charge(key="base", name="Base fee", model=Flat(Decimal("20.00")), in_advance=True)
TIERS = Graduated((Tier(Decimal(10), Decimal("0.5")), Tier(None, Decimal("0.4"))))
USAGE = Charge(key="calls", name="Calls", meter="calls", model=TIERS)
PRO = Plan(key="pro", name="Pro", currency="USD", charges=(BASE, USAGE))
TEAM = replace(PRO, key="team", name="Team")
BOOK = PriceBookPublished(
    version=3,
    effective_at=datetime(2026, 1, 1, tzinfo=UTC),
    meters=(CALLS,),
    plans=(PRO, TEAM),
    coupons=(Coupon(code="TEN", percent=Decimal(10)),),
)
SAME = PublishPriceBook(meters=BOOK.meters, plans=BOOK.plans, coupons=BOOK.coupons)
SUBSCRIBERS = [Subscribers("pro", 2, 12), Subscribers("pro", 3, 1), Subscribers("team", 3, 7)]
FEBRUARY = datetime(2026, 2, 1, 5, tzinfo=UTC)


def with_pro(*charges: Charge) -> PublishPriceBook:
    return replace(SAME, plans=(replace(PRO, charges=charges), TEAM))


def differences(wanted: PublishPriceBook) -> list[tuple[str, str]]:
    return [(each.sign, each.path) for each in planned(BOOK, wanted, None, ()).differences]


def test_the_same_catalogue_has_no_differences() -> None:
    assert planned(BOOK, SAME, FEBRUARY, SUBSCRIBERS) == CatalogPlan(3, FEBRUARY, (), ())
    assert as_text(planned(BOOK, SAME, None, ()), "UTC") == "no differences: the newest price book says the same"


def test_a_price_that_differs_is_shown_with_its_path() -> None:
    dearer = with_pro(replace(BASE, model=Flat(Decimal("22.00"))), USAGE)
    (found,) = planned(BOOK, dearer, None, ()).differences
    assert found == Difference("plans.pro.charges.base.model.amount", "20", "22")


def test_a_tier_is_named_by_its_place() -> None:
    tiers = replace(TIERS, tiers=(replace(TIERS.tiers[0], unit=Decimal("0.6")), TIERS.tiers[1]))
    assert differences(with_pro(BASE, replace(USAGE, model=tiers))) == [
        ("~", "plans.pro.charges.calls.model.tiers[0].unit")
    ]


def test_another_way_of_pricing_is_one_difference() -> None:
    found = planned(BOOK, with_pro(BASE, replace(USAGE, model=PerUnit(Decimal("0.3")))), None, ()).differences
    assert [(each.path, each.after) for each in found] == [
        ("plans.pro.charges.calls.model", {"type": "per_unit", "unit": "0.3"})
    ]


def test_what_is_new_and_what_goes_is_told_by_name() -> None:
    support = Charge(key="support", name="Support", model=Flat(Decimal(5)))
    wanted = replace(with_pro(BASE, support), coupons=())
    assert differences(wanted) == [
        ("-", "plans.pro.charges.calls"),
        ("+", "plans.pro.charges.support"),
        ("-", "coupons.TEN"),
    ]


def test_another_order_of_lines_is_a_difference_of_its_own() -> None:
    assert differences(with_pro(USAGE, BASE)) == [("~", "plans.pro.charges (order)")]


def test_everything_is_new_to_a_tenant_without_prices() -> None:
    found = planned(None, SAME, None, ())
    assert (found.version, {each.sign for each in found.differences}) == (1, {"+"})


def test_a_file_without_prices_changes_none() -> None:
    assert planned(BOOK, None, None, SUBSCRIBERS) == CatalogPlan(3, None, (), ())


def test_it_says_what_changes_for_whom_and_from_when() -> None:
    dearer = with_pro(replace(BASE, model=Flat(Decimal("22.00"))), USAGE)
    found = planned(BOOK, dearer, FEBRUARY, SUBSCRIBERS)
    assert as_text(found, "America/New_York").splitlines() == [
        "price book 4, effective 2026-02-01 00:00 America/New_York",
        "  ~ plans.pro.charges.base.model.amount  20 -> 22",
        "for whom",
        "  new subscriptions that start then or later",
        "  pro: 12 subscriptions on price book 2 stay on it until `catalog migrate --plan pro`",
        "  pro: 1 subscription on price book 3 stays on it until `catalog migrate --plan pro`",
    ]
    said = json.loads(as_json(found))
    assert (said["version"], said["effective_at"]) == (4, "2026-02-01T05:00:00Z")
    assert said["affected"][0] == {"plan": "pro", "price_book_version": 2, "subscriptions": 12}
