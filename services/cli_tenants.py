"""`tallybook tenants`: who sells on this system."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import TypeAdapter

from services import cli_world, read_models
from services.read_rows import TenantRow


def register(app: typer.Typer) -> None:
    """Add `tenants`."""
    group = typer.Typer(help="Who sells on this system.", no_args_is_help=True)
    app.add_typer(group, name="tenants")
    group.command("list")(listed)


def listed(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """All tenants."""
    with cli_world.reading(cli_world.settings()) as tx:
        rows = read_models.tenants(tx)
    if as_json:
        typer.echo(TypeAdapter(list[TenantRow]).dump_json(rows).decode())
        return
    shown = [(row.tenant, row.name, row.currency, row.zone, _clock(row), f"{row.last_sequence:,}") for row in rows]
    typer.echo(cli_world.table(("tenant", "name", "currency", "zone", "clock", "events"), shown, right=("events",)))


def _clock(row: TenantRow) -> str:
    return row.test_clock.isoformat() if row.test_clock else "real"
