"""Tables of prices as the cases write them."""

from __future__ import annotations

from typing import Any

from billing.price import Tier
from tests.conformance.figures import number, optional


def tiers(given: dict[str, Any]) -> tuple[Tier, ...]:
    return tuple(
        Tier(
            optional(each["up_to"]),
            number(each.get("unit_price", each.get("rate_percent"))),
            number(each.get("flat")),
            optional(each.get("cap")),
        )
        for each in given["tiers"]
    )
