"""What can be wrong with a value that should become bytes, and with bytes that should become a value."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "null_value",  # no value at all: a tombstone
    "bad_framing",  # too short to say which schema it was written with
    "bad_magic",  # neither single-object encoding nor Confluent framing
    "unknown_schema",  # no released schema has this fingerprint or id, or it belongs to another stream
    "truncated",  # ends in the middle of a field
    "trailing_bytes",  # goes on after the last field
    "corrupt_avro",  # no writer of Avro produces these bytes
    "corrupt_json",  # begins as JSON does, and is none
    "invalid_value",  # Avro or JSON in order, but a value that the message cannot hold
]


class DecodeError(Exception):
    """These bytes can never be read: quarantine them with `reason` and `detail`, and go on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        """Stable, for programs."""
        self.detail = detail
        """For people: where in the record, and what stands there."""


class FieldError(ValueError):
    """A value at `path` (`lines[2].amount.minor`) that the schema cannot hold."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def under(self, parent: str) -> FieldError:
        """The same error seen from the enclosing record: `parent` goes before the path."""
        joined = parent if not self.path else parent + self.path if self.path[0] == "[" else f"{parent}.{self.path}"
        return type(self)(joined, self.reason)


class EncodeError(FieldError):
    """A value that must not reach the log: wrong type, too fine, too large, or without a zone."""


class InvalidValue(FieldError):
    """A recorded value that the message's class refuses."""
