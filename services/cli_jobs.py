"""`tallybook jobs`: invoices and payments that wait for a person, and putting them back to work."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra import postgres
from infra.settings import Settings
from services import invoice_jobs, payment_outbox

_REFUSED = 1

Tenant = Annotated[str, typer.Option("--tenant", help="Only of this tenant.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON object per line.")]


def register(app: typer.Typer) -> None:
    """Add `jobs parked` and `jobs unpark`."""
    group = typer.Typer(help="Invoices and payments that wait for a person.", no_args_is_help=True)
    app.add_typer(group, name="jobs")

    @group.command()
    def parked(tenant: Tenant = "", as_json: AsJson = False) -> None:
        """What was set aside, and why. Nothing else waits for it. Exit code 0, also if there is something."""
        rows = find_parked(Settings.from_env(os.environ), tenant)
        if as_json:
            for row in rows:
                typer.echo(json.dumps(row))
            return
        table = Table("kind", "tenant", "invoice", "attempt", "reason", title=f"{len(rows)} parked")
        for row in rows:
            table.add_row(row["kind"], row["tenant"], row["invoice"], str(row.get("attempt", "")), row["reason"])
        Console().print(table)

    @group.command()
    def unpark(
        tenant: Annotated[str, typer.Argument(help="The tenant.")],
        invoice: Annotated[str, typer.Argument(help="The invoice.")],
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and change nothing.")] = False,
    ) -> None:
        """Try a parked invoice or payment again. It parks itself again if its reason still holds."""
        settings = Settings.from_env(os.environ)
        if dry_run:
            rows = [row for row in find_parked(settings, tenant) if row["invoice"] == invoice]
            typer.echo(f"would unpark {len(rows)}; nothing changed")
            return
        with postgres.worker_pool(settings) as pool, postgres.transaction(pool) as tx:
            count = invoice_jobs.unpark(tx, tenant, invoice) + payment_outbox.unpark(tx, tenant, invoice)
        if not count:
            typer.echo(f"nothing of invoice {invoice} of tenant {tenant} is parked", err=True)
            raise typer.Exit(_REFUSED)
        typer.echo(f"unparked {count}")


def find_parked(settings: Settings, tenant: str = "") -> list[dict[str, Any]]:
    """Every parked invoice and payment, of `tenant` or of all."""
    with postgres.worker_pool(settings) as pool, postgres.transaction(pool) as tx:
        jobs = invoice_jobs.parked(tx, tenant or None)
        attempts = payment_outbox.parked(tx, tenant or None)
    invoices = [
        {"kind": "invoice", "tenant": each.tenant_id, "invoice": each.invoice_id, "reason": each.reason}
        for each in jobs
    ]
    payments = [
        {"kind": "payment", "tenant": of, "invoice": invoice, "attempt": attempt, "reason": reason}
        for of, invoice, attempt, reason in attempts
    ]
    return invoices + payments
