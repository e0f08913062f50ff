"""`tallybook meters`: counting events again that came before a meter was changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import uuid4

import typer
from pydantic import TypeAdapter

from billing.backfilling import BackfillMeter
from infra import kafka
from infra.errors import Conflict
from infra.kafka import KafkaConfig
from infra.postgres import Cursor
from infra.settings import Settings
from projections import generation, usage
from services import cli_clock, cli_world, read_models, usage_backfilling, usage_backfills
from services.cli_asking import AsJson, DryRun, Tenant, accepted
from services.commands import CommandClient
from services.usage_backfills import Foreseen, MeterBackfill
from services.usage_placing import Layout

SHOWN_MAX = 20


def register(app: typer.Typer) -> None:
    """Add `meters`."""
    group = typer.Typer(help="Meters, and counting again what came before one was changed.", no_args_is_help=True)
    app.add_typer(group, name="meters")
    group.command()(backfill)
    group.command()(backfills)


def backfill(
    meter: Annotated[str, typer.Argument(help="Key of the meter.")],
    begin: Annotated[str, typer.Option("--from", help="First event time; without offset, local to the tenant.")],
    end: Annotated[str | None, typer.Option("--to", help="First event time beyond; default: no end.")] = None,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have events that were counted before count for a meter as it is defined now, read again from the usage log.

    Periods that are closed keep what they had; the next invoice settles the difference as late usage.
    """
    settings = cli_world.settings()
    layout = Layout(settings.usage_partitions)
    with cli_world.reading(settings) as tx:
        name = cli_world.the_tenant(tx, tenant)
        row = read_models.tenant(tx, name)
        assert row is not None
        begins = cli_clock.instant(begin, row.zone, "--from")
        ends = None if end is None else cli_clock.instant(end, row.zone)
        generation.enter_all(tx)
        config = KafkaConfig.of(settings)
        usage_backfills.check_log(
            tx, name, layout, lambda each: kafka.start_offsets(config, usage.TOPIC, list(each)), begins, ends
        )
        if dry_run:
            _show_foreseen(_foreseen(tx, settings, layout, name, meter, begins, ends), meter, as_json)
            return
    command = BackfillMeter(meter=meter, from_time=begins, to_time=ends)
    with CommandClient(settings) as client:
        result = accepted(client.request(name, command, key=f"cli:backfill:{uuid4().hex}", actor=cli_world.ACTOR))
    if as_json:
        typer.echo(json.dumps({"tenant": name, "meter": meter, "version": result.sequence}))
        return
    typer.echo(f"{name}: {meter} will be counted again, version {result.sequence}; `tallybook meters backfills` tells")


def _foreseen(
    tx: Cursor, settings: Settings, layout: Layout, tenant: str, meter: str, begins: datetime, ends: datetime | None
) -> Foreseen:
    read = usage_backfilling.reader(KafkaConfig.of(settings))
    positions = generation.checkpoints(tx, usage.SET, generation.current(tx, usage.SET), usage.TOPIC)
    try:
        return usage_backfills.foresee(tx, tenant, layout, read, positions, meter, begins, ends)
    except usage_backfilling.LogTooShort as e:
        raise Conflict(str(e)) from e


def _show_foreseen(found: Foreseen, meter: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str))
        return
    typer.echo(f"{found.events:,} events would be counted again; {found.unmeasured:,} of them cannot be measured")
    rows = [
        (
            each.customer,
            f"{each.before.normalize():f}",
            f"{each.after.normalize():f}",
            f"{(each.after - each.before).normalize():+f}",
            f"{each.events_before:,}",
            f"{each.events_after:,}",
        )
        for each in found.changes[:SHOWN_MAX]
    ]
    if rows:
        header = ("customer", f"{meter} before", "after", "change", "events before", "events after")
        typer.echo(cli_world.table(header, rows, right=header[1:]))
    if len(found.changes) > SHOWN_MAX:
        typer.echo(f"... and {len(found.changes) - SHOWN_MAX:,} more customers; --json lists all")
    typer.echo(f"{len(found.changes):,} customers would be measured otherwise; nothing changed")


def backfills(
    meter: Annotated[str | None, typer.Argument(help="Key of the meter; default: all.")] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """List what was counted again, and how far it is."""
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        name = cli_world.the_tenant(tx, tenant)
        generation.enter_all(tx)
        found = usage_backfills.listed(tx, name, Layout(settings.usage_partitions), meter)
    if as_json:
        typer.echo(TypeAdapter(list[MeterBackfill]).dump_json(found).decode())
        return
    rows = [
        (
            str(each.version),
            each.meter,
            each.from_time.isoformat(),
            "" if each.to_time is None else each.to_time.isoformat(),
            each.state,
            f"{each.progress * 100:.1f} %",
            f"{each.partitions_done}/{each.partitions}",
            f"{each.events:,}",
            f"{each.unmeasured:,}",
            each.detail,
        )
        for each in found
    ]
    header = ("version", "meter", "from", "to", "state", "read", "partitions", "events", "unmeasured", "detail")
    typer.echo(cli_world.table(header, rows, right=("read", "partitions", "events", "unmeasured")))
