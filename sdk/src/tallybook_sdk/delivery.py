"""What became of events, and what can go wrong on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tallybook_sdk.event import UsageEvent


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one event."""

    event: UsageEvent
    partition: int
    """-1 if it was not taken."""
    offset: int
    """Of the batch it travelled in; -1 if it was not taken."""
    index: int
    """Its place in that batch."""
    error: str | None
    """None if the brokers have it. Else it may lie there all the same: send it again, with its id."""


OnDelivery = Callable[[Delivery], None]


class NotDelivered(Exception):
    """Some events were not acknowledged. Send them again, with their ids: those that lie there count once."""

    def __init__(self, failures: Sequence[Delivery], under_way: Sequence[UsageEvent], *, spooled: bool = False) -> None:
        reasons = sorted({each.error or "" for each in failures})
        if under_way:
            reasons.append("no answer in time" + (", the spool keeps them" if spooled else ""))
        super().__init__(f"{len(failures) + len(under_way)} events not delivered: {', '.join(reasons)}")
        self.failures = list(failures)
        """The events whose delivery failed, and which no report was asked for."""
        self.under_way = list(under_way)
        """The events that have no answer yet. They may still arrive."""

    @property
    def waiting(self) -> int:
        """Number of events still under way."""
        return len(self.under_way)


class NotCorrected(Exception):
    """The brokers may not have a void or an amendment, says why. Do it again: what lies there twice changes nothing."""


class BufferFull(Exception):
    """As many events are under way as the producer may hold. This one was not taken: wait, or drop it knowingly."""


class Unreachable(Exception):
    """The brokers do not answer, or have no topic for usage; or the API does not tell the spread."""
