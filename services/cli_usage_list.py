"""`tallybook usage list` and `usage at`: events by their fate, and the fate of what lies at a position of the log."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from billing.period import Period
from infra.postgres import Cursor
from projections import generation, usage_duplicates, usage_events
from services import cli_world, read_models, usage_trace
from services.cli_usage_rejected import place_of, position, time_of
from services.usage_log import RawEvent, UsageLog
from services.usage_position import fates_in, record_at

LISTED = timedelta(days=35)
FateName = Literal["counted", "unmatched", "amended", "voided", "duplicate", "conflict", "rejected"]


def register(usage: typer.Typer) -> None:
    """Add `list` and `at` to the group `usage`."""
    usage.command("list")(list_)
    usage.command("at")(at)


@dataclass(frozen=True, slots=True)
class Row:
    """An event in the list."""

    position: str
    fate: str
    time: datetime
    """Of the event; of what did not count, when it was received."""
    customer: str
    source: str
    """Empty, like the id, where the log is pruned."""
    id: str
    detail: str
    """What it measured, or why it was refused."""


def list_(
    fate: Annotated[FateName | None, typer.Option(help="Default: all that count.")] = None,
    customer: Annotated[str | None, typer.Option(help="Only this one's; of events that counted.")] = None,
    meter: Annotated[str | None, typer.Option(help="Only what it measured; of events that counted.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="From this time on: 2026-02-01, UTC. Default: 35 days ago.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 50,
    tenant: Annotated[str | None, typer.Option(help="Needed if there is more than one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List events, the newest first: by their own time, or what did not count by when it was received."""
    counts = fate not in ("duplicate", "conflict", "rejected")
    if not counts and (customer or meter):
        raise typer.BadParameter(f"--customer and --meter choose among events that counted, not those {fate}")
    if meter is not None and fate in ("amended", "voided"):
        raise typer.BadParameter(f"events that are {fate} are listed without --meter", param_hint="--fate")
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx, closing(UsageLog(settings)) as log:
        chosen = cli_world.the_tenant(tx, tenant)
        period = _period(tx, chosen, start, end, of_events=counts)
        generation.enter_all(tx)
        if fate == "duplicate":
            rows = _copies(tx, log, chosen, period, limit)
        elif counts:
            rows = _counted(tx, log, chosen, period, (customer, meter, fate), limit)
        else:
            rows = _refused(tx, chosen, period, fate, limit)
    if as_json:
        print(json.dumps([asdict(each) for each in rows], default=str))
        return
    header = ("position", "fate", "time", "customer", "source", "id", "detail")
    cells = [
        (each.position, each.fate, f"{each.time:%Y-%m-%d %H:%M:%S}", each.customer, each.source, each.id, each.detail)
        for each in rows
    ]
    print(cli_world.table(header, cells).encode("ascii", "backslashreplace").decode())


def at(
    place: Annotated[str, typer.Argument(metavar="POSITION", help="2/1841, or 2/1841/7 for one event of the record.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what became of every event in the record at POSITION (partition/offset) of usage.events."""
    settings, asked = cli_world.settings(), place_of(place)
    with cli_world.reading(settings) as tx, closing(UsageLog(settings)) as log:
        record = record_at(log, asked.partition, asked.offset)
        found = fates_in(tx, record, None if asked.batch_index < 0 else asked.batch_index)
    if as_json:
        print(json.dumps([asdict(each) | {"place": position(each.place)} for each in found]))
        return
    header = ("position", "fate", "tenant", "source", "id", "detail")
    cells = [
        (position(each.place), each.fate, each.tenant, each.source or "", each.id or "", each.detail[:100])
        for each in found
    ]
    print(cli_world.table(header, cells).encode("ascii", "backslashreplace").decode())


def _period(tx: Cursor, tenant: str, start: str | None, end: str | None, *, of_events: bool) -> Period:
    """Events have times by the tenant's clock; the brokers have another."""
    row = read_models.tenant(tx, tenant) if of_events else None
    now = row.test_clock if row and row.test_clock else datetime.now(UTC)
    upto = now + timedelta(days=1) if end is None else time_of(end)
    return Period.between(upto - LISTED if start is None else time_of(start), upto, "to")


def _counted(
    tx: Cursor,
    log: UsageLog,
    tenant: str,
    period: Period,
    chosen: tuple[str | None, str | None, str | None],
    limit: int,
) -> list[Row]:
    customer, meter, fate = chosen
    found = usage_events.counted(tx, tenant, period, customer=customer, meter=meter, fate=fate, limit=limit)
    ways = usage_trace.traces(tx, tenant, found)
    texts = log.events(each.place for each in ways)
    return [
        Row(
            position(each.place),
            str(each.fate) + (", late" if each.late else ""),
            each.time,
            each.customer,
            *_names(texts.get(each.place, {})),
            ", ".join(f"{one.meter} {one.text if one.number is None else one.number}" for one in each.contributions),
        )
        for each in ways
    ]


def _copies(tx: Cursor, log: UsageLog, tenant: str, period: Period, limit: int) -> list[Row]:
    found = usage_duplicates.listed(tx, tenant, period, limit=limit)
    texts = log.events(each.place for each in found)
    made = []
    for each in found:
        text = texts.get(each.place, {})
        customer = text.get("customer", "")
        made.append(Row(position(each.place), "duplicate", each.received_at, customer, *_names(text), ""))
    return made


def _refused(tx: Cursor, tenant: str, period: Period, fate: str | None, limit: int) -> list[Row]:
    return [
        Row(
            position(each.place),
            each.fate,
            each.appended_at,
            "",
            each.source or "",
            each.id or "",
            f"{each.reason}: {each.detail}"[:80],
        )
        for each in usage_events.refused(tx, tenant, period=period, fate=fate, limit=limit)
    ]


def _names(event: RawEvent) -> tuple[str, str]:
    return event.get("source", ""), event.get("id", "")
