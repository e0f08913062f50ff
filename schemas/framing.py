"""The bytes before a record, which say what schema it was written with.

Single-object encoding (C3 01, then the schema's 8-byte CRC-64-AVRO fingerprint) needs no server and is
the default. Confluent framing (00, then the schema's 4-byte id) is written when a registry is configured.
The first byte tells them apart, so a log may hold both. Usage may also come as JSON, which begins with neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from schemas.errors import DecodeError

SINGLE_OBJECT = b"\xc3\x01"
FINGERPRINT_BYTES = 8
SINGLE_OBJECT_BYTES = len(SINGLE_OBJECT) + FINGERPRINT_BYTES
CONFLUENT = b"\x00"
CONFLUENT_BYTES = 5


class Registry(Protocol):
    """A schema registry, as far as messages need one. Calls may block; answers are cached by the codec."""

    def id_of(self, full_name: str, schema: Mapping[str, Any]) -> int:
        """The id under which `schema` is registered; raises `infra.errors.Misconfigured` if it is not."""

    def schema_of(self, schema_id: int) -> Mapping[str, Any] | None:
        """The schema with that id; None if the registry has none; raises `infra.errors.Transient` if unreachable."""


def header_bytes(value: bytes | None) -> int:
    """How many bytes of `value` come before the record.

    Raises:
        DecodeError: `null_value`, `bad_framing` or `bad_magic`.
    """
    if value is None:
        raise DecodeError("null_value", "a record without a value says nothing")
    if value[:2] == SINGLE_OBJECT and len(value) >= SINGLE_OBJECT_BYTES:
        return SINGLE_OBJECT_BYTES
    if value[:1] == CONFLUENT and len(value) >= CONFLUENT_BYTES:
        return CONFLUENT_BYTES
    if len(value) < CONFLUENT_BYTES or value[:2] == SINGLE_OBJECT:
        raise DecodeError("bad_framing", f"{len(value)} bytes are too few to name a schema")
    raise DecodeError("bad_magic", f"begins with {value[:2].hex(' ')}; expected are c3 01 or 00")
