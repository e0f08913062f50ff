"""Mistakes that people make in a price book: one list for every door that a price book comes in by."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

FORTY_DIGITS = "1234567890" * 4
CHARGE = "plans[0].charges[0]"
DOLLARS_OFF = {"code": "TEN", "amount": "5", "currency": "DOL"}
UNIT = f"{CHARGE}.model.tiers[1].unit"

BOOK: dict[str, Any] = {
    "meters": [{"key": "calls", "event_type": "call", "aggregation": "sum", "value": "n"}],
    "plans": [
        {
            "key": "pro",
            "name": "Pro",
            "currency": "USD",
            "charges": [
                {
                    "key": "calls",
                    "name": "Calls",
                    "meter": "calls",
                    "model": {
                        "type": "graduated",
                        "tiers": [{"up_to": "10", "unit": "1"}, {"up_to": "20", "unit": "0.5"}, {"unit": "0.25"}],
                    },
                }
            ],
        }
    ],
    "coupons": [{"code": "TEN", "percent": "10"}],
}


@dataclass(frozen=True)
class Mistake:
    """A value that stands where it may not."""

    name: str
    field: str
    """Its path in the price book."""
    value: Any
    code: str
    allowed: str
    """Words of the answer that say what is allowed."""

    def book(self) -> dict[str, Any]:
        """The price book with the mistake in it."""
        made = copy.deepcopy(BOOK)
        *parts, last = (int(part) if part.isdigit() else part for part in re.findall(r"\w+", self.field))
        place: Any = made
        for part in parts:
            place = place[part]
        if isinstance(place, dict):
            place.update({last: self.value})
        else:
            place[last] = self.value
        return made


MISTAKES = [
    Mistake("overlapping tiers", f"{CHARGE}.model.tiers[1].up_to", "10.0", "overlapping_tiers", "tiers ascend"),
    Mistake("descending tiers", f"{CHARGE}.model.tiers[1].up_to", "5", "overlapping_tiers", "tiers ascend"),
    Mistake("a gap above the last tier", f"{CHARGE}.model.tiers[2].up_to", "30", "gap_in_tiers", "leave the last"),
    Mistake("a negative price", UNIT, "-0.5", "out_of_range", "allowed is 0 or more"),
    Mistake("a negative minimum", f"{CHARGE}.minimum", "-1", "out_of_range", "allowed is 0 or more"),
    Mistake("a negative commitment", "plans[0].minimum_commitment", "-1", "out_of_range", "allowed is 0 or more"),
    Mistake("a discount of 300 %", f"{CHARGE}.discount_percent", "300", "out_of_range", "allowed is 0 to 100"),
    Mistake("a coupon of 300 %", "coupons[0].percent", "300", "out_of_range", "allowed is above 0 up to 100"),
    Mistake("an unknown currency", "plans[0].currency", "XXQ", "unknown_currency", "ISO 4217"),
    Mistake("a coupon in an unknown currency", "coupons[0]", DOLLARS_OFF, "unknown_currency", "ISO 4217"),
    Mistake("an unknown meter", f"{CHARGE}.meter", "cals", "unknown_meter", "known: calls"),
    Mistake("a condition that is none", "meters[0].condition", "n >", "invalid_expression", "no CEL expression"),
    Mistake("two ways to the value", "meters[0].expression", "1 + 1", "unexpected", "is taken already"),
    Mistake("a percentile of a sum", "meters[0].percent", "95", "unexpected", "allowed only with"),
    Mistake("a window of a sum", "meters[0].window", "day", "unexpected", "allowed with max, min"),
    Mistake("a zone that is none", "meters[0].zone", "Europe/Berlln", "unknown_timezone", "such as Europe/Berlin"),
    Mistake("an interval of nothing", "plans[0].interval", "P0M", "invalid_interval", "ISO 8601 duration such as"),
    Mistake("a calendar of months and days", "plans[0].interval", "P1M3D", "invalid_interval", "allows one of them"),
    Mistake("NaN", UNIT, "NaN", "not_finite", "a finite number is needed"),
    Mistake("infinity", UNIT, "-Infinity", "not_finite", "a finite number is needed"),
    Mistake("1e400", UNIT, "1e400", "invalid_decimal", "plain decimal such as"),
    Mistake("a price of 40 digits", UNIT, FORTY_DIGITS, "invalid_decimal", "26 digits before and 12 after"),
    Mistake("a bound of 40 digits", f"{CHARGE}.model.tiers[1].up_to", FORTY_DIGITS, "invalid_decimal", "26 digits"),
    Mistake("a commitment of NaN", "plans[0].minimum_commitment", "NaN", "not_finite", "a finite number is needed"),
]  # fmt: skip
"""Every mistake, with the code of the first refusal that it meets."""
