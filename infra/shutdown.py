"""SIGTERM and SIGINT ask a process to finish what it holds; this is how its loop hears of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def on_signals() -> threading.Event:
    """An event that is set by the first SIGTERM or SIGINT. From then on a process has 10 s. Main thread only."""
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop
