"""Placing: which partition of the usage log an event belongs to.

A tenant's usage lies in its home, the partition of its key, unless it is spread:

    event time   |------- no spread -------|---- 2 partitions ----|---- 3 partitions ----> versions, append-only
    partitions     home                      home, +1               home, +1, +2

The version is chosen by the time of the *event*, and the place within it by the event's identity. So the copies of one
event meet in one partition for ever, whenever they are sent and whatever the spread is by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256

PARTITIONS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Over how many partitions a tenant's usage is spread, from some event time on until the next version's."""

    effective_from: datetime
    """Events with this time (UTC) or a later one are spread so."""
    partitions: int
    """Home and those that follow it, around the end; 1: home only."""


def width_at(spread: Sequence[Spread], time: datetime) -> int:
    """Over how many partitions events of `time` are spread. `spread` is in order of time."""
    known = bisect_right(spread, time, key=lambda each: each.effective_from)
    return spread[known - 1].partitions if known else 1


def scatter(source: str, id: str) -> int:
    """The number that decides where within a spread an event lies: evenly from 0 to 2**32 - 1."""
    return int.from_bytes(sha256(f"{source}\0{id}".encode()).digest()[:4], "big")


def partition_of(home: int, partitions: int, width: int, source: str, id: str) -> int:
    """The partition of an event, of `partitions` that the log has, where its tenant's usage is `width` wide.

    A width beyond the log's partitions is all of them.
    """
    if width <= 1:
        return home
    return (home + scatter(source, id) % min(width, partitions)) % partitions


@lru_cache(maxsize=4_096)
def touched(home: int, partitions: int, spread: tuple[Spread, ...]) -> tuple[int, ...]:
    """Every partition in which usage of the tenant may lie under any version, in order."""
    width = max((1, *(each.partitions for each in spread)))
    return tuple(sorted({(home + each) % partitions for each in range(min(width, partitions))}))
