"""What an event is recognised by, and what two events with one identity must share to be the same."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from operator import itemgetter
from typing import Any

from services.usage_measuring import RawEvent


class _Sources(dict[str, Any]):
    """Source -> a hash that has taken it in already."""

    def __missing__(self, source: str) -> Any:
        if len(self) > SOURCES_KNOWN_MAX:
            self.clear()
        made = self[source] = blake2b(f"{len(source)}:{source}".encode(), digest_size=16)
        return made


SOURCES_KNOWN_MAX = 10_000
_sources = _Sources()
_TIME_BYTES = 5  # of a UUIDv7's 48 bits of milliseconds since 1970: to a quarter of a second


def identity_of(source: str, id: str) -> str:
    """What an event is recognised by within its tenant: 32 hex digits (SEMANTICS 13)."""
    return identity_bytes(source, id).hex()


def identity_bytes(source: str, id: str) -> bytes:
    """The same as 16 bytes.

    A hash; but an id that tells when it was made (UUIDv7) keeps its first 40 bits, so that events of one time lie
    together.
    """
    hashed = _sources[source].copy()
    hashed.update(id.encode())
    digest: bytes = hashed.digest()
    if len(id) == 36 and id[14] == "7" and id[8] == id[13] == "-":
        try:
            time = bytes.fromhex(id[:8] + id[9:11])
        except ValueError:
            return digest
        if len(time) == _TIME_BYTES:  # white space is skipped
            return time + digest[_TIME_BYTES:]
    return digest


class _Shapes(dict[tuple[str, ...], tuple[str, Callable[[Any], Any]]]):
    """Names of properties -> the same in order, joined, and what takes their values in that order."""

    def __missing__(self, names: tuple[str, ...]) -> tuple[str, Callable[[Any], Any]]:
        if len(self) > SHAPES_KNOWN_MAX:
            self.clear()
        order = sorted(names)
        take = itemgetter(*order) if len(order) > 1 else lambda properties: [properties[name] for name in order]
        made = self[names] = ("\0".join(order), take)
        return made


SHAPES_KNOWN_MAX = 10_000
_shapes = _Shapes()


def content_of(raw: RawEvent) -> bytes:
    """What two events with the same identity must share to be the same: 16 bytes."""
    properties = raw["properties"]
    separators = 2 * len(properties) + 2 if properties else 3
    names, values_of = _shapes[tuple(properties)]
    text = "\0".join((raw["type"], raw["customer"], str(raw["time"]), names, *values_of(properties)))
    if text.count("\0") != separators:
        return _content_with_nul(raw)
    return blake2b(text.encode(), digest_size=16).digest()


def _content_with_nul(raw: RawEvent) -> bytes:
    """The same of an event with NUL in a name: a length before each part tells them apart."""
    parts = [raw["type"], raw["customer"], str(raw["time"])]
    for name, value in sorted(raw["properties"].items()):
        parts += (name, value)
    text = "".join([f"{len(each)}:{each}" for each in parts])
    return blake2b(text.encode(), digest_size=16, person=b"lengths").digest()
