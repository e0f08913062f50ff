"""Events taken back, or put right, in records of their own."""

from __future__ import annotations

from datetime import datetime
from threading import Condition
from typing import NamedTuple

from tallybook_sdk.delivery import NotCorrected
from tallybook_sdk.event import NAME_LENGTH_MAX, InvalidEvent, UsageEvent
from tallybook_sdk.spread import Placing
from tallybook_sdk.transport import BY_KEY, Failure
from tallybook_sdk.wire import AMENDED, VOIDED, Schema, encode_text


class Correction(NamedTuple):
    """A record that corrects one event."""

    value: bytes
    schema: Schema
    partition: int
    """That of the event."""


class Answer:
    """What the brokers say to a correction."""

    def __init__(self, waiting: Condition) -> None:
        """`waiting`: notified when it came."""
        self._waiting = waiting
        self._failure: Failure | None = None
        self.came = False

    def __call__(self, failure: Failure | None, _partition: int, _offset: int) -> None:
        with self._waiting:
            self._failure, self.came = failure, True
            self._waiting.notify_all()

    def check(self) -> None:
        """Raises `NotCorrected` if it was a no."""
        if self._failure is not None:
            raise NotCorrected(self._failure.text)


def voided(tenant: str, source: str, id: str, reason: str, spread: Placing | None, time: datetime | None) -> Correction:
    """Takes the event (`source`, `id`) of `time`, if it is known, back.

    Raises:
        InvalidEvent: naming the field.
    """
    texts = [_name(field, text) for field, text in (("source", source), ("id", id), ("reason", reason))]
    partition = spread.partition(tenant, source, id, time) if spread else BY_KEY
    return Correction(b"".join((VOIDED.head, encode_text(tenant), *texts)), VOIDED, partition)


def amended(
    tenant: str, source: str, event: UsageEvent, encoded: bytes, reason: str, spread: Placing | None
) -> Correction:
    """Has the event with the id of `event`, which is `encoded`, count as `event`.

    Raises:
        InvalidEvent: naming the field.
    """
    value = b"".join((AMENDED.head, encode_text(tenant), encoded, _name("reason", reason)))
    partition = spread.partition(tenant, source, event.id, event.time) if spread else BY_KEY
    return Correction(value, AMENDED, partition)


def _name(field: str, text: str) -> bytes:
    if not 0 < len(text) <= NAME_LENGTH_MAX or not text.isprintable():
        raise InvalidEvent(field, f"allowed are 1 to {NAME_LENGTH_MAX} printable characters")
    return encode_text(text)
