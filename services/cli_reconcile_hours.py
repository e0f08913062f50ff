"""`tallybook reconcile --hours`: the two counts of the usage log, hour by hour, without reading the log again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from infra import postgres
from infra.errors import Transient
from infra.settings import Settings
from services import cli_world, usage_recount
from services.usage_recount import Difference, Gap, Hour

_COLUMNS = ("received", "counted", "duplicate", "conflict", "rejected", "voided", "amended")


def report(settings: Settings, tenant: str | None, last: timedelta, *, as_json: bool) -> bool:
    """Print the hours, and what differs in any hour; whether everything adds up.

    Raises:
        Transient: Postgres does not answer, or nobody counts a second time.
    """
    with postgres.worker_pool(settings, size=1) as pool, postgres.transaction(pool) as tx:
        differing = usage_recount.differences(tx)
        if not usage_recount.places(tx):
            raise Transient("the log was never counted a second time: `tallybook run recount` does")
        since = datetime.now(UTC) - last
        hours = usage_recount.hours(tx, since, tenant)
        gaps = [each for each in usage_recount.gaps(tx) if each.until is None or each.until >= since]
    found = [each for each in differing if tenant in (None, each.tenant)]
    if as_json:
        told = {"balanced": not found, "differences": _plain(found), "hours": _plain(hours), "gaps": _plain(gaps)}
        print(json.dumps(told, default=str))
    else:
        _show(hours, found, gaps)
    return not found


def _plain(rows: Sequence[Hour | Difference | Gap]) -> list[dict[str, object]]:
    return [dataclasses.asdict(each) for each in rows]


def _show(hours: list[Hour], found: list[Difference], gaps: list[Gap]) -> None:
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
    for gap in gaps:
        print(f"note: usage.events/{gap.partition}: {_uncounted(gap)}")
    print("differences found" if found else "every hour adds up, as far as both have counted")


def _uncounted(gap: Gap) -> str:
    since = "" if gap.since is None else f" from {gap.since:%Y-%m-%d %H}h on"
    until = "" if gap.until is None else f" up to {gap.until:%Y-%m-%d %H}h"
    cut = f"retention took offsets {gap.first_offset} to {gap.next_offset - 1} before they were counted a second time"
    return f"{cut}: hours{since}{until} are not compared"
