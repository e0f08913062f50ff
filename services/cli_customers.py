"""`tallybook customers`: who pays, with which coupons and credit, and where they are taxed."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from billing.credit import CreditKind
from billing.customer import RedeemCoupon, SetJurisdiction
from billing.errors import Rejected
from billing.ids import CustomerId
from billing.money import Money
from billing.prepaid import BALANCE_PRIORITY, ExpireCredit, GrantCredit
from infra.postgres import Cursor
from services import cli_asking, cli_world, read_models
from services.cli_asking import AsJson, DryRun, Tenant
from services.cli_clock import instant
from services.read_rows import CustomerRow

Customer = Annotated[str, typer.Argument(metavar="ID", help="Id of the customer.")]
Grant = Annotated[str, typer.Option("--as", help="Id of the grant, unique for the customer.")]
_ALL = 1_000_000


def register(app: typer.Typer) -> None:
    """Add `customers`."""
    group = typer.Typer(help="Who pays, with which coupons and credit.", no_args_is_help=True)
    app.add_typer(group, name="customers")
    group.command("list")(listed)
    group.command()(redeem)
    group.command()(jurisdiction)
    group.command()(grant)
    group.command()(expire)


def listed(
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = _ALL,
    as_json: AsJson = False,
) -> None:
    """Customers by id."""
    with cli_world.reading(cli_world.settings()) as tx:
        rows = read_models.customers(tx, cli_world.the_tenant(tx, tenant), limit=limit)
    if as_json:
        typer.echo(TypeAdapter(list[CustomerRow]).dump_json(rows).decode())
        return
    header = ("customer", "name", "taxed in", "coupons", "credit")
    cells = [
        (row.id, row.name, row.jurisdiction, ", ".join(each.code for each in row.coupons), _credit(row)) for row in rows
    ]
    typer.echo(cli_world.table(header, cells))


def redeem(
    customer: Customer,
    coupon: Annotated[str, typer.Argument(metavar="COUPON", help="Code of a coupon in the price book in force.")],
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give a customer the discount of a coupon. Exit code 1 if it is refused."""
    command = RedeemCoupon(customer_id=CustomerId(customer), coupon=coupon)
    _ask(command, tenant, f"redeem {coupon} for {customer}", dry_run, as_json)


def jurisdiction(
    customer: Customer,
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as US-NY; '' for the tenant's own rates.")],
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have a customer be taxed elsewhere, on invoices that are fixed from now on."""
    command = SetJurisdiction(customer_id=CustomerId(customer), jurisdiction=code)
    _ask(command, tenant, f"tax {customer} in {code or 'no jurisdiction of its own'}", dry_run, as_json)


def grant(
    customer: Customer,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In major units, such as 20.00.")],
    currency: Annotated[str, typer.Argument(metavar="CURRENCY", help="ISO 4217 code.")],
    grant_id: Grant,
    priority: Annotated[int, typer.Option("--priority", help="Lower numbers are spent first.")] = BALANCE_PRIORITY,
    purchased: Annotated[bool, typer.Option("--purchased", help="Paid for outside; spent after gifts.")] = False,
    until: Annotated[str | None, typer.Option("--until", help="Local time from which it is spent no more.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="For people.")] = "",
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Grant credit: it pays invoices by priority, then by what expires first. Exit code 1 if it is refused."""
    with cli_world.reading(cli_world.settings()) as tx:
        known = read_models.tenant(tx, cli_world.the_tenant(tx, tenant))
    assert known is not None
    command = GrantCredit(
        customer_id=CustomerId(customer),
        grant_id=grant_id,
        amount=Money.exactly(_decimal(amount), currency),
        priority=priority,
        kind=CreditKind.PURCHASED if purchased else CreditKind.GRANTED,
        expires_at=instant(until, known.zone, "--until") if until is not None else None,
        reason=reason,
    )
    _ask(command, known.tenant, f"grant {command.amount} {currency} to {customer}", dry_run, as_json)


def expire(
    customer: Customer,
    grant_id: Annotated[str, typer.Argument(metavar="GRANT", help="Id of the grant.")],
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write off a grant whose time is over; by itself that happens with the customer's next invoice."""
    command = ExpireCredit(customer_id=CustomerId(customer), grant_id=grant_id)
    _ask(command, tenant, f"write off {grant_id} of {customer}", dry_run, as_json)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as e:
        raise Rejected("not_a_number", f"{text[:40]!r} is no amount such as 20.00", field="amount") from e


def _ask(command: Any, tenant: str | None, wish: str, dry_run: bool, as_json: bool) -> None:
    def read(tx: Cursor, name: str) -> CustomerRow | None:
        return read_models.customer(tx, name, command.customer_id)

    if dry_run:
        cli_asking.known(tenant, read, Rejected("unknown_customer", f"there is no customer {command.customer_id!r}"))
        typer.echo(f"would {wish}; nothing changed")
        return
    row = cli_asking.changed(command, tenant, "customer", read)
    if as_json:
        typer.echo(TypeAdapter(CustomerRow).dump_json(row).decode())
        return
    coupons = ", ".join(each.code for each in row.coupons) or "no coupons"
    place = row.jurisdiction or "the tenant's rates"
    typer.echo(f"{row.id}: {coupons}; credit {_credit(row) or 'none'}; taxed by {place}")


def _credit(row: CustomerRow) -> str:
    return ", ".join(f"{each.decimal} {each.currency}" for each in row.credit)
