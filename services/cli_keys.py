"""`tallybook keys`: API keys of a tenant."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter

from billing.errors import Rejected
from infra import postgres
from services import api_keys, cli_world
from services.api_keys import StoredKey

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add `keys`."""
    group = typer.Typer(help="API keys, each of one tenant.", no_args_is_help=True)
    app.add_typer(group, name="keys")
    group.command()(create)
    group.command("list")(listed)
    group.command()(revoke)


def create(
    tenant: Annotated[str, typer.Option("--tenant", help="Whom the key speaks for.")],
    name: Annotated[str, typer.Option("--name", help="To tell it from others.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, for the only time: the system keeps a hash."""
    with postgres.connect(postgres.worker_url(cli_world.settings())) as connection, connection.cursor() as tx:
        key = api_keys.create(tx, tenant, name)
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "name": name, "key": key}))
        return
    typer.echo(key)
    typer.echo("shown this once; send it as `Authorization: Bearer ...`", err=True)


def listed(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only those of this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """All keys; never their secrets."""
    with postgres.connect(postgres.worker_url(cli_world.settings())) as connection, connection.cursor() as tx:
        rows = api_keys.listed(tx, tenant)
    if as_json:
        typer.echo(TypeAdapter(list[StoredKey]).dump_json(rows).decode())
        return
    shown = [
        (row.tenant, f"tb_{row.key_id}_...", row.name, _minute(row.created_at), _minute(row.revoked_at)) for row in rows
    ]
    typer.echo(cli_world.table(("tenant", "key", "name", "created", "revoked"), shown))


def _minute(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


def revoke(key: Annotated[str, typer.Argument(help="tb_<id>, with or without its secret.")]) -> None:
    """Let a key open nothing any more, from the next request on."""
    key_id = key.removeprefix("tb_").partition("_")[0]
    with postgres.connect(postgres.worker_url(cli_world.settings())) as connection, connection.cursor() as tx:
        done = api_keys.revoke(tx, key_id)
    if not done:
        raise Rejected("unknown_key", f"no key in use has the id {key_id!r}; `tallybook keys list` shows all")
    typer.echo(f"revoked tb_{key_id}_...")
