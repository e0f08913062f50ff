"""`tallybook usage query`: what a meter measured, by window, customer and dimension."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import typer

from billing.period import Period, check_zone
from infra.postgres import Cursor
from projections import generation, usage_meters, usage_query
from projections.usage_query import Answer, Question
from services import cli_world, read_models

Window = Literal["minute", "hour", "day", "week", "month"]


def register(usage: typer.Typer) -> None:
    """Add `query` to the group `usage`."""
    usage.command()(query)


def query(
    meter: Annotated[str, typer.Argument(metavar="METER", help="Key of the meter.")],
    start: Annotated[str, typer.Option("--from", help="From this time on: 2026-02-01, or with a time and an offset.")],
    end: Annotated[str | None, typer.Option("--to", help="Before this time. Default: now.")] = None,
    window: Annotated[Window | None, typer.Option(help="A row for each.")] = None,
    zone: Annotated[str, typer.Option(help="IANA zone of windows and of times without offset.")] = "UTC",
    customer: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="customer (all of them) or a dimension: a row for each. Repeatable.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="dimension:value. Repeatable.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Needed if there is more than one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what METER measured: exact, and equal to what an invoice at this moment would bill."""
    check_zone(zone, "zone")
    names = list(dict.fromkeys(by or ()))
    with cli_world.reading(cli_world.settings()) as tx:
        chosen = cli_world.the_tenant(tx, tenant)
        generation.enter_all(tx)
        question = Question(
            meter=usage_meters.meter(tx, chosen, meter),
            period=Period.between(_time(start, zone), _end(tx, chosen, end, zone), "to"),
            window=window,
            zone=zone,
            customer=customer,
            by_customer="customer" in names,
            by=tuple(each for each in names if each != "customer"),
            where=usage_query.conditions(where or ()),
        )
        found = usage_query.answers(tx, chosen, question)
    if as_json:
        print(json.dumps([_plain(each, question) for each in found]))
        return
    header = ("from", "to", *(["customer"] if question.by_customer else []), *question.by, "quantity", "events")
    rows = [
        (
            _local(each.period.start, zone),
            _local(each.period.end, zone),
            *([each.customer or ""] if question.by_customer else []),
            *each.dimensions,
            f"{each.quantity:,f}",
            f"{each.events:,}",
        )
        for each in found
    ]
    print(cli_world.table(header, rows, right=("quantity", "events")))


def _end(tx: Cursor, tenant: str, given: str | None, zone: str) -> datetime:
    if given is not None:
        return _time(given, zone)
    row = read_models.tenant(tx, tenant)
    return row.test_clock if row and row.test_clock else datetime.now(UTC)


def _plain(each: Answer, question: Question) -> dict[str, object]:
    return {
        "from": each.period.start.isoformat(),
        "to": each.period.end.isoformat(),
        "customer": each.customer,
        "dimensions": dict(zip(question.by, each.dimensions, strict=True)),
        "quantity": f"{each.quantity:f}",
        "events": each.events,
    }


def _time(text: str, zone: str) -> datetime:
    try:
        given = datetime.fromisoformat(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is no time such as 2026-02-01 or 2026-02-01T00:00:00Z") from e
    return (given if given.tzinfo else given.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)


def _local(instant: datetime, zone: str) -> str:
    return instant.astimezone(ZoneInfo(zone)).isoformat(" ", "minutes")
