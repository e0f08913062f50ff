"""The real clock. Loops take a `Clock`, so that the simulator and the tests can drive the same code."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a loop may ask about time."""

    def now(self) -> datetime:
        """The present instant, in UTC."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back. For deadlines only."""

    def sleep(self, seconds: float) -> None:
        """Wait. A simulated clock only moves its time on."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)
