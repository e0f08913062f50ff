"""Placing the events of a large tenant, whose usage is spread over several partitions of the log.

The same rule as the server's; it refuses an event that lies elsewhere, so that copies of one event always meet.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Protocol, Self

from tallybook_sdk.event import InvalidEvent


class Placing(Protocol):
    """Knows where a tenant's events belong."""

    def ready(self) -> None:
        """Return once it is known. Raises `Unreachable` if nobody tells."""

    def partition(self, tenant: str, source: str, id: str, time: datetime | None) -> int:
        """Where an event belongs. Raises `InvalidEvent` if that takes its time, and there is none."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a tenant's usage is spread: what `GET /v1/usage/spread` answers."""

    log_partitions: int
    """Of the topic `usage.events`."""
    versions: Sequence[tuple[datetime, int]] = ()
    """First event time, with offset, and over how many partitions from then on; in order of time."""

    def __post_init__(self) -> None:
        if self.log_partitions < 1 or any(width < 1 for _, width in self.versions):
            raise ValueError("spread: partitions are 1 or more")
        times = [time for time, _ in self.versions]
        if any(time.utcoffset() is None for time in times):
            raise ValueError("spread: times need an offset from UTC")
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("spread: times must grow")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The spread in an answer of `GET /v1/usage/spread`.

        Raises:
            ValueError: it is none.
        """
        try:
            told = json.loads(text)
            versions = [
                (datetime.fromisoformat(each["effective_from"]), int(each["partitions"])) for each in told["versions"]
            ]
            return cls(int(told["log_partitions"]), tuple(versions))
        except (KeyError, TypeError) as e:
            raise ValueError(f"spread: no answer of /v1/usage/spread: {e}") from e

    def ready(self) -> None:
        """It is known: this is it."""

    def partition(self, tenant: str, source: str, id: str, time: datetime | None) -> int:
        """Where an event belongs. Raises `InvalidEvent` if that takes its time, and there is none."""
        if time is not None:
            known = bisect_right(self.versions, time, key=lambda each: each[0])
            return self._place(tenant, source, id, self.versions[known - 1][1] if known else 1)
        found = {self._place(tenant, source, id, width) for width in (1, *(width for _, width in self.versions))}
        if len(found) > 1:
            said = "the tenant's usage is spread in different ways at different times: tell that of the event"
            raise InvalidEvent("time", said)
        return found.pop()

    def _place(self, tenant: str, source: str, id: str, width: int) -> int:
        width = min(width, self.log_partitions)
        home = home_of(tenant, self.log_partitions)
        if width == 1:
            return home
        scattered = int.from_bytes(sha256(f"{source}\0{id}".encode()).digest()[:4], "big")
        return (home + scattered % width) % self.log_partitions


_homes: dict[tuple[str, int], int] = {}


def home_of(tenant: str, partitions: int) -> int:
    """The partition of the tenant's key, as Java's clients and `murmur2_random` have it."""
    known = _homes.get((tenant, partitions))
    if known is None:
        known = _homes[tenant, partitions] = (_murmur2(tenant.encode()) & 0x7FFFFFFF) % partitions
    return known


def _murmur2(data: bytes) -> int:
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
