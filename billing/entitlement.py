"""Entitlements: what a customer may use, and how much of it.

`boolean` features are on or off; `metered` ones compare the usage of the current billing period with a limit.
A hard limit answers no when it is reached; a soft one answers yes and says that it is exceeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class EntitlementKind(StrEnum):
    """How a feature is limited."""

    BOOLEAN = "boolean"
    METERED = "metered"


class WhenUnknown(StrEnum):
    """What is answered while nobody can tell."""

    CLOSED = "closed"
    OPEN = "open"


class LimitKind(StrEnum):
    """What happens at the limit."""

    HARD = "hard"
    SOFT = "soft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """A feature that a plan grants."""

    feature: str
    """Key of the feature."""
    kind: EntitlementKind = EntitlementKind.BOOLEAN
    """Boolean, or metered."""
    meter: str | None = None
    """Meter whose usage counts toward the limit; null for a boolean feature."""
    limit: Decimal | None = None
    """Quantity granted per billing period; null for a boolean feature."""
    limit_kind: LimitKind = LimitKind.HARD
    """Whether the limit stops usage or only reports it."""
    when_unknown: WhenUnknown = WhenUnknown.CLOSED
    """While neither cache nor database answers: refuse, or allow whom the feature was granted."""


@dataclass(frozen=True, slots=True)
class Access:
    """The answer to: may this customer use the feature now?"""

    allowed: bool
    reason: str
    """`granted`, `within_limit`, `limit_exceeded`, `not_granted` or `unknown`."""
    used: Decimal | None = None
    limit: Decimal | None = None
    remaining: Decimal | None = None


NOT_GRANTED = Access(False, "not_granted")


def unverified(policy: WhenUnknown | None) -> Access:
    """The answer while nobody can tell; without a `policy` no grant is known, and nothing is allowed."""
    return Access(policy is WhenUnknown.OPEN, "unknown")


def access(entitlement: Entitlement, used: Decimal) -> Access:
    """Whether one more unit may be used when `used` units of the period are gone."""
    if entitlement.kind is EntitlementKind.BOOLEAN:
        return Access(True, "granted")
    assert entitlement.limit is not None
    remaining = max(entitlement.limit - used, Decimal(0))
    if used < entitlement.limit:
        return Access(True, "within_limit", used, entitlement.limit, remaining)
    return Access(entitlement.limit_kind is LimitKind.SOFT, "limit_exceeded", used, entitlement.limit, remaining)
