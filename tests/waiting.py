"""Wait for a condition, never for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.05


def eventually(condition: Callable[[], T], within_s: float = 10.0) -> T:
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
