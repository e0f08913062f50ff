"""`tallybook reconcile --hours`: the two counts of the usage log, hour by hour, without reading the log again."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta

from infra import postgres
from infra.errors import Transient
from infra.settings import Settings
from services import cli_world, usage_recount
from services.usage_recount import Difference, Hour

_COLUMNS = ("received", "counted", "duplicate", "conflict", "rejected")


def report(settings: Settings, tenant: str | None, last: timedelta, *, as_json: bool) -> bool:
    """Print the hours, and what differs in any hour; whether everything adds up.

    Raises:
        Transient: Postgres does not answer, or nobody counts a second time.
    """
    with postgres.worker_pool(settings, size=1) as pool, postgres.transaction(pool) as tx:
        differing = usage_recount.differences(tx)
        if not usage_recount.places(tx):
            raise Transient("the log was never counted a second time: `tallybook run recount` does")
        hours = usage_recount.hours(tx, datetime.now(UTC) - last, tenant)
    found = [each for each in differing if tenant in (None, each.tenant)]
    if as_json:
        told = {"balanced": not found, "differences": _plain(found), "hours": _plain(hours)}
        print(json.dumps(told, default=str))
    else:
        _show(hours, found)
    return not found


def _plain(rows: list[Hour] | list[Difference]) -> list[dict[str, object]]:
    return [dataclasses.asdict(each) for each in rows]


def _show(hours: list[Hour], found: list[Difference]) -> None:
    rows = [
        (each.tenant or "(not told)", f"{each.hour:%Y-%m-%d %H}h", *(f"{getattr(each, name):,}" for name in _COLUMNS))
        for each in hours
    ]
    print(cli_world.table(("tenant", "hour", *_COLUMNS), rows, right=_COLUMNS))
    for each in found:
        print(
            f"{each.tenant or '(not told)'}, {each.hour:%Y-%m-%d %H}h, partition {each.partition}:"
            f" {each.received:,} received, {each.accounted:,} accounted for"
        )
    print("differences found" if found else "every hour adds up, as far as both have counted")
