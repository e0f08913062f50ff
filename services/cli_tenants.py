"""`tallybook tenants`: who sells on this system, and how their usage is spread over the log."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer
from pydantic import TypeAdapter

from billing.envelope import Outcome
from billing.errors import Rejected
from billing.tenant import SpreadUsage
from services import cli_clock, cli_world, read_models
from services.commands import CommandClient
from services.read_rows import TenantRow
from services.usage_placing import spread_of


def register(app: typer.Typer) -> None:
    """Add `tenants`."""
    group = typer.Typer(help="Who sells on this system.", no_args_is_help=True)
    app.add_typer(group, name="tenants")
    group.command("list")(listed)
    group.command()(spread)


def listed(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """All tenants."""
    with cli_world.reading(cli_world.settings()) as tx:
        rows = read_models.tenants(tx)
    if as_json:
        typer.echo(TypeAdapter(list[TenantRow]).dump_json(rows).decode())
        return
    shown = [(row.tenant, row.name, row.currency, row.zone, _clock(row), f"{row.last_sequence:,}") for row in rows]
    typer.echo(cli_world.table(("tenant", "name", "currency", "zone", "clock", "events"), shown, right=("events",)))


def spread(
    tenant: Annotated[str, typer.Argument(help="Whose usage.")],
    partitions: Annotated[
        int | None,
        typer.Argument(help="Of the usage log: the tenant's own and those that follow it. Left out: show the spread."),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="First event time; default: the earliest that is safe.")
    ] = None,
) -> None:
    """Spread a large tenant's usage over several partitions of the usage log, or fewer, from some event time on.

    What lies on the log stays where it is. Producers must know of the new spread before that time.
    """
    settings = cli_world.settings()
    if partitions is not None and not 1 <= partitions <= settings.usage_partitions:
        said = f"{partitions}: allowed are 1 to {settings.usage_partitions}, as the usage log has"
        raise typer.BadParameter(said, param_hint="PARTITIONS")
    with cli_world.reading(settings) as tx:
        row = read_models.tenant(tx, cli_world.the_tenant(tx, tenant))
        versions = spread_of(tx, tenant)
    assert row is not None
    begins = None if since is None else cli_clock.instant(since, row.zone, "--from")
    if partitions is None:
        if begins is not None:
            raise typer.BadParameter("needed with --from", param_hint="PARTITIONS")
        typer.echo(f"{tenant}: usage lies in 1 partition of {settings.usage_partitions}")
        for each in versions:
            typer.echo(f"from event time {each.effective_from.isoformat()} on in {each.partitions}")
        return
    command = SpreadUsage(partitions=partitions, effective_from=begins)
    with CommandClient(settings) as client:
        result = client.request(tenant, command, key=f"cli:spread:{uuid4().hex}", actor=cli_world.ACTOR)
    if result.outcome is Outcome.REJECTED:
        raise Rejected(result.code, result.detail, field=result.field)
    if not result.last_sequence:
        typer.echo(f"{tenant}: usage is spread over {partitions} already; nothing changed")
        return
    typer.echo(
        f"{tenant}: usage will lie in {partitions} partitions; `tallybook tenants spread {tenant}` tells since when"
    )


def _clock(row: TenantRow) -> str:
    return row.test_clock.isoformat() if row.test_clock else "real"
