"""`tallybook clock`: a tenant's test clock."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Annotated
from uuid import uuid4
from zoneinfo import ZoneInfo

import typer
from pydantic import TypeAdapter
from pydantic_core import PydanticCustomError

from billing.envelope import Outcome
from billing.errors import Rejected
from billing.tenant import AdvanceClock
from infra.errors import Transient
from infra.postgres import Cursor
from infra.settings import Settings
from services import catalog_file, cli_world, read_models
from services.commands import CommandClient
from services.exact_values import local_time
from services.read_rows import TenantRow

Tenant = Annotated[str | None, typer.Option("--tenant", help="Needed if there is more than one.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
_LOOK_AGAIN_S = 0.2


def register(app: typer.Typer) -> None:
    """Add `clock`."""
    group = typer.Typer(help="A tenant's test clock.", no_args_is_help=True)
    app.add_typer(group, name="clock")
    group.command()(show)
    group.command()(advance)


def show(tenant: Tenant = None, as_json: AsJson = False) -> None:
    """What a tenant's clock says."""
    with cli_world.reading(cli_world.settings()) as tx:
        row = _row(tx, cli_world.the_tenant(tx, tenant))
    _print(row, as_json)


def advance(
    to: Annotated[str, typer.Option("--to", help="ISO 8601; without offset, local to the tenant's zone.")],
    tenant: Tenant = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until everything that falls due by then is billed.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Longest wait, in seconds.")] = 600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move a tenant's test clock forward; what falls due by then happens in the background."""
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        row = _row(tx, cli_world.the_tenant(tx, tenant))
        target = instant(to, row.zone)
        if dry_run:
            boundaries = _due(tx, row.tenant, target)
            typer.echo(f"would move {row.tenant} to {target.isoformat()}; {boundaries} boundaries are due by then")
            typer.echo("nothing changed")
            return
    with CommandClient(settings) as client:
        result = client.request(
            row.tenant, AdvanceClock(to=target), key=f"cli:clock:{uuid4().hex}", actor=cli_world.ACTOR
        )
    if result.outcome is Outcome.REJECTED:
        raise Rejected(result.code, result.detail, field=result.field)
    _until_settled(settings, row.tenant, result.sequence, target, wait, timeout)
    with cli_world.reading(settings) as tx:
        _print(_row(tx, row.tenant), as_json)


def instant(text: str, zone: str, option: str = "--to") -> datetime:
    """The instant that a person named, local to `zone` unless it has an offset; a bad one is wrong usage."""
    try:
        return catalog_file.to_utc(local_time(text), zone)
    except PydanticCustomError as e:
        raise typer.BadParameter(str(e), param_hint=option) from e
    except Rejected as e:
        raise typer.BadParameter(e.detail, param_hint=option) from e


def _row(tx: Cursor, tenant: str) -> TenantRow:
    row = read_models.tenant(tx, tenant)
    assert row is not None
    return row


def _print(row: TenantRow, as_json: bool) -> None:
    if as_json:
        typer.echo(TypeAdapter(TenantRow).dump_json(row).decode())
        return
    if row.test_clock is None:
        typer.echo(f"{row.tenant}: the real clock")
        return
    local = ZoneInfo(row.zone)
    typer.echo(f"{row.tenant}: test clock at {row.test_clock.astimezone(local).isoformat(' ')} ({row.zone})")


def _until_settled(
    settings: Settings, tenant: str, sequence: int, to: datetime, everything: bool, timeout: float
) -> None:
    """Wait until the projections know the new time; with `everything`, until nothing is due and no invoice awaited."""
    deadline = time.monotonic() + timeout
    while True:
        with cli_world.reading(settings) as tx:
            known = _row(tx, tenant).last_sequence >= sequence
            open_work = _due(tx, tenant, to) + _awaited(tx, tenant) if everything else 0
        if known and not open_work:
            return
        if time.monotonic() > deadline:
            raise Transient(f"after {timedelta(seconds=timeout)}: {open_work} boundaries and invoices are still open")
        time.sleep(_LOOK_AGAIN_S)


def _due(tx: Cursor, tenant: str, by: datetime) -> int:
    row = tx.execute(
        "SELECT count(*) FROM subscriptions WHERE tenant_id = %s AND next_boundary <= %s", (tenant, by)
    ).fetchone()
    assert row is not None
    return int(row[0])


def _awaited(tx: Cursor, tenant: str) -> int:
    row = tx.execute("SELECT count(*) FROM runs WHERE tenant_id = %s AND state = 'awaited'", (tenant,)).fetchone()
    assert row is not None
    return int(row[0])
