"""The topics, from `topics.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

PARTITIONS_BY_DEFAULT = {"billing": 6, "usage": 6}
MIN_INSYNC_REPLICAS = 2  # a lost broker neither loses an acknowledged record nor stops the writers
_DAY_MS = 86_400_000
_FILE = Path(__file__).with_name("topics.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic as it must be."""

    name: str
    stream: str
    """Folder of the schemas of its records."""
    doc: str
    partitions: Literal["billing", "usage"]
    """Which setting gives the number: topics of one kind have the same, and a tenant the same partition in each."""
    key: str
    retention_days: int | None
    """Whole days; None is for ever."""
    max_message_bytes: int

    def config(self, replication: int = 3) -> dict[str, str]:
        """The broker's settings of the topic, on a cluster that keeps `replication` copies."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": "-1" if self.retention_days is None else str(self.retention_days * _DAY_MS),
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",  # the broker's clock judges how late an event is
            "min.insync.replicas": str(min(MIN_INSYNC_REPLICAS, max(1, replication - 1))),
            "max.message.bytes": str(self.max_message_bytes),
        }


@cache
def bundled_topics() -> tuple[Topic, ...]:
    """All topics, in the order of the file."""
    with _FILE.open("rb") as file:
        table = tomllib.load(file)
    return tuple(_topic(name, entry) for name, entry in table.items())


def topic(name: str) -> Topic:
    """The topic called `name`; KeyError if there is none."""
    return {each.name: each for each in bundled_topics()}[name]


def _topic(name: str, entry: dict[str, object]) -> Topic:
    kept = entry.pop("retention_days")
    return Topic(name=name, retention_days=None if kept == "forever" else kept, **entry)  # type: ignore[arg-type]
