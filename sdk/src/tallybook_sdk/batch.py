"""Events that travel together, on their way."""

from __future__ import annotations

import logging

from tallybook_sdk.delivery import Delivery, OnDelivery
from tallybook_sdk.event import UsageEvent
from tallybook_sdk.transport import BY_KEY

log = logging.getLogger(__name__)


class Batch:
    """The events of one record, and who hears of each."""

    __slots__ = ("bytes", "encoded", "events", "numbers", "partition", "reports", "serial", "since")

    def __init__(self, partition: int = BY_KEY, serial: int = 0) -> None:
        self.partition = partition
        self.serial = serial
        """Grows from batch to batch of a producer; its parts have it too."""
        self.events: list[UsageEvent] = []
        self.reports: dict[int, OnDelivery] = {}
        """By place; of the others, the producer's own hears."""
        self.encoded: list[bytes] = []
        self.bytes = 0
        self.since = 0.0
        self.numbers: list[int] = []
        """Of the events in the spool, if there is one."""

    def add(self, event: UsageEvent, encoded: bytes) -> None:
        """Take `event` along, which is `encoded`."""
        self.events.append(event)
        self.encoded.append(encoded)
        self.bytes += len(encoded)

    def part(self, start: int, end: int) -> Batch:
        """The events from place `start` to before `end`."""
        made = Batch(self.partition, self.serial)
        made.events, made.encoded = self.events[start:end], self.encoded[start:end]
        made.reports = {at - start: each for at, each in self.reports.items() if start <= at < end}
        made.numbers = self.numbers[start:end]
        return made


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Growing `numbers` as runs of neighbours: the first of each and how many they are."""
    found: list[tuple[int, int]] = []
    for each in numbers:
        first, count = found[-1] if found else (each, 0)
        if found and each == first + count:
            found[-1] = (first, count + 1)
        else:
            found.append((each, 1))
    return found


def tell(report: OnDelivery, delivery: Delivery) -> None:
    """Have whoever asked know."""
    try:
        report(delivery)
    except Exception:  # the caller's own, in our thread: it must not keep others from hearing of theirs
        log.exception("a delivery report raised")
