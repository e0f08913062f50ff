"""One class per reaction. What a caller can do defines the class; what happened defines the message."""

from __future__ import annotations


class Rejected(Exception):
    """The rules say no. Nothing happened; the asker is told why and what is allowed."""

    def __init__(self, code: str, detail: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.code = code
        """Stable, snake_case, for programs."""
        self.detail = detail
        """For people: what is wrong and what is allowed."""
        self.field = field
        """Path of the offending field (`plans[0].charges[2].tiers[1].up_to`), or empty."""


class CorruptHistory(Exception):
    """Recorded events contradict the rules. Stop the process: no later decision could be trusted."""


class CurrencyMismatch(ValueError):
    """Two currencies met in one sum."""
