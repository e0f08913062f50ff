"""The one table of the peers' house rules: under which of Tallybook's options a case runs, and which rules are refused.

A case without `policy` runs under no table. One with a policy runs under the options of its peer, unless one of the
rules that its policy names is refused below: by rule, never by case, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from billing.discount import CouponOrder
from billing.proration import ProrationUnit
from billing.tax import TaxRounding


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

REFUSED: tuple[tuple[str, str], ...] = (
    (
        "line discounts keep fractions of a cent",
        "a discount is money: it is rounded once and allocated over its lines by largest remainder (SEMANTICS 4)",
    ),
    (
        "so a start before the anchor gets a first period longer than a year",
        "no period is longer than its interval: a start before the anchor is billed up to the anchor",
    ),
    (
        "with zero aggregated units a dynamic charge yields 0",
        "the events carry the price, and what they carry is billed",
    ),
    (
        "zero aggregated amount -> no per-event fixed fee",
        "a fee per transaction is owed for every transaction that is not free, whatever its amount",
    ),
    (
        "volume tiers are only billed on the last line of the period",
        "a partial invoice bills the whole period so far less what was billed (SEMANTICS 20)",
    ),
)


def peer_of(case: dict[str, Any]) -> Peer:
    """The peer that states the case, by the prefix of its id."""
    return PEERS[case["id"].partition("-")[0]]


def refusal(case: dict[str, Any]) -> str | None:
    """Why the case's rule is not offered; None if it is."""
    policy = case.get("policy") or ""
    return next((reason for rule, reason in REFUSED if rule in policy), None)
