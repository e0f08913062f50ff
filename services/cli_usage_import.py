"""`tallybook usage import`: a file of usage, each line once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infra import failpoints
from infra.errors import Transient
from infra.settings import Settings
from services import usage_placing
from services.usage_file import Format, Line, Mark, format_of
from services.usage_import import Import, Job, Outcome, mark_of
from tallybook_sdk import NotDelivered, Unreachable, UsageProducer

REFUSED = 1
QUIET = {"log_level": 2}  # what fails is reported at the end, once


def register(usage: typer.Typer) -> None:
    """Add `import` to the group `usage`."""
    usage.command("import")(import_)


def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    tenant: Annotated[str, typer.Option(help="The tenant whose customers used something.")],
    source: Annotated[str, typer.Option(help="Source of events that name none; part of their identity.")] = "file",
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the file. Default: by its suffix, .csv or .jsonl.")
    ] = None,
    make_ids: Annotated[
        bool, typer.Option("--make-ids", help="Lines without an id get one of file name, line number and text.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin anew; nothing counts twice.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    """Import FILE: CSV with the header id,type,customer,time and properties, or JSON Lines.

    Killed or interrupted, it goes on where it was when it is run again; each event counts once. How far it came stands
    in FILE.progress until all is sent; lines that hold no event go to FILE.rejected with their number and the reason.
    Exit code 0: every line is on Kafka; 1: some are not.
    """
    known = form or format_of(path)
    if known is None:
        raise typer.BadParameter("give --format csv or --format jsonl", param_hint="FILE")
    settings = Settings.from_env(os.environ)
    failpoints.configure(settings.failpoint, settings.data)
    job = Job(path=path, form=known, tenant=tenant, source=source, makes_ids=make_ids)
    mark = mark_of(job, again=again)
    outcome = _run(job, mark, settings, quiet=as_json)
    _report(job, outcome, as_json)
    raise typer.Exit(0 if outcome.is_complete and not outcome.rejected else REFUSED)


def _run(job: Job, mark: Mark, settings: Settings, *, quiet: bool) -> Outcome:
    """Raises `Transient` if Kafka cannot be reached."""
    client = settings.kafka_client()
    bootstrap = client.pop("bootstrap.servers")
    producer = UsageProducer(
        bootstrap,
        job.tenant,
        source=job.source,
        spread=usage_placing.published_to(settings, job.tenant),
        topic_prefix=settings.topic_prefix,
        kafka={**client, **QUIET},
    )
    try:
        producer.check()
    except Unreachable as error:
        raise Transient(f"Kafka at {bootstrap}: {error}") from error
    run = Import(job, mark)
    try:
        return run.run(with_progress(job.lines(mark), job.path, quiet=quiet), producer.send, producer.close)
    except NotDelivered as error:
        run.outcome.not_delivered["no answer in time"] = error.waiting
        return run.outcome
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run it again to go on\n")
        raise


def with_progress(lines: Iterator[Line], path: Path, *, quiet: bool) -> Iterator[Line]:
    """The same lines, with a bar on a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield from lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(f"sending {path.name}", total=path.stat().st_size)
        for line in lines:
            if line.number % 1000 == 0:
                bars.update(task, completed=line.end)
            yield line
        bars.update(task, completed=path.stat().st_size)


def _report(job: Job, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(outcome) | {"is_complete": outcome.is_complete}))
        return
    if outcome.resumed_after:
        print(f"went on after line {outcome.resumed_after:,}")
    for reason, count in outcome.not_delivered.items():
        sys.stderr.write(f"{count:,} events not delivered: {reason}; run it again, nothing counts twice\n")
    told = f": see {job.rejected}" if outcome.rejected else ""
    print(f"{outcome.delivered:,} events are on Kafka, {outcome.rejected:,} lines have a fault{told}")
