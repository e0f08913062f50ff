"""The one table of the peers' house rules: under which of Tallybook's options a case runs, and which rules are refused.

A case without `policy` runs under no table. One with a policy runs under the options of its peer, unless one of the
rules that its policy names is refused below: by rule, never by case, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.discount import CouponOrder
from billing.proration import ProrationUnit
from billing.tax import TaxRounding

Given = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Options that a company moving over from this peer chooses to keep its amounts."""

    name: str
    """As the tables of the cases write it."""
    proration: ProrationUnit = ProrationUnit.DAY
    """What partial periods are measured in; cases that name their method use that."""
    fraction_decimals: int = 12
    """To how many decimals a share of a period is rounded before it is multiplied."""
    coupon_order: CouponOrder = CouponOrder.STANDARD
    """Whether percentages apply before fixed amounts, or coupons as they come."""
    tax_rounding: TaxRounding = TaxRounding.PER_RATE
    """Whether tax is rounded once per rate or on each line."""


PEERS = {
    "lago": Peer(name="Lago", coupon_order=CouponOrder.OLDEST_FIRST),
    "om": Peer(name="OpenMeter"),
    "kb": Peer(name="Kill Bill", fraction_decimals=9),
    "fp": Peer(name="flexprice"),
    "met": Peer(name="meteroid", tax_rounding=TaxRounding.PER_LINE),
    "xl": Peer(name="Ledger"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule of a peer that Tallybook does not offer."""

    applies: Callable[[Given, str], bool]
    """Whether a case's amounts depend on it: by what is given, and by the words of its policy in small letters."""
    reason: str
    """Why it is no option."""


REFUSED: tuple[Refusal, ...] = (
    Refusal(
        lambda given, policy: "discount" in policy and "fraction" in policy,
        "a discount is money: it is rounded once and allocated over its lines by largest remainder (SEMANTICS 4)",
    ),
    Refusal(
        lambda given, policy: given.get("interval") == "year" and _starts_before_anchor(given),
        "no period is longer than its interval: a start before the anchor is billed up to the anchor",
    ),
    Refusal(
        lambda given, policy: given.get("model") == "dynamic" and _is_zero(given, "quantity") and "yields 0" in policy,
        "the events carry the price, and what they carry is billed",
    ),
    Refusal(
        lambda given, policy: (
            str(given.get("model")).startswith("percentage")
            and _is_zero(given, "quantity", *(given.get("events") or ()))
            and bool(re.search(r"\b(no|without|not owe|never)\b[^;]*\bfee", policy))
        ),
        "a fee per transaction is owed for every transaction that is not free, whatever its amount",
    ),
    Refusal(
        lambda given, policy: given.get("model") == "volume" and given.get("line") in ("mid_period", "first_in_period"),
        "a partial invoice bills the whole period so far less what was billed (SEMANTICS 20)",
    ),
)


def peer_of(case: Given) -> Peer:
    """The peer that states the case, by the prefix of its id."""
    prefix = case["id"].partition("-")[0]
    return PEERS.get(prefix, Peer(name=prefix))


def refusal(case: Given) -> str | None:
    """Why the case's rule is not offered; None if it is. A case without a policy holds for everybody."""
    policy = (case.get("policy") or "").lower()
    if not policy:
        return None
    return next((each.reason for each in REFUSED if each.applies(case["given"], policy)), None)


def _starts_before_anchor(given: Given) -> bool:
    start, anchor = str(given.get("current_period_start", "")), str(given.get("anchor", ""))
    return start[4:] < anchor[4:] and given.get("alignment") == "anchor"


def _is_zero(given: Given, name: str, *amounts: str) -> bool:
    named = given.get(name)
    return not any(Decimal(each) for each in amounts) and (named is None or not Decimal(named))
