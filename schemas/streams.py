"""Which message travels on which stream, and the Avro namespace that follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from billing.envelope import CommandMeta, EventMeta
from billing.messages import STREAMS as MESSAGES


@dataclass(frozen=True, slots=True)
class Stream:
    """The messages of one topic."""

    name: str
    """Folder of its schemas, and last part of their namespace."""
    topic: str
    messages: tuple[type, ...]
    meta: type | None = None
    """Class of the first field of every record; None where messages carry their own."""

    @property
    def namespace(self) -> str:
        return f"tallybook.{self.name}"


_TOPICS: dict[str, tuple[str, type | None]] = {
    "commands": ("billing.commands", CommandMeta),
    "events": ("billing.events", EventMeta),
    "results": ("billing.results", None),
    "usage": ("usage.events", None),
    "rejected": ("usage.rejected", None),
}
STREAMS = tuple(Stream(name, _TOPICS[name][0], messages, _TOPICS[name][1]) for name, messages in MESSAGES.items())


def declared() -> Iterator[tuple[Stream, type]]:
    """Every message with its stream, in order of declaration."""
    for stream in STREAMS:
        for message in stream.messages:
            yield stream, message
