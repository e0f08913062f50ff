"""Ends a process that holds records and does not move, from a thread of its own.

Consumers die in silence: the group still counts them, and nothing is read any more. So each position that a process
holds is held against the log itself, with a client of the watchdog's own; a process that could apply a record and has
not moved for `stall_timeout`, or was given a position and has not begun to read it for as long, ends with code 70, and
whoever supervises it starts it again at its stored place. While the cluster does not answer nothing can move, and
nobody is ended for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from infra import telemetry
from infra.errors import Misconfigured, Transient
from infra.kafka import Consumer, KafkaConfig, Position
from infra.settings import Settings

log = telemetry.logger("infra.watchdog")

STALLED: Final = 70
LOOK_S: Final = 2.0
_PATIENCE_S: Final = 5.0

AGE = telemetry.gauge(
    "consumer_oldest_unapplied_seconds",
    "Age of the oldest record that this process holds and has not applied; 0 if there is none.",
    "topic",
    "partition",
)


@dataclass(frozen=True, slots=True)
class Unapplied:
    """The oldest record that was not applied."""

    offset: int
    appended_at: datetime


class Probe(Protocol):
    """Asks the log itself."""

    def end(self, position: Position) -> int:
        """Where the partition ends, up to the first open transaction. Raises `Transient`."""

    def oldest(self, position: Position, offset: int) -> Unapplied | None:
        """The first committed record from `offset` on; None if only markers follow. Raises `Transient`."""


@dataclass(slots=True)
class _Held:
    """A position that this process holds."""

    next_offset: int
    still_since: float | None = None
    """When it was first seen to hold a record and not to move (monotonic)."""


class Watchdog:
    """Knows what this process holds and how far it is. Told from any thread."""

    def __init__(self, probe: Probe, limit_s: float, end: Callable[[int], object] = os._exit) -> None:
        self._probe = probe
        self._limit_s = limit_s
        self._end = end
        self._held: dict[Position, _Held] = {}
        self._awaited: dict[Position, float | None] = {}
        """Given to us and not read yet: since when that was seen (monotonic)."""
        self._lock = threading.Lock()

    def awaits(self, positions: Iterable[Position]) -> None:
        """They are ours; `holds` tells that they are read."""
        with self._lock:
            self._awaited = dict.fromkeys(positions)

    def holds(self, starts: Mapping[Position, int], *, only: bool = False) -> None:
        """These positions are ours from now on, applied up to `starts`; `only`: and no others."""
        with self._lock:
            self._forget(starts)
            if only:
                self._drop([each for each in self._held if each not in starts])
            self._held |= {position: _Held(offset) for position, offset in starts.items()}

    def lets_go(self, positions: Iterable[Position]) -> None:
        """They are another's now."""
        with self._lock:
            given = list(positions)
            self._forget(given)
            self._drop(given)

    def applied(self, position: Position, next_offset: int) -> None:
        """Everything below `next_offset` is done."""
        with self._lock:
            held = self._held.get(position)
            if held is not None and held.next_offset != next_offset:
                self._held[position] = _Held(next_offset)

    def look(self, now_s: float, wall: datetime) -> None:
        """Show lag and age of every position; end the process if one has been still for too long."""
        with self._lock:
            seen = {position: held.next_offset for position, held in self._held.items()}
            awaited = list(self._awaited)
        for position in awaited:
            self._judge_awaited(position, now_s)
        for position, next_offset in seen.items():
            try:
                lag = max(0, self._probe.end(position) - next_offset)
                oldest = self._probe.oldest(position, next_offset) if lag else None
            except (Transient, Misconfigured) as error:
                log.warning("the log cannot be asked how far it is", topic=position[0], reason=str(error))
                oldest, lag = None, None
            self._judge(position, next_offset, lag, oldest, now_s, wall)

    def _judge_awaited(self, position: Position, now_s: float) -> None:
        answers = True
        try:
            self._probe.end(position)
        except (Transient, Misconfigured):
            answers = False
        with self._lock:
            if position not in self._awaited:
                return  # it is read meanwhile, or another's
            since = self._awaited[position]
            if since is None or not answers:
                since = self._awaited[position] = now_s
        if now_s - since >= self._limit_s:
            log.error("reading does not begin", topic=position[0], partition=position[1], still_s=round(now_s - since))
            self._end(STALLED)

    def _judge(
        self,
        position: Position,
        next_offset: int,
        lag: int | None,
        oldest: Unapplied | None,
        now_s: float,
        wall: datetime,
    ) -> None:
        topic, partition = position
        with self._lock:
            held = self._held.get(position)
            if held is None or held.next_offset != next_offset:
                return  # it moved meanwhile
            if lag is not None:
                telemetry.LAG.labels(topic, str(partition)).set(lag if oldest else 0)
                age_s = (wall - oldest.appended_at).total_seconds() if oldest else 0
                AGE.labels(topic, str(partition)).set(max(0.0, age_s))
            if oldest is None:
                held.still_since = None
                return
            if held.still_since is None:
                held.still_since = now_s
            still_s = now_s - held.still_since
        if still_s >= self._limit_s:
            log.error(
                "worker holds records and does not move", topic=topic, partition=partition, offset=oldest.offset,
                still_s=round(still_s), lag=lag,
            )  # fmt: skip
            self._end(STALLED)

    def _forget(self, positions: Iterable[Position]) -> None:
        for each in positions:
            self._awaited.pop(each, None)

    def _drop(self, positions: Iterable[Position]) -> None:
        for topic, partition in positions:
            if self._held.pop((topic, partition), None) is not None:
                for gauge in (telemetry.LAG, AGE):
                    with contextlib.suppress(KeyError):
                        gauge.remove(topic, str(partition))


class LogProbe:
    """A `Probe` of a real cluster; one thread at a time."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._consumer: Consumer | None = None

    def end(self, position: Position) -> int:
        return self._reader().end(position, _PATIENCE_S)

    def oldest(self, position: Position, offset: int) -> Unapplied | None:
        reader = self._reader()
        reader.assign({position: offset})
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline:
                records = reader.poll(1, 0.1)
                if records:
                    return Unapplied(records[0].offset, records[0].appended_at)
                if position in reader.at_end:
                    return None
            raise Transient(f"Kafka: nothing was read from {position[0]}[{position[1]}] in {_PATIENCE_S} s")
        finally:
            reader.assign({})

    def _reader(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(self._config, "watchdog", reset="earliest", **_ONE_RECORD)
        return self._consumer


_ONE_RECORD: Final[Mapping[str, Any]] = {
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 64,
    "fetch.message.max.bytes": 1_024,
}


class Pulse:
    """Ends a process whose loop came to a standstill; for loops that read no log of their own."""

    def __init__(self, limit_s: float, end: Callable[[int], object] = os._exit) -> None:
        self._limit_s = limit_s
        self._end = end
        self._beat_s = time.monotonic()

    def beat(self) -> None:
        """The loop goes on; say it each time round, also after what failed."""
        self._beat_s = time.monotonic()

    def look(self, now_s: float) -> None:
        """End the process if the last beat is too long ago."""
        still_s = now_s - self._beat_s
        if still_s >= self._limit_s:
            log.error("loop does not go on", still_s=round(still_s))
            self._end(STALLED)


def beating(settings: Settings) -> Pulse:
    """A pulse that is looked at every two seconds as long as the process lives."""
    pulse = Pulse(settings.stall_timeout.total_seconds())
    _look_always(pulse.look)
    return pulse


def watched(settings: Settings) -> Watchdog:
    """A watchdog that looks every two seconds as long as the process lives."""
    watchdog = Watchdog(LogProbe(KafkaConfig.of(settings)), settings.stall_timeout.total_seconds())
    _look_always(lambda now_s: watchdog.look(now_s, datetime.now(UTC)))
    return watchdog


def _look_always(look: Callable[[float], None]) -> None:
    def run() -> None:
        while True:
            time.sleep(LOOK_S)
            try:
                look(time.monotonic())
            except Exception:  # without a watchdog the process is not watched; that must not be silent either
                log.exception("watchdog failed")

    threading.Thread(target=run, name="watchdog", daemon=True).start()
