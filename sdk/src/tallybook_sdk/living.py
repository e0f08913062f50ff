"""The producers of this process: what happens to them in a fork, and at its end."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol
from weakref import WeakSet

from tallybook_sdk.delivery import NotDelivered

AT_EXIT = timedelta(seconds=10)

log = logging.getLogger(__name__)


class Living(Protocol):
    """What holds events and threads."""

    def forget(self) -> None:
        """In the child of a fork: begin anew."""

    def close(self, timeout: timedelta = ...) -> None:
        """Send what it holds, and end."""


_living: WeakSet[Living] = WeakSet()
_hooked = False


def watch(each: Living) -> None:
    """From now on `each` is told of forks, and closed when the interpreter ends."""
    global _hooked
    _living.add(each)
    if not _hooked:
        _hooked = True
        atexit.register(_close_all)
        fork_hook: Callable[..., None] | None = getattr(os, "register_at_fork", None)  # Windows has no fork
        if fork_hook is not None:
            fork_hook(after_in_child=_forget_all)


def _forget_all() -> None:
    for each in list(_living):
        each.forget()


def _close_all() -> None:
    for each in list(_living):
        try:
            each.close(AT_EXIT)
        except NotDelivered as error:
            log.error("the process ends, and %s", error)
