"""One class per reaction to what the world does; `billing.errors` has those of the rules."""

from __future__ import annotations


class Transient(Exception):
    """It may work later: back off and repeat with the same keys. HTTP 503, exit code 69."""


class Poison(Exception):
    """This message can never work: set it aside with its reason and go on. HTTP 400."""


class Misconfigured(Exception):
    """Nothing can work until an operator changes the named setting. Exit code 78."""


class Conflict(Exception):
    """Somebody else was first: load again and decide again. HTTP 409."""
