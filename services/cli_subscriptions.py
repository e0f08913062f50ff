"""`tallybook subscriptions`: customers on plans, and moving them to other plans and versions."""

from __future__ import annotations

from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from pydantic import TypeAdapter

from billing.errors import Rejected
from billing.ids import SubscriptionId
from billing.plan_change import (
    AddAddOn,
    ChangeBillingAnchor,
    ChangeBillingZone,
    ChangePlan,
    MigrateSubscription,
    RemoveAddOn,
)
from services import cli_asking, cli_clock, cli_world, read_models
from services.cli_asking import AsJson, DryRun, Tenant
from services.read_rows import SubscriptionRow, WaitingChange

Subscription = Annotated[str, typer.Argument(metavar="ID", help="Id of the subscription.")]
AddOnKey = Annotated[str, typer.Argument(metavar="ADD_ON", help="Key of the add-on.")]
Now = Annotated[bool, typer.Option("--now", help="At once, and not at the end of the current period.")]
_ALL = 1_000_000


def register(app: typer.Typer) -> None:
    """Add `subscriptions`."""
    group = typer.Typer(help="Customers on plans.", no_args_is_help=True)
    app.add_typer(group, name="subscriptions")
    group.command("list")(listed)
    group.command()(change)
    group.command()(migrate)
    group.command()(add)
    group.command()(remove)
    group.command()(anchor)
    group.command()(zone)


def listed(
    tenant: Tenant = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only those of this customer.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = _ALL,
    as_json: AsJson = False,
) -> None:
    """Subscriptions by id, with what waits to change."""
    with cli_world.reading(cli_world.settings()) as tx:
        name = cli_world.the_tenant(tx, tenant)
        rows = read_models.subscriptions(tx, name, customer_id=customer, limit=limit)
    if as_json:
        typer.echo(TypeAdapter(list[SubscriptionRow]).dump_json(rows).decode())
        return
    header = ("subscription", "customer", "plan", "price book", "status", "changes")
    cells = [(row.id, row.customer, row.plan, str(row.price_book_version), row.status, _waiting(row)) for row in rows]
    typer.echo(cli_world.table(header, cells, right=("price book",)))


def change(
    subscription: Subscription,
    plan: Annotated[str, typer.Option("--plan", help="Key of the new plan.")],
    now: Now = False,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put a subscription on another plan, by default when its current period ends. Exit code 1 if it is refused."""
    command = ChangePlan(subscription_id=SubscriptionId(subscription), plan=plan, at_period_end=not now)
    _ask(command, tenant, f"change {subscription} to plan {plan}", dry_run, as_json)


def migrate(
    subscription: Subscription,
    now: Now = False,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Put a subscription on the newest version of its plan, by default when its current period ends."""
    command = MigrateSubscription(subscription_id=SubscriptionId(subscription), at_period_end=not now)
    _ask(command, tenant, f"migrate {subscription} to the newest version of its plan", dry_run, as_json)


def add(
    subscription: Subscription,
    add_on: AddOnKey,
    quantity: Annotated[int, typer.Option("--quantity", help="How many there are from then on.")] = 1,
    at_period_end: Annotated[bool, typer.Option("--at-period-end", help="With its next period, not now.")] = False,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Include an add-on now, its fees prorated, or from the next period on. Exit code 1 if it is refused."""
    command = AddAddOn(
        subscription_id=SubscriptionId(subscription), add_on=add_on, quantity=quantity, at_period_end=at_period_end
    )
    _ask(command, tenant, f"add {quantity} x {add_on} to {subscription}", dry_run, as_json)


def remove(
    subscription: Subscription,
    add_on: AddOnKey,
    now: Now = False,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take an add-on off, by default when the current period ends; now, the unused part of its fees is credited."""
    command = RemoveAddOn(subscription_id=SubscriptionId(subscription), add_on=add_on, at_period_end=not now)
    _ask(command, tenant, f"remove {add_on} from {subscription}", dry_run, as_json)


def anchor(
    subscription: Subscription,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="When a period begins, or would have begun: 2026-03-15, or with a time and an offset."
        ),
    ] = None,
    now: Now = False,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have periods begin at other times; what lies before the first of them is prorated. Exit code 1 if refused."""
    known = _known(tenant, subscription)
    at = cli_clock.instant(to, known.zone) if to is not None else None
    command = ChangeBillingAnchor(subscription_id=SubscriptionId(subscription), anchor=at, at_period_end=not now)
    _ask(command, tenant, f"have periods of {subscription} begin {to or 'then'}", dry_run, as_json)


def zone(
    subscription: Subscription,
    name: Annotated[str, typer.Argument(metavar="ZONE", help="IANA zone, such as Asia/Tokyo.")],
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have boundaries be local times of another zone; the current period ends by it. Exit code 1 if refused."""
    command = ChangeBillingZone(subscription_id=SubscriptionId(subscription), zone=name)
    _ask(command, tenant, f"bill {subscription} in {name}", dry_run, as_json)


def _known(tenant: str | None, subscription: str) -> SubscriptionRow:
    missing = Rejected("unknown_subscription", f"there is no subscription {subscription!r}")
    return cli_asking.known(tenant, lambda tx, name: read_models.subscription(tx, name, subscription), missing)


def _ask(command: Any, tenant: str | None, wish: str, dry_run: bool, as_json: bool) -> None:
    subscription = command.subscription_id
    if dry_run:
        known = _known(tenant, subscription)
        when = "at the end of its period" if getattr(command, "at_period_end", False) else "now"
        typer.echo(f"would {wish} {when}")
        typer.echo(f"it is on {known.plan}, price book {known.price_book_version}; nothing changed")
        return
    row = cli_asking.changed(
        command, tenant, "subscription", lambda tx, name: read_models.subscription(tx, name, subscription)
    )
    if as_json:
        typer.echo(TypeAdapter(SubscriptionRow).dump_json(row).decode())
        return
    waiting = _waiting(row)
    added = "".join(f", {quantity} x {key}" for key, quantity in row.add_ons.items())
    typer.echo(f"{row.id}: {row.plan}, price book {row.price_book_version}{added}{f'; {waiting}' if waiting else ''}")


def _waiting(row: SubscriptionRow) -> str:
    zone = ZoneInfo(row.zone)
    return ", ".join(f"{_what(each)} from {each.effective_at.astimezone(zone):%Y-%m-%d %H:%M}" for each in row.changes)


def _what(change: WaitingChange) -> str:
    if change.add_on is not None:
        return f"{change.quantity} x {change.add_on}" if change.quantity else f"no {change.add_on}"
    return f"{change.plan}, price book {change.price_book_version}"
