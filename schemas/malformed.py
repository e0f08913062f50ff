"""Why bytes are not the Avro record they should be: a reader in plain Python that trusts nothing.

The fast reader skips some checks (a varint longer than ten bytes, a union branch of -1) and names every
failure differently. This one walks the bytes by their schema and says what is wrong and where. It runs
only when the fast one failed or the bytes look as if it should have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import DecodeError
from schemas.released import full_name, named_types

_LENGTH_MAX = 2**31  # longer strings and blocks no writer could have sent; shorter ones may just be cut off
_VARINT_BYTES = 10
_HIGH_BITS = bytes(byte >> 7 for byte in range(256))
_LONG_RUN = b"\1" * (_VARINT_BYTES - 1)


def is_suspicious(body: bytes) -> bool:
    """Whether `body` might hold a varint that the fast reader would misread: nine bytes on end with the high bit."""
    return _LONG_RUN in body.translate(_HIGH_BITS)


def check(schema: Mapping[str, Any], body: bytes, start: int = 0) -> None:
    """Walk `body` from `start` as one record of `schema`, to its end.

    Raises:
        DecodeError: `truncated`, `trailing_bytes` or `corrupt_avro`, with the field's path.
    """
    walk = _Walk(body, start, named_types(schema))
    walk.value(schema, "", "")
    if walk.at < len(body):
        raise DecodeError("trailing_bytes", f"{len(body) - walk.at} bytes after the end of the record")


class _Walk:
    """One pass over the bytes of one record."""

    def __init__(self, body: bytes, start: int, named: Mapping[str, Any]) -> None:
        self.body = body
        self.at = start
        self.named = named

    def value(self, schema: Any, namespace: str, path: str) -> None:
        if isinstance(schema, list):
            index = self.varint(path)
            if not 0 <= index < len(schema):
                raise DecodeError("corrupt_avro", f"{path}: branch {index} of a union of {len(schema)}")
            self.value(schema[index], namespace, path)
            return
        kind = schema if isinstance(schema, str) else schema["type"]
        match kind:
            case "record":
                space = full_name(schema, namespace).rpartition(".")[0]
                for field in schema["fields"]:
                    self.value(field["type"], space, f"{path}.{field['name']}" if path else field["name"])
            case "enum":
                index = self.varint(path)
                if not 0 <= index < len(schema["symbols"]):
                    raise DecodeError("corrupt_avro", f"{path}: symbol {index} of an enum of {len(schema['symbols'])}")
            case "array" | "map":
                self.blocks(schema, namespace, path)
            case "string":
                self.text(path)
            case "bytes":
                self.take(self.length(path), path)
            case "long" | "int":
                self.varint(path)
            case "boolean":
                if self.take(1, path) not in (b"\0", b"\1"):
                    raise DecodeError("corrupt_avro", f"{path}: a boolean is 0 or 1")
            case "null":
                pass
            case _:
                name = kind if "." in kind else f"{namespace}.{kind}"
                self.value(self.named[name], namespace, path)

    def blocks(self, schema: Any, namespace: str, path: str) -> None:
        index = 0
        while count := self.varint(path):
            if count < 0:  # then the block's size in bytes follows
                self.length(path)
            if abs(count) > _LENGTH_MAX:
                raise DecodeError("corrupt_avro", f"{path}: a block of {abs(count)} items")
            for _ in range(abs(count)):
                if schema["type"] == "map":
                    self.value_of_map(schema, namespace, path)
                else:
                    self.value(schema["items"], namespace, f"{path}[{index}]")
                index += 1

    def value_of_map(self, schema: Any, namespace: str, path: str) -> None:
        key = self.text(path)
        self.value(schema["values"], namespace, f"{path}[{key!r}]")

    def text(self, path: str) -> str:
        raw = self.take(self.length(path), path)
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise DecodeError("corrupt_avro", f"{path}: not UTF-8 at byte {e.start}") from e

    def length(self, path: str) -> int:
        size = self.varint(path)
        if not 0 <= size <= _LENGTH_MAX:
            raise DecodeError("corrupt_avro", f"{path}: a length of {size}")
        return size

    def varint(self, path: str) -> int:
        number = 0
        for index in range(_VARINT_BYTES):
            byte = self.take(1, path)[0]
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if number >> 64:
                    raise DecodeError("corrupt_avro", f"{path}: a number of more than 64 bits")
                return (number >> 1) ^ -(number & 1)
        raise DecodeError("corrupt_avro", f"{path}: a number of more than {_VARINT_BYTES} bytes")

    def take(self, size: int, path: str) -> bytes:
        taken = self.body[self.at : self.at + size]
        if len(taken) < size:
            raise DecodeError("truncated", f"{path}: {size} bytes announced, {len(taken)} left")
        self.at += size
        return taken
