"""`tallybook scenario run`: timelines with the invoices that must follow, in memory or through the running system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.scenario.run import Result, System
    from services.scenario.text import BadScenario

REFUSED, USAGE = 1, 2
SUFFIX = ".scenario"

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", exists=True, help=f"Scenarios, or folders of *{SUFFIX} files.")
]


def register(app: typer.Typer) -> None:
    """Add `scenario`."""
    group = typer.Typer(help="Timelines with the invoices that must follow.", no_args_is_help=True)
    app.add_typer(group, name="scenario")
    group.callback()(lambda: None)  # `run` stays a word of its own while it is the only one
    group.command()(run)


def run(
    files: Files,
    update: Annotated[bool, typer.Option("--update", help="Write what comes out into the files.")] = False,
    stack: Annotated[
        bool, typer.Option("--stack", help="Play it through the running system, on a test clock.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Play scenarios and compare what comes of them with what they say.

    Exit code 0: all as they say; 1: some differ, shown as a diff; 2: a file is no scenario.
    """
    from services.scenario import run as runner
    from services.scenario.text import BadScenario

    if update and stack:
        raise typer.BadParameter("the kernel decides what a scenario says; update without --stack")
    done: list[Result] = []
    bad: list[BadScenario] = []
    with ExitStack() as opened:
        system = _system(opened) if stack else None
        for path in _found(files):
            try:
                done.append(runner.run(path, update=update, system=system))
            except BadScenario as e:
                bad.append(e)
            if not as_json:
                _print(done, bad, path)
    _end(done, bad, as_json)


def _found(files: list[Path]) -> Iterator[Path]:
    for path in files:
        inside = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise typer.BadParameter(f"{path} holds no *{SUFFIX} file", param_hint="FILE...")
        yield from inside


def _system(opened: ExitStack) -> System:
    import services.scenario.system as system
    from services import cli_world

    return opened.enter_context(system.running(cli_world.settings()))


def _print(done: list[Result], bad: list[BadScenario], path: Path) -> None:
    """What became of the file just played."""
    if bad and bad[-1].found[0][0] == path and (not done or done[-1].path != path):
        for where, line, fault in bad[-1].found:
            typer.echo(
                f"{where}:{line}: {fault.field}{': ' if fault.field else ''}{fault.detail} [{fault.code}]", err=True
            )
        return
    result = done[-1]
    typer.echo(f"{result.status:<9}{result.path}  {result.title}")
    if result.diff:
        typer.echo(result.diff, nl=False)


def _end(done: list[Result], bad: list[BadScenario], as_json: bool) -> None:
    """The summary and the exit code."""
    from dataclasses import asdict

    differing = sum(bool(each.diff) for each in done)
    if as_json:
        results = [{**asdict(each), "path": str(each.path)} for each in done]
        faults = [
            {"path": str(path), "line": line, **asdict(fault)} for each in bad for path, line, fault in each.found
        ]
        typer.echo(json.dumps({"results": results, "faults": faults}))
    elif len(done) + len(bad) > 1 or bad:
        typer.echo(f"{len(done) - differing} as expected, {differing} differ, {len(bad)} cannot be read")
    if bad:
        raise typer.Exit(USAGE)
    if differing:
        raise typer.Exit(REFUSED)
