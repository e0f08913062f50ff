"""Grants: quantities that cover usage before it is billed, burnt down over a usage period.

    usage     ─────20────────50──────────120─────
    grant 1   [100 ......... 80 .... 30 .. 0)          priority, then what expires first
    grant 2        [100 ................... 60 ....)   expires, is voided, recurs, rolls over at a reset

What no grant covers is overage. A change at an instant comes before usage at that instant (SEMANTICS 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from billing.credit import FIRST, NEVER
from billing.money import EXACT
from billing.period import Cadence, Period, full_period, periods

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A quantity that covers usage while it lasts."""

    id: str
    """Unique for the customer."""
    amount: Decimal
    """What it covers, and what a recurrence refills it to."""
    effective_at: datetime
    """From when it covers usage (UTC)."""
    expires_at: datetime | None = None
    """Until when, exclusive (UTC); null for no end."""
    voided_at: datetime | None = None
    """When it was taken back (UTC)."""
    deleted_at: datetime | None = None
    """When it was deleted (UTC)."""
    priority: int = 1
    """Lower numbers burn first."""
    created_at: datetime = FIRST
    """Breaks the tie after priority and expiry."""
    recurrence: Cadence | None = None
    """When it is refilled; null for never."""
    rollover_min: Decimal = ZERO
    """Least balance after a reset."""
    rollover_max: Decimal = ZERO
    """Most that a reset leaves of the balance."""


@dataclass(frozen=True, slots=True)
class Burn:
    """The state after a run over time."""

    balances: Mapping[str, Decimal]
    """Per grant; zero for one that does not hold."""
    overage: Decimal
    """Usage that no grant covered, since the last reset."""
    usage: Decimal
    """All usage since the last reset."""


def effective_period(grant: Grant) -> Period:
    """From when to when a grant holds: to the first of expiry, voiding and deletion."""
    ends = [each for each in (grant.expires_at, grant.voided_at, grant.deleted_at) if each is not None]
    return Period(grant.effective_at, max(min(ends, default=NEVER), grant.effective_at))


def is_active(grant: Grant, at: datetime) -> bool:
    """Whether a grant covers usage at an instant; not any more at the instant of its end."""
    return at in effective_period(grant)


def burn_order(grants: Iterable[Grant]) -> list[Grant]:
    """The order in which grants burn: priority, expiry, creation, id."""
    return sorted(grants, key=lambda each: (each.priority, each.expires_at or NEVER, each.created_at, each.id))


def burn_down(
    grants: Sequence[Grant],
    usage: Iterable[tuple[datetime, Decimal]],
    period: Period,
    *,
    starting: Mapping[str, Decimal] | None = None,
    resets: Iterable[datetime] = (),
    preserve_overage: bool = False,
) -> Burn:
    """Balances and overage at the end of `period`, with everything that changes at that instant applied.

    `starting` are known balances at its start, by grant; a grant that holds and has none is full. Overage is taken
    from what becomes available later in the same usage period; a reset forgets it unless it is preserved.
    """
    reset_at = set(resets)
    balances = {each.id: ZERO for each in grants}
    for grant in grants:
        if is_active(grant, period.start):
            balances[grant.id] = (starting or {}).get(grant.id, grant.amount)
    overage = used = ZERO
    spent = sorted((at, quantity) for at, quantity in usage if at in period)
    for at in _instants(grants, spent, reset_at, period):
        if at in reset_at:
            used = ZERO
            overage = overage if preserve_overage else ZERO
        _change(grants, balances, at, reset=at in reset_at, begins=at > period.start, starting=starting or {})
        overage = _cover(grants, balances, at, overage)
        for _, quantity in (each for each in spent if each[0] == at and at < period.end):
            used = EXACT.add(used, quantity)
            overage = _cover(grants, balances, at, EXACT.add(overage, quantity))
    return Burn(balances, overage, used)


def _instants(
    grants: Sequence[Grant], spent: Sequence[tuple[datetime, Decimal]], resets: set[datetime], period: Period
) -> list[datetime]:
    """Every instant of `period`, its end included, at which something happens."""
    found = {at for at, _ in spent} | resets
    for grant in grants:
        holds = effective_period(grant)
        found |= {holds.start, holds.end, *_refills(grant, Period(period.start, period.end))}
    return sorted(each for each in found if period.start <= each <= period.end)


def _refills(grant: Grant, period: Period) -> Iterator[datetime]:
    """The instants at which a grant recurs within `period`, its end included."""
    if grant.recurrence is None:
        return
    for each in periods(grant.recurrence, period.start, period.end + timedelta(microseconds=1)):
        if full_period(grant.recurrence, each.start).start == each.start:
            yield each.start


def _change(
    grants: Sequence[Grant],
    balances: dict[str, Decimal],
    at: datetime,
    *,
    reset: bool,
    begins: bool,
    starting: Mapping[str, Decimal],
) -> None:
    """What begins, ends, is refilled or rolls over at an instant; a refill wins over a rollover."""
    for grant in grants:
        if not is_active(grant, at):
            balances[grant.id] = ZERO
        elif (begins and grant.effective_at == at) or (begins and at in _refills(grant, Period(at, at))):
            balances[grant.id] = grant.amount
        elif reset:
            balances[grant.id] = min(grant.rollover_max, max(balances[grant.id], grant.rollover_min))


def _cover(grants: Sequence[Grant], balances: dict[str, Decimal], at: datetime, quantity: Decimal) -> Decimal:
    """What is left of `quantity` after the grants that hold have burnt."""
    for grant in burn_order(each for each in grants if is_active(each, at)):
        part = min(balances[grant.id], quantity)
        balances[grant.id] = EXACT.subtract(balances[grant.id], part)
        quantity = EXACT.subtract(quantity, part)
    return quantity
