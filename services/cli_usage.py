"""`tallybook usage`: events from a file to Kafka, through the SDK, and the fate of one of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated

import typer

from infra.errors import Transient
from infra.settings import Settings
from services import (
    cli_usage_correct,
    cli_usage_import,
    cli_usage_list,
    cli_usage_query,
    cli_usage_rejected,
    cli_world,
    usage_placing,
)
from services.cli_usage_import import QUIET, with_progress
from services.cli_usage_rejected import position, refusal
from services.usage_file import Fault, Format, Line, format_of, read
from services.usage_trace import EventFate, Trace, fate_of
from tallybook_sdk import Delivery, NotDelivered, Unreachable, UsageProducer

SHOWN_MAX = 20
REFUSED = 1


@dataclass(slots=True)
class Sent:
    """What became of the lines of a file."""

    valid: int = 0
    delivered: int = 0
    faults: list[Fault] = field(default_factory=list)
    not_delivered: dict[str, int] = field(default_factory=dict)
    """Events by the reason of their failure."""

    @property
    def is_complete(self) -> bool:
        return not self.faults and not self.not_delivered


def register(app: typer.Typer) -> None:
    """Add `usage`."""
    group = typer.Typer(help="Usage events: sent, looked at, corrected, and what was measured.", no_args_is_help=True)
    app.add_typer(group, name="usage")
    group.command()(show)
    cli_usage_import.register(group)
    cli_usage_correct.register(group)
    cli_usage_list.register(group)
    cli_usage_query.register(group)
    cli_usage_rejected.register(group)

    @group.command()
    def send(
        path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
        tenant: Annotated[str, typer.Option(help="The tenant whose customers used something.")],
        source: Annotated[str, typer.Option(help="Source of events that name none; part of their identity.")] = "file",
        form: Annotated[
            Format | None, typer.Option("--format", help="Of the file. Default: by its suffix, .csv or .jsonl.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check every line; send nothing.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    ) -> None:
        """Send the usage events in FILE (CSV with the header id,type,customer,time and properties, or JSON Lines).

        Lines with a fault are named and left out; all others are sent. Sending a file again counts nothing twice.
        For large files there is `import`, which goes on where it was killed.
        Exit code 0: every line is on Kafka; 1: some are not.
        """
        known = form or format_of(path)
        if known is None:
            raise typer.BadParameter("give --format csv or --format jsonl", param_hint="FILE")
        with path.open("rb") as file:
            lines = with_progress(read(file, known, source), path, quiet=as_json)
            sent = check(lines) if dry_run else deliver(lines, tenant, source, Settings.from_env(os.environ))
        _report(sent, dry_run, as_json)
        raise typer.Exit(0 if sent.is_complete else REFUSED)


def show(
    id: Annotated[str, typer.Argument(metavar="ID")],
    source: Annotated[str, typer.Option(help="Source of the event.")] = "file",
    tenant: Annotated[str | None, typer.Option(help="Needed if there is more than one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the fate of one event: its place in the log, what it measured, which invoices bill it, or why none will."""
    with cli_world.reading(cli_world.settings()) as tx:
        found = fate_of(tx, cli_world.the_tenant(tx, tenant), source, id)
    if as_json:
        print(json.dumps(_plain(found), default=str))
        return
    print(f"event     {found.source} {found.id}")
    if found.counted is not None:
        _show_counted(found.counted)
    if found.copies.total:
        places = [position(each.place) for each in found.copies.newest]
        more = ["..."] if found.copies.total > len(places) else []
        print(f"copies    {found.copies.total:,}, never counted (duplicate): {', '.join(places + more)}")
    for each in found.refusals:
        blamed = f"{each.field}: " if each.field else ""
        print(f"{each.fate:<9} {position(each.place)}: {each.reason}, {blamed}{each.detail}")


def _plain(found: EventFate) -> dict[str, object]:
    counted = None
    if found.counted is not None:
        contributions = [each._asdict() for each in found.counted.contributions]
        place = position(found.counted.place)
        counted = {"position": place, **asdict(found.counted), "contributions": contributions}
        del counted["place"]
    copies = [{"position": position(each.place), "received_at": each.received_at} for each in found.copies.newest]
    refusals = [refusal(each) for each in found.refusals]
    told = {"source": found.source, "id": found.id, "fate": found.fate, "counted": counted, "refusals": refusals}
    return told | {"duplicates": found.copies.total, "copies": copies}


def _show_counted(found: Trace) -> None:
    at = found.place
    print(f"customer  {found.customer}, {found.time.isoformat()}")
    print(f"log       usage.events partition {at.partition}, offset {at.offset}, event {at.batch_index} of its batch")
    for each in found.contributions:
        value = each.text if each.number is None else f"{each.number.normalize():f}"
        split = ", ".join(f"{name} {value}" for name, value in each.dimensions.items())
        print(f"meter     {each.meter} + {value}{f' ({split})' if split else ''}")
    if found.amended:
        print("amended   it counts with other content than it came with; this is how")
    if found.voided_offset is not None:
        print(f"voided    from offset {found.voided_offset} of its partition on: it does not count any more")
    if not found.subscribed:
        print("billed    never: no subscription covers its time (unmatched)")
    for bill in found.billed:
        print(f"billed    {bill.number or bill.invoice_id}{' as late usage' if bill.late else ''}")
    if found.subscribed and not found.billed and found.voided_offset is None:
        print(f"billed    not yet{': it came late, the next invoice has it' if found.late else ''}")


def check(lines: Iterator[Line]) -> Sent:
    """Count events and faults."""
    sent = Sent()
    for line in lines:
        if isinstance(line.event, Fault):
            sent.faults.append(line.event)
        else:
            sent.valid += 1
    return sent


def deliver(lines: Iterator[Line], tenant: str, source: str, settings: Settings) -> Sent:
    """Send the events among `lines` and wait for the brokers.

    Raises:
        Transient: Kafka cannot be reached.
    """
    sent = Sent()

    def delivered(report: Delivery) -> None:
        if report.error is None:
            sent.delivered += 1
        else:
            sent.not_delivered[report.error] = sent.not_delivered.get(report.error, 0) + 1

    client = settings.kafka_client()
    bootstrap = client.pop("bootstrap.servers")
    producer = UsageProducer(
        bootstrap,
        tenant,
        source=source,
        spread=usage_placing.published_to(settings, tenant),
        topic_prefix=settings.topic_prefix,
        kafka={**client, **QUIET},
    )
    try:
        producer.check()
        for line in lines:
            if isinstance(line.event, Fault):
                sent.faults.append(line.event)
            else:
                sent.valid += 1
                producer.send(line.event, delivered)
        producer.close()
    except Unreachable as error:
        raise Transient(f"Kafka at {bootstrap}: {error}") from error
    except NotDelivered as error:
        sent.not_delivered["no answer in time"] = error.waiting
    return sent


def _report(sent: Sent, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "valid": sent.valid,
                    "delivered": sent.delivered,
                    "faults": [asdict(each) for each in sent.faults],
                    "not_delivered": sent.not_delivered,
                    "dry_run": dry_run,
                }
            )
        )
        return
    for fault in sent.faults[:SHOWN_MAX]:
        _say(sys.stderr, f"line {fault.line}: {fault.field}{': ' if fault.field else ''}{fault.detail}")
    if len(sent.faults) > SHOWN_MAX:
        _say(sys.stderr, f"... and {len(sent.faults) - SHOWN_MAX:,} more lines; --json lists all")
    for reason, count in sent.not_delivered.items():
        _say(sys.stderr, f"{count:,} events not delivered: {reason}; send the file again, nothing counts twice")
    done = f"{sent.valid:,} events would be sent" if dry_run else f"{sent.delivered:,} events are on Kafka"
    print(f"{done}, {len(sent.faults):,} lines have a fault")


def _say(to: IO[str], text: str) -> None:
    to.write(text.encode("ascii", "backslashreplace").decode() + "\n")
