"""`tallybook replay`: rebuild projections from the log, to verify the live ones or to replace them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from infra import postgres
from infra.kafka import KafkaConfig, end_offsets
from infra.settings import Settings
from projections import generation
from services import replay, rerating
from services.replay import Compared, Scratch, Subject
from services.rerating import Rerated

DIFFERENCES = 1


class Sets(StrEnum):
    """What to replay."""

    BILLING = "billing"
    USAGE = "usage"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add `replay verify` and `replay rebuild`."""
    group = typer.Typer(help="Rebuild projections from the log.", no_args_is_help=True)
    app.add_typer(group, name="replay")

    @group.command()
    def verify(
        which: Annotated[Sets, typer.Option("--set", help="Which projections to verify.")] = Sets.ALL,
        as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    ) -> None:
        """Rebuild beside the live projections, compare row by row, and rate every invoice again (with --set all).

        Changes nothing; the live projections go on. Exit code 0: identical; 1: there are differences.
        """
        settings = Settings.from_env(os.environ)
        with replay.alone(settings), _shown(as_json) as progress:
            report = run_verify(settings, which, progress)
        print(json.dumps(dataclasses.asdict(report)) if as_json else "", end="\n" if as_json else "")
        if not as_json:
            show(report, Console())
        raise typer.Exit(0 if report.identical else DIFFERENCES)

    @group.command()
    def rebuild(
        which: Annotated[Sets, typer.Option("--set", help="Which projections to replace.")],
        yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and change nothing.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    ) -> None:
        """Build a new generation from the log beside the live one, and switch everybody to it.

        The generation before is kept until the next rebuild.
        """
        settings = Settings.from_env(os.environ)
        subjects = chosen(settings, which)
        if dry_run or not yes:
            for each in subjects:
                typer.echo(_plan(settings, each), err=not dry_run)
        if dry_run:
            raise typer.Exit(0)
        if not yes and not (sys.stdin.isatty() and typer.confirm("go on?", err=True)):
            raise typer.BadParameter("nothing changed; say --yes to go on", param_hint="--yes")
        with replay.alone(settings), _shown(as_json) as progress:
            swaps = [run_rebuild(settings, each, progress) for each in subjects]
        for swapped in swaps:
            typer.echo(json.dumps(swapped) if as_json else "{set}: {now} took the place of {before}".format(**swapped))


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The verdict of `replay verify`."""

    identical: bool
    tables: dict[str, list[Compared]]
    """By projection set."""
    barrier: dict[str, dict[int, int]]
    """Positions in the log, by projection set and partition, at which both generations were compared."""
    invoices: Rerated | None
    """None unless both sets were rebuilt."""


def run_verify(settings: Settings, which: Sets, progress: replay.Progress) -> Report:
    """Rebuild the sets, compare each with the live one at equal positions, rate invoices again; drop what was built."""
    tables: dict[str, list[Compared]] = {}
    barrier: dict[str, dict[int, int]] = {}
    rerated: Rerated | None = None
    with ExitStack() as cleanup:
        pool = cleanup.enter_context(postgres.worker_pool(settings, size=6))
        for subject in chosen(settings, which):
            scratch = Scratch(settings, pool, subject, progress)
            cleanup.callback(scratch.drop)
            with scratch.snapshot() as (tx, live, at):
                barrier[subject.name] = dict(at)
                tables[subject.name] = replay.compare(tx, scratch, live, progress)
                if which is Sets.ALL and subject.name == Sets.USAGE:
                    generation.enter(tx, subject.name, scratch.number)
                    rerated = rerating.rerate(settings, tx, barrier["billing"], at, progress)
    same = not any(each.differing for compared in tables.values() for each in compared)
    return Report(same and (rerated is None or not rerated.differing), tables, barrier, rerated)


def run_rebuild(settings: Settings, subject: Subject, progress: replay.Progress) -> dict[str, Any]:
    """Replace the live generation of one set."""
    with postgres.worker_pool(settings, size=4) as pool:
        scratch = Scratch(settings, pool, subject, progress)
        before = scratch.swap()
    with postgres.connect(postgres.owner_url(settings)) as connection:
        gone = generation.drop_old(connection.cursor(), subject.name)
    dropped = [generation.schema(subject.name, each) for each in gone]
    return {
        "set": subject.name,
        "now": scratch.schema,
        "before": generation.schema(subject.name, before),
        "dropped": dropped,
    }


def chosen(settings: Settings, which: Sets) -> list[Subject]:
    """The projection sets of `which`, in the order in which they are replayed."""
    return [each for each in replay.subjects(settings) if which in (Sets.ALL, each.name)]


def show(report: Report, console: Console) -> None:
    """The verdict for people."""
    for name, compared in report.tables.items():
        table = Table(
            title=f"{name}, at offset {sum(report.barrier[name].values()):,} of its log", title_justify="left"
        )
        table.add_column("table")
        table.add_column("rows", justify="right")
        table.add_column("differing", justify="right")
        for each in compared:
            style = "bold red" if each.differing else None
            table.add_row(each.table, f"{each.rows:,}", f"{each.differing:,}", style=style)
        console.print(table)
        for each in compared:
            for example in each.examples:
                console.print(f"  {each.table}: {example}", markup=False, highlight=False, soft_wrap=True)
    if report.invoices is not None:
        console.print(f"{report.invoices.checked:,} invoices rated again, {report.invoices.differing:,} differing")
        for difference in report.invoices.differences:
            console.print(f"  {difference}", markup=False, highlight=False, soft_wrap=True)
    console.print("identical" if report.identical else "DIFFERENCES FOUND")


def _plan(settings: Settings, subject: Subject) -> str:
    with postgres.worker_pool(settings, size=1) as pool, postgres.transaction(pool) as tx:
        live = generation.current(tx, subject.name)
        partitions = list(generation.checkpoints(tx, subject.name, live, subject.topic))
    ends = end_offsets(KafkaConfig.of(settings), subject.topic, partitions)
    return (
        f"would read   {subject.topic}   {len(partitions)} partitions, up to {sum(ends.values()):,} records\n"
        f"would fill   a new generation beside {generation.schema(subject.name, live)}, and switch to it"
    )


@contextmanager
def _shown(quiet: bool) -> Iterator[replay.Progress]:
    """Bars on standard error if that is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _what, _done, _total: None
        return
    columns: Sequence[Any] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            key = what.split()[0]
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total)
            bars.update(tasks[key], description=what, completed=done, total=total)

        yield advance
