"""Records that can never be processed are kept, with the reason and where they lay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from infra.kafka import Record

QUARANTINE: Final = "billing.quarantine"
_KEY_OF_NONE = "unknown"
_DETAIL_LENGTH_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Output:
    """One record to be written to the partition of the command it answers."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """Of key, value and headers."""
        return len(self.key.encode()) + len(self.value) + sum(len(n) + len(v) + 8 for n, v in self.headers.items())


def quarantined(record: Record, reason: str, detail: str) -> Output:
    """`record` as it was, with its own headers and those that say why it lies here.

    A key that is no text stands in the header `dlq-key`. A record without a value gets an empty one.
    """
    headers = {
        **record.headers,
        "dlq-reason": reason.encode(),
        "dlq-topic": record.topic.encode(),
        "dlq-partition": str(record.partition).encode(),
        "dlq-offset": str(record.offset).encode(),
        "dlq-exception": detail[:_DETAIL_LENGTH_MAX].encode(errors="backslashreplace"),
        "dlq-app-version": app_version().encode(),
    }
    try:
        key = (record.key or b"").decode()
    except UnicodeDecodeError:
        key = ""
    if not key:
        headers["dlq-key"] = record.key or b""
    return Output(QUARANTINE, key or _KEY_OF_NONE, record.value or b"", headers)


def app_version() -> str:
    """The version of this program."""
    try:
        return version("tallybook")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"
