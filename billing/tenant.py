"""A tenant: a seller on this system, with its money, zone, clock and policies.

    (absent) --RegisterTenant--> Registered --AdvanceClock--> Registered

A tenant has the real clock or, if registered with `test_clock`, one that moves only by command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from billing.errors import CorruptHistory, Rejected
from billing.money import exponent
from billing.tax import TaxRate, check_rate

SPAN_MAX = {"days": 3_660, "minutes": 5_270_400}  # ten years: longer is a mistake, and much longer no date


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBounds:
    """Which event times the tenant accepts, measured from the append to the log (or the test clock)."""

    oldest_days: int = 34
    """An event older than this many days is rejected."""
    ahead_minutes: int = 1440
    """An event further ahead than this many minutes is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """How the tenant bills and collects."""

    invoice_grace_minutes: int = 0
    """How long after a period's end usage is still awaited before the period is closed."""
    payment_terms_days: int = 0
    """Days from issue until an invoice is due."""
    retry_days: tuple[int, ...] = (1, 3, 5, 7)
    """Days from each soft decline until the next attempt; when used up, dunning is exhausted."""
    number_prefix: str = ""
    """Stands before the number of every invoice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterTenant:
    """Register a seller."""

    name: str
    """Legal name of the seller, shown on invoices."""
    currency: str
    """ISO 4217 code of the books."""
    zone: str
    """IANA time zone in which billing boundaries are local midnights."""
    taxes: tuple[TaxRate, ...] = ()
    """Tax rates charged on everything, exclusive or inclusive."""
    bounds: UsageBounds = UsageBounds()
    """Which event times are accepted."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""
    test_clock: datetime | None = None
    """Start of the tenant's test clock; null for the real clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvanceClock:
    """Move the tenant's test clock forward."""

    to: datetime
    """The new present."""


Command = RegisterTenant | AdvanceClock


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRegistered:
    """A seller was registered."""

    name: str
    """Legal name of the seller, shown on invoices."""
    currency: str
    """ISO 4217 code of the books."""
    zone: str
    """IANA time zone in which billing boundaries are local midnights."""
    taxes: tuple[TaxRate, ...] = ()
    """Tax rates charged on everything."""
    bounds: UsageBounds = UsageBounds()
    """Which event times are accepted."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""
    test_clock: datetime | None = None
    """Start of the tenant's test clock; null for the real clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAdvanced:
    """The tenant's test clock moved forward."""

    to: datetime
    """The new present."""


Event = TenantRegistered | ClockAdvanced


@dataclass(frozen=True, slots=True)
class Absent:
    """Not registered."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A seller at work."""

    settings: TenantRegistered
    clock: datetime | None
    """Present of the test clock; None means the real clock."""

    def now(self, wall: datetime) -> datetime:
        """The tenant's present: its test clock if it has one, else `wall`."""
        return self.clock if self.clock is not None else wall


State = Absent | Registered
initial = Absent()


def decide(state: State, command: Command) -> Sequence[Event]:
    """The facts that follow from `command` in `state`; none if it changes nothing.

    Raises:
        Rejected: the command is not allowed in this state.
    """
    match state, command:
        case Absent(), RegisterTenant() as c:
            return [_registered(c)]
        case Registered(settings=settings), RegisterTenant() as c if _registered(c) == settings:
            return []
        case Registered(), RegisterTenant():
            raise Rejected("tenant_exists", "the tenant is registered with other settings")
        case Registered(clock=None), AdvanceClock():
            raise Rejected("no_test_clock", "the tenant runs on the real clock; only a test clock can be advanced")
        case Registered(clock=now), AdvanceClock(to=to) if to == now:
            return []
        case Registered(clock=datetime() as now), AdvanceClock(to=to) if to > now:
            return [ClockAdvanced(to=to)]
        case Registered(clock=now), AdvanceClock():
            raise Rejected("clock_backwards", f"the test clock stands at {now} and moves forward only", field="to")
        case _:
            raise Rejected("unknown_tenant", f"{type(command).__name__} needs a registered tenant")


def evolve(state: State, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case Absent(), TenantRegistered():
            return Registered(event, event.test_clock)
        case Registered() as s, ClockAdvanced(to=to):
            return replace(s, clock=to)
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def _registered(c: RegisterTenant) -> TenantRegistered:
    exponent(c.currency)
    zone(c.zone, "zone")
    if not c.name:
        raise Rejected("missing", "a seller needs the name that stands on invoices", field="name")
    for index, rate in enumerate(c.taxes):
        check_rate(rate, f"taxes[{index}]")
    for index, days in enumerate(c.policies.retry_days):
        if not 0 < days <= 60:
            raise Rejected("out_of_range", f"{days}: allowed are 1 to 60 days", field=f"policies.retry_days[{index}]")
    for name, value in (
        ("bounds.oldest_days", c.bounds.oldest_days),
        ("bounds.ahead_minutes", c.bounds.ahead_minutes),
        ("policies.invoice_grace_minutes", c.policies.invoice_grace_minutes),
        ("policies.payment_terms_days", c.policies.payment_terms_days),
    ):
        if not 0 <= value <= SPAN_MAX[name.rpartition("_")[2]]:
            allowed = SPAN_MAX[name.rpartition("_")[2]]
            raise Rejected("out_of_range", f"{value}: allowed are 0 to {allowed}", field=name)
    return TenantRegistered(
        name=c.name,
        currency=c.currency,
        zone=c.zone,
        taxes=c.taxes,
        bounds=c.bounds,
        policies=c.policies,
        test_clock=c.test_clock.astimezone(UTC) if c.test_clock else None,
    )


def zone(name: str, field: str) -> ZoneInfo:
    """The IANA zone `name`.

    Raises:
        Rejected: there is no such zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as e:
        raise Rejected(
            "unknown_timezone", f"{name!r} is not an IANA time zone such as Europe/Berlin", field=field
        ) from e


def grace(state: Registered) -> timedelta:
    """How long after a period's end usage is still awaited."""
    return timedelta(minutes=state.settings.policies.invoice_grace_minutes)
