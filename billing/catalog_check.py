"""What a price book must look like to bill: each mistake is refused with its path and with what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from billing.entitlement import Entitlement, EntitlementKind
from billing.errors import Rejected
from billing.held import PRICED_HELD, SAID_HELD, is_held
from billing.metering import Aggregation, Meter, check_meter
from billing.money import exponent
from billing.period import Alignment, check_interval, multiple, parse_interval
from billing.plan import AddOn, CurrencyPrices, Phase, Plan, own_prices
from billing.price import Charge, Percentage
from billing.price_check import check, check_amount, check_percent

if TYPE_CHECKING:
    from billing.catalog import PublishPriceBook

PERIODS_MAX = 1200  # a hundred years of months
TRIAL_DAYS_MAX = 3_660  # ten years


def check_price_book(book: PublishPriceBook) -> None:
    """Refuse a price book that could not bill: every reference resolves, every charge can be rated.

    Raises:
        Rejected: naming the field of the first mistake, such as `plans[0].charges[2].model.tiers[1].up_to`.
    """
    _unique([meter.key for meter in book.meters], "meters", "key")
    _unique([plan.key for plan in book.plans], "plans", "key")
    _unique([add_on.key for add_on in book.add_ons], "add_ons", "key")
    _unique([coupon.code for coupon in book.coupons], "coupons", "code")
    for index, meter in enumerate(book.meters):
        check_meter(meter, f"meters[{index}]")
    meters = {meter.key: meter for meter in book.meters}
    for index, plan in enumerate(book.plans):
        _check_plan(plan, meters, f"plans[{index}]")
    plans = {plan.key: plan for plan in book.plans}
    for index, add_on in enumerate(book.add_ons):
        _check_add_on(add_on, plans, meters, f"add_ons[{index}]")
    for index, coupon in enumerate(book.coupons):
        coupon.check(f"coupons[{index}]")
        _check_known(coupon.plans, list(plans), f"coupons[{index}].plans")


def _check_plan(plan: Plan, meters: dict[str, Meter], path: str) -> None:
    check_interval(plan.interval, plan.alignment, f"{path}.interval")
    if plan.trial is not None:
        check_trial(plan.trial, f"{path}.trial")
    if not 0 <= plan.free_periods <= PERIODS_MAX:
        said = f"{plan.free_periods}: allowed are 0 to {PERIODS_MAX} periods"
        raise Rejected("out_of_range", said, field=f"{path}.free_periods")
    _check_item(plan, meters, path)
    for index, phase in enumerate(plan.phases):
        _check_phase(phase, meters, f"{path}.phases[{index}]")
    for where, charges in _all_charges(plan, path):
        for index, charge in enumerate(charges):
            check_own_interval(charge, plan, f"{where}[{index}].interval")


def _all_charges(item: Plan | AddOn, path: str) -> Iterator[tuple[str, tuple[Charge, ...]]]:
    """Every list of charges of `item`, with its path."""
    yield f"{path}.charges", item.charges
    for number, prices in enumerate(item.prices):
        yield f"{path}.prices[{number}].charges", prices.charges
        for index, phase in enumerate(prices.phases):
            yield f"{path}.prices[{number}].phases[{index}].charges", phase.charges
    for index, phase in enumerate(own_prices(item).phases):
        yield f"{path}.phases[{index}].charges", phase.charges


def check_own_interval(charge: Charge, plan: Plan, path: str) -> None:
    """Refuse an interval of a charge whose boundaries are not all boundaries of the plan, whatever the anchor.

    Raises:
        Rejected: naming `path`.
    """
    if charge.interval is None:
        return
    parse_interval(charge.interval, path)
    if multiple(charge.interval, plan.interval, plan.alignment) is None:
        said = f"{charge.interval}: allowed are whole multiples of the plan's {plan.interval}"
        if plan.alignment is Alignment.CALENDAR:
            said += " that start with it in the calendar"
        raise Rejected("other_interval", said, field=path)
    if charge.meter is not None and charge.interval != plan.interval and plan.minimum_commitment is not None:
        said = f"usage that is billed every {charge.interval} cannot count toward a commitment per {plan.interval}"
        raise Rejected("unexpected", said, field=path)


def _check_add_on(add_on: AddOn, plans: Mapping[str, Plan], meters: dict[str, Meter], path: str) -> None:
    _check_item(add_on, meters, path)
    _check_known(add_on.plans, list(plans), f"{path}.plans")
    for plan in [each for each in plans.values() if not add_on.plans or each.key in add_on.plans]:
        for where, charges in _all_charges(add_on, path):
            for index, charge in enumerate(charges):
                check_own_interval(charge, plan, f"{where}[{index}].interval")


def _check_known(named: Sequence[str], plans: Sequence[str], path: str) -> None:
    for index, key in enumerate(named):
        if key not in plans:
            said = f"there is no plan {key!r}; known: {', '.join(plans) or 'none'}"
            raise Rejected("unknown_plan", said, field=f"{path}[{index}]")


def _check_item(item: Plan | AddOn, meters: dict[str, Meter], path: str) -> None:
    """What plans and add-ons have in common: charges, prices in further currencies, features."""
    first = own_prices(item)
    _check_prices(first, meters, path)
    _unique([each.currency for each in item.prices], f"{path}.prices", "currency")
    for index, each in enumerate(item.prices):
        where = f"{path}.prices[{index}]"
        _check_prices(each, meters, where)
        if each.currency == item.currency:
            raise Rejected("duplicate", f"{each.currency} is its own currency already", field=f"{where}.currency")
        if [(charge.key, charge.meter) for charge in each.charges] != [(one.key, one.meter) for one in first.charges]:
            said = f"allowed are the same charges in the same order: {', '.join(one.key for one in first.charges)}"
            raise Rejected("other_charges", said, field=f"{where}.charges")
        for number, phase in enumerate(each.phases):
            _check_phase(phase, meters, f"{where}.phases[{number}]")
        same = [(one.name, one.periods) for one in each.phases] == [(one.name, one.periods) for one in first.phases]
        if not same and (each.phases or any(phase.charges for phase in first.phases)):
            said = "allowed are the same phases, by name and number of periods, as in the first currency"
            raise Rejected("other_phases", said, field=f"{where}.phases")
    _unique([each.feature for each in item.entitlements], f"{path}.entitlements", "feature")
    for index, entitlement in enumerate(item.entitlements):
        _check_entitlement(entitlement, meters, f"{path}.entitlements[{index}]")


def _check_prices(prices: CurrencyPrices, meters: dict[str, Meter], path: str) -> None:
    exponent(prices.currency, f"{path}.currency")
    if not prices.charges:
        raise Rejected("missing", "a plan needs at least one charge", field=f"{path}.charges")
    _unique([charge.key for charge in prices.charges], f"{path}.charges", "key")
    if prices.minimum_commitment is not None:
        check_amount(prices.minimum_commitment, f"{path}.minimum_commitment")
    for index, charge in enumerate(prices.charges):
        check_charge(charge, meters, f"{path}.charges[{index}]")


def _check_phase(phase: Phase, meters: dict[str, Meter], path: str) -> None:
    if not phase.name:
        raise Rejected("missing", "it needs a name", field=f"{path}.name")
    if not 1 <= phase.periods <= PERIODS_MAX:
        raise Rejected("out_of_range", f"allowed are 1 to {PERIODS_MAX} periods", field=f"{path}.periods")
    _unique([charge.key for charge in phase.charges], f"{path}.charges", "key")
    for index, charge in enumerate(phase.charges):
        check_charge(charge, meters, f"{path}.charges[{index}]")
    check_percent(phase.discount_percent, f"{path}.discount_percent")


def check_trial(length: str, path: str) -> None:
    """Refuse a trial that is no length of time, or longer than anybody means.

    Raises:
        Rejected: naming `path`.
    """
    parsed = parse_interval(length, path)
    if parsed.months * 31 + parsed.days > TRIAL_DAYS_MAX:
        raise Rejected("out_of_range", f"{length}: allowed are up to {TRIAL_DAYS_MAX} days", field=path)


def check_charge(charge: Charge, meters: dict[str, Meter], where: str) -> None:
    """Refuse a charge that could not be rated from `meters`.

    Raises:
        Rejected: naming the first wrong field under `where`.
    """
    check(charge, where)
    if charge.meter is None:
        return
    if charge.meter not in meters:
        raise Rejected("unknown_meter", _known(charge.meter, meters), field=f"{where}.meter")
    meter = meters[charge.meter]
    missing = set(charge.dimensions) - set(meter.dimensions)
    if missing:
        raise Rejected(
            "unknown_dimension",
            f"meter {charge.meter!r} is not split by {', '.join(sorted(missing))}",
            field=f"{where}.model.dimensions",
        )
    if charge.dimensions and meter.aggregation is Aggregation.LATEST:
        raise Rejected("not_additive", "a latest value has no cells to price", field=f"{where}.model.dimensions")
    fewer = charge.dimensions and set(charge.dimensions) != set(meter.dimensions)
    if fewer and (meter.aggregation not in (Aggregation.COUNT, Aggregation.SUM) or is_held(charge, meter)):
        raise Rejected(
            "not_additive",
            f"only counts and sums add up over the other dimensions of meter {charge.meter!r}; name all of them",
            field=f"{where}.model.dimensions",
        )
    check_level(charge, meter, where)


def check_level(charge: Charge, meter: Meter, where: str) -> None:
    """Refuse a charge that has no price for a level: it is no sequence of transactions, and time has its own prices.

    Raises:
        Rejected: naming the wrong field under `where`.
    """
    if meter.carries_over and isinstance(charge.model, Percentage):
        said = f"meter {meter.key!r} carries over, and a level has no transactions to take a percentage of"
        raise Rejected("unexpected", said, field=f"{where}.model")
    if not is_held(charge, meter):
        return
    if not isinstance(charge.model, PRICED_HELD):
        said = f"meter {meter.key!r} carries over: {SAID_HELD}"
        raise Rejected("not_prorated", said, field=f"{where}.prorate")
    if charge.commitment is not None:
        said = "a commitment looks at a whole period; `prorate: false` prices the level at its end"
        raise Rejected("not_prorated", said, field=f"{where}.commitment")


def _check_entitlement(entitlement: Entitlement, meters: dict[str, Meter], path: str) -> None:
    if entitlement.kind is EntitlementKind.BOOLEAN:
        if entitlement.meter is not None or entitlement.limit is not None:
            raise Rejected("unexpected", "a boolean feature has neither meter nor limit", field=path)
        return
    if entitlement.meter is None or entitlement.meter not in meters:
        raise Rejected("unknown_meter", _known(entitlement.meter, meters), field=f"{path}.meter")
    if entitlement.limit is None:
        raise Rejected("out_of_range", "a metered feature needs a limit of 0 or more", field=f"{path}.limit")
    check_amount(entitlement.limit, f"{path}.limit")


def _unique(names: list[str], path: str, field: str) -> None:
    for index, name in enumerate(names):
        if not name:
            raise Rejected("missing", "it needs a name", field=f"{path}[{index}].{field}")
        if name in names[:index]:
            raise Rejected("duplicate", f"{name!r} stands there twice", field=f"{path}[{index}].{field}")


def _known(key: str | None, meters: dict[str, Meter]) -> str:
    return f"there is no meter {key!r}; known: {', '.join(sorted(meters)) or 'none'}"
