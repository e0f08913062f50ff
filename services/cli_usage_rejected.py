"""`tallybook usage rejected`: what was refused, why, and sending it again once the cause is mended."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer

from billing.errors import Rejected
from billing.period import Period
from infra.kafka import KafkaConfig, Producer
from infra.postgres import Cursor
from infra.settings import Settings
from projections import generation, usage_events
from projections.usage_events import Place, Refused
from services import cli_world
from services.usage_log import UsageLog, event_in
from services.usage_placing import Layout
from services.usage_requeue import HOPELESS, Requeued, counted_since, requeue

REFUSED = 1
PAGE = 1_000

Tenant = Annotated[str | None, typer.Option(help="Needed if there is more than one.")]
Code = Annotated[str | None, typer.Option(help="Only refusals with this code, such as unknown_meter.")]
Source = Annotated[str | None, typer.Option(help="Only events of this source.")]
Since = Annotated[str | None, typer.Option(help="Only what was received from this time on: 2026-02-01, UTC.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(usage: typer.Typer) -> None:
    """Add `rejected` to the group `usage`."""
    group = typer.Typer(help="Usage that was refused.", no_args_is_help=True)
    usage.add_typer(group, name="rejected")
    group.command("list")(list_)
    group.command()(show)
    group.command("requeue")(again)


def list_(
    tenant: Tenant = None,
    code: Code = None,
    source: Source = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List refusals, the newest first. `requeue` takes the positions in the first column."""
    with cli_world.reading(cli_world.settings()) as tx:
        chosen = cli_world.the_tenant(tx, tenant)
        found = _chosen(tx, chosen, [], code, source, since, limit)
        rows = [(each, counted_since(tx, each)) for each in found]
    if as_json:
        print(json.dumps([refusal(each) | {"counted_since": since} for each, since in rows], default=str))
        return
    header = ("position", "received", "source", "id", "events", "code", "field", "detail", "now")
    table = [
        (
            position(each.place),
            f"{each.appended_at:%Y-%m-%d %H:%M:%S}",
            each.source or "",
            each.id or "",
            str(each.events),
            each.reason,
            each.field,
            each.detail[:60],
            "counted" if since else "",
        )
        for each, since in rows
    ]
    print(cli_world.table(header, table, right=("events",)))


def show(
    at: Annotated[str, typer.Argument(metavar="POSITION", help="Such as 2/1841/7, from `list`.")],
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show one refusal with its original, from the log."""
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        (found,) = _chosen(tx, cli_world.the_tenant(tx, tenant), [at], None, None, None, 1)
        since = counted_since(tx, found)
    with closing(UsageLog(settings)) as log:
        record = log.records([found.place[:2]]).get(found.place[:2])
    event = None if record is None else event_in(record, found.place.batch_index)
    told = refusal(found) | {"counted_since": since, "event": event}
    if event is None and record is not None:
        told["record_hex"] = (record.value or b"").hex()
    if as_json:
        print(json.dumps(told, default=str))
        return
    for name, value in told.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        print(f"{name:<14} {text.encode('ascii', 'backslashreplace').decode()}")
    if record is None:
        print("original       the log does not hold it any more")


def again(
    places: Annotated[list[str] | None, typer.Argument(metavar="[POSITION]...")] = None,
    tenant: Tenant = None,
    code: Code = None,
    source: Source = None,
    since: Since = None,
    everything: Annotated[bool, typer.Option("--all", help="All refusals, or all that the options choose.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send refused usage again, after its cause was mended: the same events with the same ids.

    What was counted meanwhile is left out, so a second requeue sends nothing twice; what is refused again shows up in
    the list with its new position. Exit code 1: something cannot be sent.
    """
    if bool(places) == everything:
        raise typer.BadParameter("give positions, or --all with or without --code, --source and --since")
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = cli_world.the_tenant(tx, tenant)
        refusals = _chosen(tx, chosen, places or [], code, source, since, None)
        done = _requeue(settings, tx, refusals, dry_run=dry_run)
    _report(done, as_json)
    raise typer.Exit(REFUSED if any(each.outcome == HOPELESS for each in done) else 0)


def _requeue(settings: Settings, tx: Cursor, refusals: list[Refused], *, dry_run: bool) -> list[Requeued]:
    """In pages, the oldest first."""
    done: list[Requeued] = []
    layout = Layout(settings.usage_partitions)
    producer = None if dry_run else Producer(KafkaConfig.of(settings))
    oldest_first = refusals[::-1]
    with closing(UsageLog(settings)) as log:
        for at in range(0, len(oldest_first), PAGE):
            page = oldest_first[at : at + PAGE]
            records = log.records(each.place[:2] for each in page)
            done += requeue(tx, records, page, producer, datetime.now(UTC), layout)
    return done


def _report(done: list[Requeued], as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                [refusal(each.refused) | {"outcome": each.outcome, "why": each.detail} for each in done], default=str
            )
        )
        return
    for each in done:
        if each.outcome == HOPELESS or len(done) <= 20:
            print(f"{position(each.refused.place)}  {each.outcome}{f': {each.detail}' if each.detail else ''}")
    counts: dict[str, int] = {}
    for each in done:
        counts[each.outcome] = counts.get(each.outcome, 0) + each.refused.events
    print(", ".join(f"{count:,} events {outcome}" for outcome, count in counts.items()) or "nothing to send again")


def position(place: Place) -> str:
    """`place` as the commands take it."""
    return f"{place.partition}/{place.offset}" + (f"/{place.batch_index}" if place.batch_index >= 0 else "")


def place_of(text: str) -> Place:
    """The other way. Raises `BadParameter`."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(each.isascii() and each.isdigit() and len(each) < 19 for each in parts):
        raise typer.BadParameter(f"{text!r} is no position such as 2/1841/7 or, of a whole record, 2/1841")
    partition, offset, *index = map(int, parts)
    return Place(partition, offset, index[0] if index else -1)


def _chosen(
    tx: Cursor,
    tenant: str,
    places: list[str],
    code: str | None,
    source: str | None,
    since: str | None,
    limit: int | None,
) -> list[Refused]:
    """The newest first. Raises `Rejected` for a position where nothing was refused."""
    generation.enter_all(tx)
    if places:
        wanted = [place_of(each) for each in places]
        found = {each.place: each for each in usage_events.refused_at(tx, tenant, wanted)}
        missing = [position(each) for each in wanted if each not in found]
        if missing:
            raise Rejected("unknown_position", f"nothing of {tenant} was refused at {', '.join(missing)}")
        return sorted(found.values(), key=lambda each: each.place, reverse=True)
    period = None if since is None else Period.between(time_of(since), datetime(9999, 1, 1, tzinfo=UTC), "since")
    return usage_events.refused(tx, tenant, period=period, reason=code, source=source, limit=limit or 10**9)


def time_of(text: str) -> datetime:
    """A time; of one without an offset, in UTC. Raises `BadParameter`."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r} is no time such as 2026-02-01 or 2026-02-01T00:00:00Z") from e
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def refusal(each: Refused) -> dict[str, object]:
    """A refusal for programs."""
    told = each._asdict()
    told["place"] = position(each.place)
    return {"position": told.pop("place"), "fate": each.fate, **told}
