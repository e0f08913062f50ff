"""`tallybook log`: is the event log sound, and what is in a topic?"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bars

from billing.envelope import CommandEnvelope, EventEnvelope
from infra.kafka import KafkaConfig, Record, end_offsets, scan, start_offsets
from infra.settings import Settings
from schemas import codec
from schemas.errors import DecodeError
from schemas.streams import STREAMS
from schemas.topics import bundled_topics, topic
from services.log_check import Report, check_log

FAULTS_FOUND = 1
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add `log verify` and `log tail`."""
    group = typer.Typer(help="Is the event log sound, and what is in a topic?", no_args_is_help=True)
    app.add_typer(group, name="log")
    group.command()(verify)
    group.command()(tail)


def verify(as_json: AsJson = False) -> None:
    """Read the whole event log: numbers without gaps, versions, and the hash chain of every tenant. Changes nothing.

    Exit code 0: it is sound; 1: it contradicts itself, and where.
    """
    settings = Settings.from_env(os.environ)
    with _progress(as_json) as progress:
        report = check_log(settings, progress)
    typer.echo(json.dumps(dataclasses.asdict(report) | {"sound": report.sound}) if as_json else _text(report))
    raise typer.Exit(0 if report.sound else FAULTS_FOUND)


def tail(
    topic: Annotated[str, typer.Option("--topic", "-t", help="One of the topics, such as billing.events.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Latest records of each partition.")] = 10,
    partition: Annotated[int | None, typer.Option("--partition", min=0, help="Only this one.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Show what the records say, not only their heads.")] = False,
) -> None:
    """Print the latest committed records of a topic, one JSON object a line, in order of their append."""
    if topic not in (known := [each.name for each in bundled_topics()]):
        raise typer.BadParameter(f"{topic!r} is none of {', '.join(known)}", param_hint="--topic")
    settings = Settings.from_env(os.environ)
    for record in sorted(_latest(settings, topic, count, partition), key=lambda each: each.appended_at):
        typer.echo(json.dumps(_shown(record, decode), default=_plain, ensure_ascii=False))


def _latest(settings: Settings, name: str, count: int, only: int | None) -> list[Record]:
    config = KafkaConfig.of(settings)
    partitions = getattr(settings, f"{topic(name).partitions}_partitions")
    if only is not None and only >= partitions:
        raise typer.BadParameter(f"{name} has partitions 0 to {partitions - 1}", param_hint="--partition")
    asked = range(partitions) if only is None else [only]
    starts, ends = start_offsets(config, name, asked), end_offsets(config, name, asked)
    # A marker of a transaction takes an offset, too: look back twice as far, then keep the latest.
    begins = {each: max(starts[each], ends[each] - 2 * count - 2) for each in asked}
    latest: dict[int, list[Record]] = {each: [] for each in asked}
    for records in scan(config, name, begins, ends):
        for each in records:
            latest[each.partition] = [*latest[each.partition], each][-count:]
    return [each for found in latest.values() for each in found]


def _shown(record: Record, decode: bool) -> dict[str, Any]:
    head: dict[str, Any] = {
        "partition": record.partition,
        "offset": record.offset,
        "appended_at": record.appended_at.isoformat(),
        "key": (record.key or b"").decode(errors="backslashreplace"),
        "bytes": len(record.value or b""),
        "headers": {name: value.decode(errors="backslashreplace") for name, value in record.headers.items()},
    }
    if not decode:
        return head
    try:
        return head | {"value": _value(record)}
    except DecodeError as e:
        return head | {"unreadable": str(e)}


def _value(record: Record) -> Any:
    decoders: dict[str, Callable[[bytes | None], Any]] = {
        "commands": codec.decode_command,
        "events": codec.decode_event,
        "results": codec.decode_result,
        "usage": codec.decode_usage,
        "rejected": codec.decode_rejected,
    }
    stream = topic(record.topic).stream
    assert stream in {each.name for each in STREAMS}
    message = decoders[stream](record.value)
    if isinstance(message, CommandEnvelope):
        return {"meta": message.meta, type(message.command).__name__: message.command}
    if isinstance(message, EventEnvelope):
        return {"meta": message.meta, type(message.event).__name__: message.event}
    return {type(message).__name__: message}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _text(report: Report) -> str:
    lines = [f"{each.position}  {each.tenant or '(unknown)'}: {each.what}" for each in report.faults]
    if report.faults_total > len(report.faults):
        lines.append(f"... and {report.faults_total - len(report.faults):,} more")
    verdict = "sound" if report.sound else f"{report.faults_total:,} faults"
    return "\n".join([*lines, f"{report.events:,} events of {report.tenants:,} tenants: {verdict}"])


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading the event log")
        yield lambda done, total: bars.update(task, completed=done, total=total)
