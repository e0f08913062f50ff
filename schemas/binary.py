"""Raw records <-> Avro bytes: the only module that knows the Avro library."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint as _fastavro_fingerprint
from fastavro.schema import to_parsing_canonical_form

from schemas import malformed
from schemas.errors import DecodeError
from schemas.example import example
from schemas.framing import SINGLE_OBJECT
from schemas.released import raw_schema


def fingerprint(schema: Mapping[str, Any]) -> bytes:
    """CRC-64-AVRO of the schema's canonical form; 8 bytes in the order in which they travel."""
    return bytes.fromhex(_fastavro_fingerprint(to_parsing_canonical_form(dict(schema)), "CRC-64-AVRO"))


def parsed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without logical types, checked, and ready to write and read raw records with."""
    return cast(dict[str, Any], parse_schema(raw_schema(schema)))


def write(schema: dict[str, Any], raw: Mapping[str, Any], prefix: bytes = b"") -> bytes:
    """A raw record as Avro, after `prefix`. The record must be in order: `schemas.mapping` sees to that."""
    buffer = io.BytesIO()
    buffer.write(prefix)
    schemaless_writer(buffer, schema, raw)
    return buffer.getvalue()


def read(schema: dict[str, Any], value: bytes, start: int = 0, reader: dict[str, Any] | None = None) -> dict[str, Any]:
    """The raw record that `value` holds from `start` to its end, upgraded to `reader`.

    Raises:
        DecodeError: `truncated`, `trailing_bytes` or `corrupt_avro`.
    """
    buffer = io.BytesIO(value)
    buffer.seek(start)
    try:
        raw = schemaless_reader(buffer, schema, reader, return_record_name=True, return_record_name_override=True)
    except Exception as e:  # the reader has no error class of its own: any failure of it is one of the bytes
        malformed.check(schema, value, start)
        raise DecodeError("corrupt_avro", f"{type(e).__name__}: {e}") from e
    if buffer.tell() != len(value) or malformed.is_suspicious(value):
        malformed.check(schema, value, start)
    return cast(dict[str, Any], raw)


def framed_example(schema: Mapping[str, Any]) -> bytes:
    """The golden bytes of a released schema: its example, in single-object encoding."""
    return write(parsed(schema), example(schema), SINGLE_OBJECT + fingerprint(schema))
