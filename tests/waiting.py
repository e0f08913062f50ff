"""Wait for a condition, never for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 120.0
"""Long enough for any start or move of processes on a busy machine: it costs time only where something is wrong."""

_POLL_S = 0.05


def eventually(condition: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """The first true value of `condition`, which may raise until then.

    Raises:
        AssertionError: there was none in `within_s` seconds; says what it was last.
    """
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        raised: Exception | None = None
        value: T | None = None
        try:
            value = condition()
        except Exception as error:  # a condition that cannot be asked yet is not true yet
            raised = error
        if value:
            return value
        if time.monotonic() >= deadline:
            what = f"raised {raised!r}" if raised else f"was {value!r}"
            raise AssertionError(f"not true within {within_s} s; at the end it {what}") from raised
        pause.wait(_POLL_S)
