"""`tallybook demo`: an airport bills its airlines for a real year of flights, while processes are killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from services.cli import REFUSED


def register(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command()(demo)


def demo(
    data: Annotated[Path, typer.Option("--data", help="Folder for the demonstration; emptied first.")] = Path(".demo"),
    days: Annotated[int | None, typer.Option("--days", min=1, help="Send only the first days of the year.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running, to look at it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Bill sixteen airlines for the 328,521 flights that left New York in 2013, and prove the result."""
    from services.demo import report, run, stage

    scene = stage.Stage(data.absolute(), lambda line: typer.echo(line, err=as_json))
    scene.clear()
    try:
        found = run.run(scene, days=days)
    finally:
        if not keep:
            scene.command("down", quiet=True, codes=(0, 1, 69))
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "passed": found.passed}))
    else:
        typer.echo(report.text(found))
    if keep:
        typer.echo(f"still running; look around with TALLYBOOK_DATA={data}, then `tallybook down`", err=True)
    if not found.passed:
        raise typer.Exit(REFUSED)
