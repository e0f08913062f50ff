"""`tallybook invoices`: what was billed, and why it is this number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from billing.errors import Rejected
from services import cli_world, invoice_document, read_models
from services.api import invoices as as_resource
from services.read_rows import InvoiceRow

Tenant = Annotated[str | None, typer.Option("--tenant", help="Needed if there is more than one.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
_ALL = 1_000_000


def register(app: typer.Typer) -> None:
    """Add `invoices`."""
    group = typer.Typer(help="What was billed, and why.", no_args_is_help=True)
    app.add_typer(group, name="invoices")
    group.command("list")(listed)
    group.command()(show)


def listed(
    tenant: Tenant = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only those of this customer.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="open or paid.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = _ALL,
    as_json: AsJson = False,
) -> None:
    """All invoices in the order of their numbers."""
    if status not in (None, "open", "paid"):
        raise typer.BadParameter(f"{status!r} is neither open nor paid", param_hint="--status")
    with cli_world.reading(cli_world.settings()) as tx:
        name = cli_world.the_tenant(tx, tenant)
        rows = read_models.invoice_rows(tx, name, customer_id=customer, status=status, limit=limit)
    if as_json:
        typer.echo(TypeAdapter(list[InvoiceRow]).dump_json(rows).decode())
        return
    header = ("number", "customer", "period", "status", "total", "due", "currency")
    typer.echo(cli_world.table(header, [_cells(row) for row in rows], right=("total", "due")))


def _cells(row: InvoiceRow) -> tuple[str, ...]:
    period = f"{row.period_start:%Y-%m-%d} .. {row.period_end:%Y-%m-%d}"
    amounts = [invoice_document.thousands(each) for each in (row.total, row.amount_due)]
    return (row.number, row.customer, period, row.status, *amounts, row.total.currency)


def show(
    name: Annotated[str, typer.Argument(metavar="NUMBER|ID", help="Number or id of the invoice.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write it as one HTML file instead.")] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """One invoice with the arithmetic of each line."""
    with cli_world.reading(cli_world.settings()) as tx:
        issued = read_models.invoice(tx, cli_world.the_tenant(tx, tenant), name)
    if issued is None:
        raise Rejected("unknown_invoice", f"there is no invoice {name!r}; `tallybook invoices list` shows all")
    if html is not None:
        html.write_text(invoice_document.as_html(issued), encoding="utf-8")
        typer.echo(f"wrote {html}", err=as_json)
    if as_json:
        typer.echo(TypeAdapter(as_resource.InvoiceBody).dump_json(as_resource.body(issued)).decode())
    elif html is None:
        typer.echo(invoice_document.as_text(issued), nl=False)
