"""Stripe counts some currencies in units of its own (SEMANTICS 2)."""

from __future__ import annotations

import pytest

from billing.money import Money
from infra.stripe_gateway import _from_stripe, stripe_amount


@pytest.mark.parametrize(
    ("amount", "charged"),
    [
        (Money(1099, "USD"), 1099),
        (Money(1099, "JPY"), 1099),
        (Money(5, "ISK"), 500),
        (Money(5, "UGX"), 500),
        (Money(1230, "KWD"), 1230),
        (Money(1234, "KWD"), None),  # three decimals, the last has to be 0
        (Money(500, "MGA"), 5),  # two decimals in ISO 4217, none at Stripe
        (Money(550, "MGA"), None),
    ],
)
def test_amounts_in_stripes_own_units(amount: Money, charged: int | None) -> None:
    assert stripe_amount(amount) == charged
    if charged is not None:
        assert _from_stripe(charged, amount.currency) == amount
