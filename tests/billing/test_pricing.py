"""What rates a subscription beside its plan: currencies, add-ons, own prices of a customer, phases."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from billing.catalog import PublishPriceBook
from billing.customer import SetPriceOverride
from billing.entitlement import Entitlement, EntitlementKind
from billing.ids import CustomerId
from billing.money import Money
from billing.plan import AddOn, CurrencyPrices, Phase
from billing.plan_change import AddAddOn, ChangePlan, MigrateSubscription, RemoveAddOn
from billing.price import Charge, Flat, PerUnit
from billing.pricing import AddOnQuantity, PriceOverride, Pricing, discounted, entitlements, phase_at
from billing.subscription import CancelSubscription
from tests.billing.tenants import (
    ACTIVATE,
    APRIL,
    BASE_FEE,
    BOOK,
    C1,
    CALLS_CHARGE,
    CREATE_C1,
    FEBRUARY,
    MARCH,
    METERED,
    PRO,
    REGISTER,
    S1,
    SUBSCRIBE,
    Life,
    close,
    until,
)
from tests.billing.test_plan_change import DAY_11, DAY_21, amounts, billed, rated

EURO_FEE = replace(BASE_FEE, model=Flat(Decimal("28.00")))
EURO_CALLS = replace(CALLS_CHARGE, model=PerUnit(Decimal("0.09")))
IN_EUROS = CurrencyPrices(currency="EUR", charges=(EURO_FEE, EURO_CALLS))
SEATS = AddOn(
    key="seats",
    name="Seats",
    currency="USD",
    charges=(Charge(key="fee", name="Seats", model=Flat(Decimal("3.10")), in_advance=True),),
    prices=(
        CurrencyPrices(
            currency="EUR", charges=(Charge(key="fee", name="Seats", model=Flat(Decimal(3)), in_advance=True),)
        ),
    ),
)
AUDIT = AddOn(
    key="audit",
    name="Audit",
    currency="USD",
    charges=(replace(CALLS_CHARGE, key="log", model=PerUnit(Decimal("0.01"))),),
    plans=("pro",),
)
MULTI = replace(BOOK, plans=(replace(PRO, prices=(IN_EUROS,)), METERED), add_ons=(SEATS, AUDIT))
ADD_SEATS = AddAddOn(subscription_id=S1, add_on="seats", quantity=2)
REMOVE_SEATS = RemoveAddOn(subscription_id=S1, add_on="seats")


def a_pro(book: PublishPriceBook = MULTI, **wish: Any) -> Life:
    """On Pro since the first of January, its fee billed."""
    return billed(Life().given(REGISTER, book, CREATE_C1, replace(SUBSCRIBE, **wish), ACTIVATE))


# --- currencies ---


def test_a_subscription_is_billed_in_the_plans_first_currency_unless_it_names_another() -> None:
    assert a_pro().last_invoice.total.currency == "USD"
    euros = a_pro(currency="EUR")
    assert euros.last_invoice.total == Money(2800, "EUR")
    euros.given(until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(euros, calls=10))["usage", "calls", "01-01..02-01"] == "0.90"


def test_a_currency_that_the_plan_has_no_prices_in_is_refused() -> None:
    life = Life().given(REGISTER, MULTI, CREATE_C1)
    life.when(replace(SUBSCRIBE, currency="JPY")).then_rejected("currency_mismatch", "currency")
    euros = a_pro(currency="EUR")
    euros.when(ChangePlan(subscription_id=S1, plan="metered")).then_rejected("currency_mismatch", "plan")


def priced(**changes: Any) -> PublishPriceBook:
    return replace(MULTI, plans=(replace(PRO, prices=(replace(IN_EUROS, **changes),)),), add_ons=())


def phased(**changes: Any) -> PublishPriceBook:
    phase = Phase(**({"name": "launch", "periods": 2} | changes))
    return replace(BOOK, plans=(replace(PRO, phases=(phase,)),))


def added(**changes: Any) -> PublishPriceBook:
    return replace(MULTI, add_ons=(replace(SEATS, **changes),))


@pytest.mark.parametrize(
    ("book", "code", "field"),
    [
        (priced(currency="USD"), "duplicate", "plans[0].prices[0].currency"),
        (priced(currency="XXX"), "unknown_currency", "plans[0].prices[0].currency"),
        (priced(charges=(EURO_FEE,)), "other_charges", "plans[0].prices[0].charges"),
        (priced(minimum_commitment=Decimal(-1)), "out_of_range", "plans[0].prices[0].minimum_commitment"),
        (priced(phases=(Phase(name="x", periods=1),)), "other_phases", "plans[0].prices[0].phases"),
        (
            replace(
                BOOK,
                plans=(replace(PRO, phases=(Phase(name="x", periods=1, charges=(BASE_FEE,)),), prices=(IN_EUROS,)),),
            ),
            "other_phases",
            "plans[0].prices[0].phases",
        ),
        (phased(periods=0), "out_of_range", "plans[0].phases[0].periods"),
        (phased(name=""), "missing", "plans[0].phases[0].name"),
        (phased(discount_percent=Decimal(300)), "out_of_range", "plans[0].phases[0].discount_percent"),
        (phased(charges=(BASE_FEE, BASE_FEE)), "duplicate", "plans[0].phases[0].charges[1].key"),
        (
            phased(charges=(replace(CALLS_CHARGE, meter="miles"),)),
            "unknown_meter",
            "plans[0].phases[0].charges[0].meter",
        ),
        (replace(MULTI, add_ons=(SEATS, SEATS)), "duplicate", "add_ons[1].key"),
        (added(charges=()), "missing", "add_ons[0].charges"),
        (added(plans=("gold",)), "unknown_plan", "add_ons[0].plans[0]"),
        (added(currency="usd"), "unknown_currency", "add_ons[0].currency"),
    ],
)
def test_a_catalogue_that_could_not_bill_is_refused_by_path(book: PublishPriceBook, code: str, field: str) -> None:
    Life().given(REGISTER).when(book).then_rejected(code, field)


# --- add-ons ---


def test_an_add_on_is_charged_for_the_rest_of_the_period_and_then_in_advance() -> None:
    life = a_pro().given(until(DAY_11), ADD_SEATS, until(FEBRUARY), close(FEBRUARY))
    found = {(each.charge, each.description): (str(each.amount), each.explanation) for each in rated(life)}
    assert found["seats.fee", "Seats"] == ("6.20", "2 x 3.10")  # the next period, in advance
    assert amounts(rated(life)) == {
        ("usage", "calls", "01-01..02-01"): "0.00",
        ("fee", "seats.fee", "01-11..02-01"): "4.20",
        ("fee", "base", "02-01..03-01"): "31.00",
        ("fee", "seats.fee", "02-01..03-01"): "6.20",
    }


def test_another_quantity_credits_the_old_one_and_charges_the_new_one() -> None:
    life = a_pro().given(ADD_SEATS, until(FEBRUARY), close(FEBRUARY))
    billed(life).given(until(MARCH.replace(day=1, month=2) + (DAY_21 - DAY_11)), replace(ADD_SEATS, quantity=3))
    found = amounts(rated(life.given(until(MARCH), close(MARCH))))
    assert found["unused_fee", "seats.fee", "02-11..03-01"] == "-3.99"  # 18 of 28 days of 6.20
    assert found["fee", "seats.fee", "02-11..03-01"] == "5.98"  # 18 of 28 days of 9.30
    assert ("usage", "calls", "02-01..03-01") in found


def test_an_add_on_that_is_removed_goes_with_the_period_or_at_once_with_a_credit() -> None:
    life = a_pro().given(ADD_SEATS, until(FEBRUARY), close(FEBRUARY))
    billed(life)
    assert life.when(REMOVE_SEATS).event.effective_at == MARCH
    life.given(replace(REMOVE_SEATS, at_period_end=False), until(MARCH), close(MARCH))
    assert amounts(rated(life))["unused_fee", "seats.fee", "02-01..03-01"] == "-6.20"
    assert life.event.next.pricing.add_ons == ()


def test_usage_of_an_add_on_is_rated_beside_the_plans() -> None:
    life = a_pro().given(AddAddOn(subscription_id=S1, add_on="audit"), until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life, calls=100))["usage", "audit.log", "01-01..02-01"] == "1.00"


def test_add_ons_from_the_start_are_on_the_first_invoice() -> None:
    two = (AddOnQuantity(add_on="seats", quantity=2),)
    assert a_pro(add_ons=two).last_invoice.total == Money(3720, "USD")


@pytest.mark.parametrize(
    ("add_ons", "code", "field"),
    [
        ((AddOnQuantity(add_on="gold"),), "unknown_add_on", "add_on"),
        ((AddOnQuantity(add_on="seats", quantity=0),), "out_of_range", "add_ons[0].quantity"),
        ((AddOnQuantity(add_on="seats"), AddOnQuantity(add_on="seats")), "duplicate", "add_ons[1].add_on"),
    ],
)
def test_a_subscription_with_add_ons_that_could_not_be_billed_is_refused(add_ons: Any, code: str, field: str) -> None:
    life = Life().given(REGISTER, MULTI, CREATE_C1)
    life.when(replace(SUBSCRIBE, add_ons=add_ons)).then_rejected(code, field)


def test_adding_the_same_again_and_removing_what_is_not_there_change_nothing() -> None:
    a_pro().given(ADD_SEATS).when(ADD_SEATS).then()
    a_pro().when(REMOVE_SEATS).then()


@pytest.mark.parametrize(
    ("given", "command", "code", "field"),
    [
        ((), replace(ADD_SEATS, add_on="gold"), "unknown_add_on", "add_on"),
        ((), replace(ADD_SEATS, quantity=0), "out_of_range", "quantity"),
        ((CancelSubscription(subscription_id=S1),), replace(ADD_SEATS, at_period_end=True), "ending", ""),
        (
            (AddAddOn(subscription_id=S1, add_on="audit"),),
            ChangePlan(subscription_id=S1, plan="metered"),
            "add_on_of_other_plan",
            "add_on",
        ),
        (
            (ChangePlan(subscription_id=S1, plan="metered"),),
            AddAddOn(subscription_id=S1, add_on="audit"),
            "add_on_of_other_plan",
            "add_on",
        ),
        ((ADD_SEATS, replace(MULTI, add_ons=())), MigrateSubscription(subscription_id=S1), "unknown_add_on", "add_on"),
    ],
)
def test_an_add_on_that_could_not_be_billed_is_refused(given: Any, command: Any, code: str, field: str) -> None:
    a_pro().given(*given).when(command).then_rejected(code, field)


def test_limits_of_add_ons_add_up_with_those_of_the_plan() -> None:
    calls = Entitlement(feature="calls", kind=EntitlementKind.METERED, meter="calls", limit=Decimal(100))
    sso = Entitlement(feature="sso")
    plan, pack = replace(PRO, entitlements=(calls,)), replace(SEATS, entitlements=(calls, sso))
    book = Life().given(REGISTER).when(replace(BOOK, plans=(plan,), add_ons=(pack,))).event
    pricing = Pricing(plan="pro", price_book_version=1, currency="USD")
    assert entitlements(pricing, book) == (calls,)
    three = replace(pricing, add_ons=(AddOnQuantity(add_on="seats", quantity=3),))
    assert entitlements(three, book) == (replace(calls, limit=Decimal(400)), sso)


# --- a customer's own prices ---

CHEAPER = PriceOverride(plan="pro", charges=(replace(BASE_FEE, model=Flat(Decimal("25.00"))),))
SET = SetPriceOverride(customer_id=C1, override=CHEAPER)


def test_own_prices_hold_from_the_next_period_on_and_are_frozen_on_its_run() -> None:
    life = a_pro().given(until(DAY_11), SET, until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life))["fee", "base", "02-01..03-01"] == "25.00"
    assert life.event.run.advance.pricing.override == replace(CHEAPER, currency="USD")


def test_own_prices_hold_from_the_start_if_they_were_set_before() -> None:
    life = billed(Life().given(REGISTER, MULTI, CREATE_C1, SET, SUBSCRIBE, ACTIVATE))
    assert life.last_invoice.total == Money(2500, "USD")


def test_a_discount_and_a_commitment_of_ones_own() -> None:
    own = PriceOverride(plan="pro", discount_percent=Decimal(20), minimum_commitment=Decimal("100.00"))
    life = Life().given(REGISTER, MULTI, CREATE_C1, replace(SET, override=own), SUBSCRIBE, ACTIVATE)
    billed(life).given(until(FEBRUARY), close(FEBRUARY))
    assert amounts(rated(life, calls=100)) == {
        ("usage", "calls", "01-01..02-01"): "8.00",
        ("commitment", "minimum_commitment", "01-01..02-01"): "67.20",  # 100.00 - 24.80 - 8.00
        ("fee", "base", "02-01..03-01"): "24.80",
    }


def test_own_prices_of_another_currency_do_not_apply() -> None:
    life = Life().given(REGISTER, MULTI, CREATE_C1, SET, replace(SUBSCRIBE, currency="EUR"), ACTIVATE)
    assert billed(life).last_invoice.total == Money(2800, "EUR")


def test_own_prices_are_taken_back_by_setting_none() -> None:
    life = a_pro().given(SET, replace(SET, override=PriceOverride(plan="pro")), until(FEBRUARY), close(FEBRUARY))
    assert life.event.next.pricing.override is None
    life.when(replace(SET, override=PriceOverride(plan="pro"))).then()


def test_the_same_own_prices_again_change_nothing() -> None:
    a_pro().given(SET).when(SET).then()


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"plan": "gold"}, "unknown_plan", "override.plan"),
        ({"currency": "JPY"}, "currency_mismatch", "override.currency"),
        ({"charges": (replace(BASE_FEE, key="extra"),)}, "unknown_charge", "override.charges[0].key"),
        ({"charges": (replace(CALLS_CHARGE, key="base"),)}, "other_meter", "override.charges[0].meter"),
        ({"charges": (BASE_FEE, BASE_FEE)}, "duplicate", "override.charges[1].key"),
        (
            {"charges": (replace(BASE_FEE, model=Flat(Decimal(-1))),)},
            "out_of_range",
            "override.charges[0].model.amount",
        ),
        ({"minimum_commitment": Decimal(-1)}, "out_of_range", "override.minimum_commitment"),
        ({"discount_percent": Decimal(101)}, "out_of_range", "override.discount_percent"),
    ],
)
def test_own_prices_that_do_not_fit_the_plan_are_refused(changes: Any, code: str, field: str) -> None:
    a_pro().when(replace(SET, override=replace(CHEAPER, **changes))).then_rejected(code, field)


def test_own_prices_need_a_customer() -> None:
    command = replace(SET, customer_id=CustomerId("c9"))
    Life().given(REGISTER, MULTI).when(command).then_rejected("unknown_customer", "customer_id")


def test_a_discount_comes_off_what_an_earlier_one_left() -> None:
    (charge,) = discounted([replace(BASE_FEE, discount_percent=Decimal(10))], Decimal(50))
    assert charge.discount_percent == Decimal(55)


# --- phases ---

LAUNCH = Phase(name="launch", periods=1, discount_percent=Decimal(50))
SETUP = Charge(key="setup", name="Setup", model=Flat(Decimal("5.00")), in_advance=True)
RAMP = Phase(name="ramp", periods=2, charges=(replace(BASE_FEE, model=Flat(Decimal("25.00"))), SETUP))
RAMPED = replace(BOOK, plans=(replace(PRO, phases=(LAUNCH, RAMP)), METERED))


def fees(life: Life) -> dict[str, str]:
    return {each.charge: str(each.amount.major()) for each in rated(life) if each.period.start == life_start(life)}


def life_start(life: Life) -> Any:
    run = next(run for each in reversed(life.envelopes) if (run := getattr(each.event, "run", None)))
    return run.advance.period.start


def test_phases_follow_each_other_by_whole_periods_and_then_the_plan_holds() -> None:
    life = Life().given(REGISTER, RAMPED, CREATE_C1, SUBSCRIBE, ACTIVATE)
    found = [fees(life)]
    for end in (FEBRUARY, MARCH, APRIL):
        billed(life).given(until(end), close(end))
        found.append(fees(life))
    assert found == [
        {"base": "15.50"},
        {"base": "25.00", "setup": "5.00"},
        {"base": "25.00", "setup": "5.00"},
        {"base": "31.00"},
    ]


def test_phases_start_anew_with_another_plan_but_not_with_another_version() -> None:
    life = Life().given(REGISTER, RAMPED, CREATE_C1, SUBSCRIBE, ACTIVATE)
    billed(life).given(replace(RAMPED, coupons=()), MigrateSubscription(subscription_id=S1))
    life.given(until(FEBRUARY), close(FEBRUARY))
    assert life.event.next.pricing.period_number == 2
    billed(life).given(ChangePlan(subscription_id=S1, plan="metered"), until(MARCH), close(MARCH))
    assert life.event.next.pricing.period_number == 1


def test_a_percentage_off_in_a_phase_holds_in_every_currency() -> None:
    book = replace(BOOK, plans=(replace(PRO, phases=(LAUNCH,), prices=(IN_EUROS,)),))
    assert a_pro(book, currency="EUR").last_invoice.total == Money(1400, "EUR")


@pytest.mark.parametrize(("number", "name"), [(1, "launch"), (2, "ramp"), (3, "ramp"), (4, None), (99, None)])
def test_the_phase_of_a_period(number: int, name: str | None) -> None:
    phase = phase_at((LAUNCH, RAMP), number)
    assert (phase.name if phase else None) == name
