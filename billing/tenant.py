"""A tenant: a seller on this system, with its money, zone, clock and policies.

    (absent) --RegisterTenant--> Registered --ChangeTenantSettings / AdvanceClock / SpreadUsage--> Registered

A tenant has the real clock or, if registered with `test_clock`, one that moves only by command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from billing.discount import CouponOrder
from billing.errors import CorruptHistory, Rejected
from billing.money import exponent
from billing.placing import PARTITIONS_MAX, Spread
from billing.tax import Jurisdiction, TaxRate, TaxRounding, check_taxes

SPAN_MAX = {"days": 3_660, "minutes": 5_270_400}  # ten years: longer is a mistake, and much longer no date
SPREAD_MARGIN = timedelta(hours=1)  # for the publisher of control records and the producers to learn of a new spread


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
    coupon_order: CouponOrder = CouponOrder.STANDARD
    """Whether percentages come before fixed amounts, or coupons apply as they were given; scoped ones come first."""
    tax_rounding: TaxRounding = TaxRounding.PER_RATE
    """Whether tax is rounded once per rate, or on each line."""


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
    """Tax rates of customers whose jurisdiction is not named below, exclusive or inclusive."""
    bounds: UsageBounds = UsageBounds()
    """Which event times are accepted."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""
    test_clock: datetime | None = None
    """Start of the tenant's test clock; null for the real clock."""
    jurisdictions: tuple[Jurisdiction, ...] = ()
    """Tax rates of customers who are taxed elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTenantSettings:
    """Have a seller bill with other taxes and policies from now on; what is fixed for an invoice stays."""

    taxes: tuple[TaxRate, ...] = ()
    """Tax rates of customers whose jurisdiction is not named below."""
    jurisdictions: tuple[Jurisdiction, ...] = ()
    """Tax rates of customers who are taxed elsewhere."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvanceClock:
    """Move the tenant's test clock forward."""

    to: datetime
    """The new present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadUsage:
    """Have a seller's usage lie in more partitions of the usage log, or in fewer, from some event time on."""

    partitions: int
    """How many; 1: as without a spread."""
    effective_from: datetime | None = None
    """First event time that is spread so; null: the earliest that no event can have been placed at yet."""


Command = RegisterTenant | ChangeTenantSettings | AdvanceClock


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
    """Tax rates of customers whose jurisdiction is not named below."""
    bounds: UsageBounds = UsageBounds()
    """Which event times are accepted."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""
    test_clock: datetime | None = None
    """Start of the tenant's test clock; null for the real clock."""
    jurisdictions: tuple[Jurisdiction, ...] = ()
    """Tax rates of customers who are taxed elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettingsChanged:
    """A seller bills with other taxes and policies from now on."""

    taxes: tuple[TaxRate, ...] = ()
    """Tax rates of customers whose jurisdiction is not named below."""
    jurisdictions: tuple[Jurisdiction, ...] = ()
    """Tax rates of customers who are taxed elsewhere."""
    policies: Policies = Policies()
    """How the tenant bills and collects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAdvanced:
    """The tenant's test clock moved forward."""

    to: datetime
    """The new present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSpreadSet:
    """A seller's usage lies in so many partitions from some event time on."""

    partitions: int
    """Of the usage log: the tenant's own and those that follow it."""
    effective_from: datetime
    """First event time (UTC) that is spread so; later than that of every earlier spread."""


Event = TenantRegistered | TenantSettingsChanged | ClockAdvanced | UsageSpreadSet


@dataclass(frozen=True, slots=True)
class Absent:
    """Not registered."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A seller at work."""

    settings: TenantRegistered
    """As they are now."""
    clock: datetime | None
    """Present of the test clock; None means the real clock."""
    spread: tuple[Spread, ...] = ()
    """Over how many partitions usage is spread, in order of time."""

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
        case Registered(settings=settings), RegisterTenant() as c if _changed(settings, _registered(c)) == _registered(
            c
        ):
            raise Rejected(
                "tenant_settings_differ", "the tenant bills with other taxes or policies; they can be changed"
            )
        case Registered(), RegisterTenant():
            raise Rejected(
                "tenant_exists", "the tenant is registered with another name, currency, zone, clock or bounds"
            )
        case Registered(settings=settings), ChangeTenantSettings() as c:
            _check_settings(c)
            return [] if _changed(settings, c) == settings else [_settings_changed(c)]
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


def spread_usage(state: Registered, command: SpreadUsage, now: datetime) -> Sequence[UsageSpreadSet]:
    """The fact that follows from `command`; none if usage is spread so already.

    No event that was accepted by `now` can have a time from `effective_from` on: nothing that lies on the log changes
    its place.

    Raises:
        Rejected: too many partitions, or so early that events may have been placed already.
    """
    if not 1 <= command.partitions <= PARTITIONS_MAX:
        said = f"{command.partitions}: allowed are 1 to {PARTITIONS_MAX}"
        raise Rejected("out_of_range", said, field="partitions")
    last = state.spread[-1] if state.spread else None
    asked = None if command.effective_from is None else command.effective_from.astimezone(UTC)
    if command.partitions == (last.partitions if last else 1) and asked in (None, last and last.effective_from):
        return []
    earliest = now + timedelta(minutes=state.settings.bounds.ahead_minutes) + SPREAD_MARGIN
    if last is not None:
        earliest = max(earliest, last.effective_from + timedelta(microseconds=1))
    if asked is not None and asked < earliest:
        detail = f"events up to {earliest.isoformat()} may have their place already; allowed is that time or later"
        raise Rejected("too_early", detail, field="effective_from")
    return [UsageSpreadSet(partitions=command.partitions, effective_from=asked or earliest)]


def evolve(state: State, event: Event) -> State:
    """The state after `event`. Total over recorded histories; decides nothing."""
    match state, event:
        case Absent(), TenantRegistered():
            return Registered(event, event.test_clock)
        case Registered(settings=settings) as s, TenantSettingsChanged():
            return replace(s, settings=_changed(settings, event))
        case Registered() as s, ClockAdvanced(to=to):
            return replace(s, clock=to)
        case Registered(spread=known) as s, UsageSpreadSet() as e:
            return replace(s, spread=(*known, Spread(effective_from=e.effective_from, partitions=e.partitions)))
        case _:
            raise CorruptHistory(f"{type(event).__name__} after {type(state).__name__}")


def _registered(c: RegisterTenant) -> TenantRegistered:
    exponent(c.currency)
    zone(c.zone, "zone")
    if not c.name:
        raise Rejected("missing", "a seller needs the name that stands on invoices", field="name")
    _check_settings(c)
    _check_span("bounds.oldest_days", c.bounds.oldest_days)
    _check_span("bounds.ahead_minutes", c.bounds.ahead_minutes)
    return TenantRegistered(
        name=c.name,
        currency=c.currency,
        zone=c.zone,
        taxes=c.taxes,
        bounds=c.bounds,
        policies=c.policies,
        test_clock=c.test_clock.astimezone(UTC) if c.test_clock else None,
        jurisdictions=c.jurisdictions,
    )


def _check_settings(c: RegisterTenant | ChangeTenantSettings) -> None:
    check_taxes(c.taxes, c.jurisdictions)
    for index, days in enumerate(c.policies.retry_days):
        if not 0 < days <= 60:
            raise Rejected("out_of_range", f"{days}: allowed are 1 to 60 days", field=f"policies.retry_days[{index}]")
    _check_span("policies.invoice_grace_minutes", c.policies.invoice_grace_minutes)
    _check_span("policies.payment_terms_days", c.policies.payment_terms_days)


def _check_span(name: str, value: int) -> None:
    allowed = SPAN_MAX[name.rpartition("_")[2]]
    if not 0 <= value <= allowed:
        raise Rejected("out_of_range", f"{value}: allowed are 0 to {allowed}", field=name)


def _settings_changed(c: ChangeTenantSettings) -> TenantSettingsChanged:
    return TenantSettingsChanged(taxes=c.taxes, jurisdictions=c.jurisdictions, policies=c.policies)


def _changed(
    settings: TenantRegistered, by: ChangeTenantSettings | TenantSettingsChanged | TenantRegistered
) -> TenantRegistered:
    """`settings` with the taxes and policies of `by`."""
    return replace(settings, taxes=by.taxes, jurisdictions=by.jurisdictions, policies=by.policies)


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
