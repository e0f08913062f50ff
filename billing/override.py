"""A customer's own prices: what may be overridden, and which override holds for a subscription."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from billing import customer
from billing.catalog import PriceBookPublished
from billing.catalog_check import check_charge, check_own_interval
from billing.errors import Rejected
from billing.ids import CustomerId
from billing.plan import prices_in
from billing.price_check import check_amount, check_percent
from billing.pricing import PriceOverride, Pricing


def with_own_prices(
    pricing: Pricing, customer_id: CustomerId, customers: Mapping[CustomerId, customer.State]
) -> Pricing:
    """`pricing` with the prices that the customer has for its plan by now."""
    return replace(pricing, override=own_prices(pricing.plan, pricing.currency, customer_id, customers))


def own_prices(
    plan: str, currency: str, customer_id: CustomerId, customers: Mapping[CustomerId, customer.State]
) -> PriceOverride | None:
    """What the customer pays for `plan` instead of its prices; None for those of the plan."""
    payer = customers.get(customer_id, customer.initial)
    return payer.override(plan, currency) if isinstance(payer, customer.Active) else None


def checked_override(own: PriceOverride, book: PriceBookPublished) -> PriceOverride:
    """`own`, with its currency.

    Raises:
        Rejected: naming the field that the plan does not have, or that could not be rated.
    """
    try:
        plan = book.plan(own.plan)
    except Rejected as e:
        raise Rejected(e.code, e.detail, field="override.plan") from e
    currency = own.currency or plan.currency
    prices = prices_in(plan, currency)
    if prices is None:
        known = ", ".join([plan.currency, *(each.currency for each in plan.prices)])
        raise Rejected("currency_mismatch", f"plan {plan.key!r} has prices in {known}", field="override.currency")
    meters = {each.key: each.meter for each in prices.charges}
    for index, charge in enumerate(own.charges):
        where = f"override.charges[{index}]"
        check_charge(charge, {meter.key: meter for meter in book.meters}, where)
        if charge.key not in meters:
            known = ", ".join(meters)
            raise Rejected(
                "unknown_charge",
                f"plan {plan.key!r} has no charge {charge.key!r}; it has: {known}",
                field=f"{where}.key",
            )
        if charge.meter != meters[charge.key]:
            raise Rejected(
                "other_meter",
                f"charge {charge.key!r} is about {meters[charge.key] or 'no meter'}",
                field=f"{where}.meter",
            )
        check_own_interval(charge, plan, f"{where}.interval")
        if charge.key in [each.key for each in own.charges[:index]]:
            raise Rejected("duplicate", f"{charge.key!r} stands there twice", field=f"{where}.key")
    if own.minimum_commitment is not None:
        check_amount(own.minimum_commitment, "override.minimum_commitment")
    check_percent(own.discount_percent, "override.discount_percent")
    return replace(own, currency=currency)
