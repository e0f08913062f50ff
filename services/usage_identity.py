"""What an event is recognised by, and what two events with one identity must share to be the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from services.usage_measuring import RawEvent

SCHEME = "2"
"""Of the identities made here. Another function needs another name, and a rebuilt generation (`usage.sql`)."""
_BYTES = 16
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_UUID_LENGTH = 36
_DASHES = (8, 13, 18, 23)
_TIME_BYTES = 6  # of a UUIDv7: milliseconds since 1970
SOURCES_KNOWN_MAX = 10_000


class _Source(NamedTuple):
    """What a source does to the ids of its events."""

    hashed: Any
    """A hash that has taken it in already."""
    mask: bytes
    """What turns a UUID's bits over, but for those of its time."""


class _Sources(dict[str, _Source]):
    def __missing__(self, source: str) -> _Source:
        if len(self) > SOURCES_KNOWN_MAX:
            self.clear()
        hashed = blake2b(f"{len(source)}:{source}".encode(), digest_size=_BYTES)
        made = self[source] = _Source(hashed, bytes(_TIME_BYTES) + hashed.digest()[_TIME_BYTES:])
        return made


_sources = _Sources()


def identity_of(source: str, id: str) -> str:
    """What an event is recognised by within its tenant: 32 hex digits (SEMANTICS 13)."""
    return identity_bytes(source, id).hex()


def identity_bytes(source: str, id: str) -> bytes:
    """The same as 16 bytes.

    A hash. But a UUID, written as is usual, stays one, and only what is not its time is turned over by the source:
    two of one source never meet, and events of one time lie together.
    """
    known = _sources[source]
    if len(id) == _UUID_LENGTH and _UUID(id):
        return _turned(bytes.fromhex(id.replace("-", "")), known.mask)
    hashed = known.hashed.copy()
    hashed.update(id.encode())
    digest: bytes = hashed.digest()
    return digest


def mask_of(source: str) -> bytes:
    """What `identities` needs of a source: 16 bytes."""
    return _sources[source].mask


def identities(ids: Sequence[bytes], masks: Sequence[bytes]) -> list[bytes] | None:
    """`identity_bytes` of many at once, if each id is a UUID as is usual; None if one is not."""
    text = b"".join(ids)
    digits = text.replace(b"-", b"")
    if set(map(len, ids)) != {_UUID_LENGTH} or len(digits) != 2 * _BYTES * len(ids):
        return None
    if any(text[at::_UUID_LENGTH].count(b"-") != len(ids) for at in _DASHES):
        return None
    try:
        plain = bytes.fromhex(digits.decode("ascii"))
    except ValueError:  # or UnicodeDecodeError, which is one
        return None
    if plain.hex().encode() != digits:  # upper case, or white space
        return None
    turned = _turned(plain, b"".join(masks))
    return [turned[at : at + _BYTES] for at in range(0, len(turned), _BYTES)]


def _turned(plain: bytes, mask: bytes) -> bytes:
    return (int.from_bytes(plain, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(plain), "big")


_EMPTY = blake2b(digest_size=_BYTES)


def content_of(raw: RawEvent) -> bytes:
    """What two events with the same identity must share to be the same: 16 bytes."""
    properties = raw["properties"]
    parts = [_string(raw["type"]), _string(raw["customer"]), _long(raw["time"])]
    if properties:
        named = sorted([(name.encode(), value) for name, value in properties.items()])
        parts.append(_long(len(named)))
        parts += [_long(len(name)) + name + _string(value) for name, value in named]
    return content_hash(b"".join((*parts, b"\0")))


def content_hash(written: bytes) -> bytes:
    """`content_of` an event whose type, customer, time and properties are `written` in Avro, in one block, by name."""
    hashed = _EMPTY.copy()
    hashed.update(written)
    digest: bytes = hashed.digest()
    return digest


def _string(text: str) -> bytes:
    data = text.encode()
    return _long(len(data)) + data


def _long(value: int) -> bytes:
    left = value << 1 if value >= 0 else ~(value << 1)
    made = bytearray()
    while left > 0x7F:
        made.append(left & 0x7F | 0x80)
        left >>= 7
    made.append(left)
    return bytes(made)
