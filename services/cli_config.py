"""`tallybook config`: what the settings are, and whether they are good."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from infra.settings import PREFIX, Settings


def register(app: typer.Typer) -> None:
    """Add `config check` and `config show`."""
    group = typer.Typer(help="What the settings are, and whether they are good.", no_args_is_help=True)
    app.add_typer(group, name="config")

    @group.command()
    def check() -> None:
        """Read all settings; exit code 78 and the name of the setting if one is bad."""
        Settings.from_env(os.environ)
        typer.echo("settings are good")

    @group.command()
    def show(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
        """Print every setting with its value; passwords and keys are masked."""
        values = Settings.from_env(os.environ).redacted()
        if as_json:
            typer.echo(json.dumps(values, indent=1))
            return
        for name, value in values.items():
            typer.echo(f"{PREFIX + name.upper():38}{value}")
            if what := Settings.model_fields[name].description:
                typer.echo(f"{'':38}  {what}")
