"""`tallybook usage void` and `amend`: what was sent by mistake, taken back or put right where it stands in the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from infra.kafka import KafkaConfig, Producer
from infra.postgres import Cursor
from infra.settings import Settings
from services import cli_world
from services.usage_file import Fault, Format, format_of, read
from services.usage_measuring import event_of
from services.usage_placing import Layout, spread_of
from services.usage_sending import Correction, addressed, send
from tallybook_sdk import UsageEvent as SentEvent
from tallybook_sdk.event import as_record

REFUSED = 1

Reason = Annotated[str, typer.Option(help="Why, for those who look later.")]
Tenant = Annotated[str | None, typer.Option(help="Needed if there is more than one.")]
Source = Annotated[str, typer.Option(help="Source of the events that name none.")]


def register(usage: typer.Typer) -> None:
    """Add `void` and `amend` to the group `usage`."""
    usage.command()(void)
    usage.command()(amend)


def void(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    reason: Reason,
    source: Annotated[str, typer.Option(help="Source of the events.")] = "file",
    tenant: Tenant = None,
    time: Annotated[
        str | None,
        typer.Option(help="Of events that may not be counted yet, where usage is spread: 2026-02-01T00:00:00Z."),
    ] = None,
) -> None:
    """Take events back: from here on they do not count. Voiding one again changes nothing.

    What cannot be voided is listed by `tallybook usage rejected list`. Nothing is sent if it is unknown where one lies.
    """
    at = None if time is None else _time(time)
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = TenantId(cli_world.the_tenant(tx, tenant))
        voids = [UsageVoided(tenant=chosen, source=source, id=id, reason=reason) for id in ids]
        placed = _placed(settings, tx, voids, at)
    _send(settings, placed)
    print(f"{len(voids):,} voids are on Kafka")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} is no time such as 2026-02-01T00:00:00Z", param_hint="--time")
    return time


def amend(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    reason: Reason,
    source: Source = "file",
    tenant: Tenant = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the file. Default: by its suffix, .csv or .jsonl.")
    ] = None,
) -> None:
    """Put events right: those in FILE replace what was sent with the same source and id.

    Nothing is sent if a line has a fault. What cannot be amended is listed by `tallybook usage rejected list`.
    """
    known = form or format_of(path)
    if known is None:
        raise typer.BadParameter("give --format csv or --format jsonl", param_hint="FILE")
    with path.open("rb") as file:
        lines = list(read(file, known, source))
    faults = [each.event for each in lines if isinstance(each.event, Fault)]
    for fault in faults:
        typer.echo(f"line {fault.line}: {fault.field}{': ' if fault.field else ''}{fault.detail}", err=True)
    if faults:
        raise typer.Exit(REFUSED)
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = TenantId(cli_world.the_tenant(tx, tenant))
        amendments = [UsageAmended(tenant=chosen, event=_event(each.event, source), reason=reason) for each in lines]
        placed = _placed(settings, tx, amendments)
    _send(settings, placed)
    print(f"{len(amendments):,} amendments are on Kafka")


def _placed(
    settings: Settings, tx: Cursor, corrections: Sequence[Correction], time: datetime | None = None
) -> list[tuple[Correction, int]]:
    """Each with its partition; ends the command if that is not known of one."""
    layout, spread = Layout(settings.usage_partitions), spread_of(tx, corrections[0].tenant) if corrections else ()
    placed, faults = [], []
    for each in corrections:
        try:
            placed.append((each, addressed(tx, layout, spread, each, time)))
        except Rejected as e:
            faults.append(e)
    for fault in faults:
        typer.echo(f"{fault.detail} [{fault.code}]", err=True)
    if faults:
        raise typer.Exit(REFUSED)
    return placed


def _send(settings: Settings, placed: Sequence[tuple[Correction, int]]) -> None:
    send(Producer(KafkaConfig.of(settings)), placed, sender="tallybook/cli", now=datetime.now(UTC))


def _event(each: SentEvent | Fault, source: str) -> UsageEvent:
    assert not isinstance(each, Fault)
    return event_of(as_record(each, source))
