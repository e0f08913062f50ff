"""Usage batches as Avro in single-object encoding, by the released schema that this package ships."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from fastavro import parse_schema, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

_MARK = b"\xc3\x01"


@cache
def schema() -> dict[str, Any]:
    """The released schema of a batch."""
    loaded: dict[str, Any] = json.loads(resources.files(__package__).joinpath("usage_batch.avsc").read_text())
    assert [each["name"] for each in loaded["fields"]] == ["tenant", "events"]
    return loaded


@cache
def schema_fingerprint() -> bytes:
    """CRC-64-AVRO of the schema, 8 bytes as they travel."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema()), "CRC-64-AVRO"))


@cache
def _event_schema() -> Any:
    return parse_schema(schema()["fields"][1]["type"]["items"])


def encode_event(record: Mapping[str, object]) -> bytes:
    """One event as it stands in a batch."""
    buffer = io.BytesIO()
    schemaless_writer(buffer, _event_schema(), record)
    return buffer.getvalue()


def encode_batch(tenant: str, events: Sequence[bytes]) -> bytes:
    """A framed batch of encoded events; at least one."""
    assert events
    name = tenant.encode()
    head = _MARK + schema_fingerprint() + _long(len(name)) + name
    return b"".join((head, _long(len(events)), *events, b"\0"))


def _long(value: int) -> bytes:
    """A non-negative Avro long: zigzag, then 7 bits a byte, low ones first."""
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
