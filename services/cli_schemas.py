"""`tallybook schemas`: what the messages look like, and whether every version can still be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from infra.errors import Misconfigured
from infra.schema_registry import SchemaRegistry
from infra.settings import Settings
from schemas.binary import fingerprint
from schemas.compatibility import problems
from schemas.released import FOLDER, load

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Folder = Annotated[Path, typer.Argument(help="Folder of <stream>/<Record>.<n>.avsc files; default: this program's.")]


def register(app: typer.Typer) -> None:
    """Add `schemas check`, `list` and `register`."""
    group = typer.Typer(help="The Avro schemas of all messages.", no_args_is_help=True)
    app.add_typer(group, name="schemas")
    group.command()(check)
    group.command("list")(list_schemas)
    group.command("register")(register_schemas)


def check(folder: Folder = FOLDER, as_json: AsJson = False) -> int:
    """Hold every schema against all released predecessors; exit code 1 if a message could become unreadable."""
    try:
        versions = load(folder)
    except ValueError as e:  # not JSON, or not what its file name says
        typer.echo(f"invalid_schema: {e}", err=True)
        return 1
    found = problems(versions, fingerprint)
    if as_json:
        report = [{"code": each.code, "where": each.where, "detail": each.detail} for each in found]
        typer.echo(json.dumps({"schemas": len(versions), "problems": report}, indent=1))
    elif found:
        for each in found:
            typer.echo(str(each), err=True)
    else:
        typer.echo(f"{len(versions)} schemas, each readable by every version of its message")
    return 1 if found else 0


def list_schemas(as_json: AsJson = False) -> None:
    """Print every released version with its fingerprint."""
    versions = load()
    if as_json:
        rows = [
            {"name": each.full_name, "version": each.version, "fingerprint": fingerprint(each.schema).hex()}
            for each in versions
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    for each in versions:
        typer.echo(f"{fingerprint(each.schema).hex()}  {each.version:>3}  {each.full_name}")


def register_schemas(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be registered, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make every released version known to the schema registry of the settings, as FULL_TRANSITIVE."""
    settings = Settings.from_env(os.environ)
    if not settings.schema_registry:
        raise Misconfigured("TALLYBOOK_SCHEMA_REGISTRY names no schema registry")
    registry = SchemaRegistry(settings.schema_registry)
    ids: dict[str, int | None] = {}
    for each in load():
        ids[f"{each.full_name}.{each.version}"] = None if dry_run else registry.register(each.full_name, each.schema)
    if as_json:
        typer.echo(json.dumps(ids, indent=1))
        return
    for name, schema_id in ids.items():
        typer.echo(f"would register  {name}" if schema_id is None else f"{schema_id:>6}  {name}")
