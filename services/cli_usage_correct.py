"""`tallybook usage void` and `amend`: what was sent by mistake, taken back or put right where it stands in the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from billing.ids import TenantId
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from infra.kafka import KafkaConfig, Producer
from infra.settings import Settings
from services import cli_world
from services.usage_file import Fault, Format, format_of, read
from services.usage_measuring import event_of
from services.usage_placing import Layout, Spreads, spread_of
from services.usage_sending import send
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
) -> None:
    """Take events back: from here on they do not count. Voiding one again changes nothing.

    What cannot be voided is listed by `tallybook usage rejected list`.
    """
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = TenantId(cli_world.the_tenant(tx, tenant))
        spread = spread_of(tx, chosen)
    voids = [UsageVoided(tenant=chosen, source=source, id=id, reason=reason) for id in ids]
    _send(settings, voids, spread)
    print(f"{len(voids):,} voids are on Kafka")


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
        spread = spread_of(tx, chosen)
    amendments = [UsageAmended(tenant=chosen, event=_event(each.event, source), reason=reason) for each in lines]
    _send(settings, amendments, spread)
    print(f"{len(amendments):,} amendments are on Kafka")


def _send(settings: Settings, corrections: Sequence[UsageVoided | UsageAmended], spread: Spreads) -> None:
    producer, layout = Producer(KafkaConfig.of(settings)), Layout(settings.usage_partitions)
    send(producer, corrections, layout, spread, sender="tallybook/cli", now=datetime.now(UTC))


def _event(each: SentEvent | Fault, source: str) -> UsageEvent:
    assert not isinstance(each, Fault)
    return event_of(as_record(each, source))
