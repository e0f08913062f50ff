"""Bytes <-> messages. Whatever is wrong with bytes becomes one `DecodeError`, with a value one `EncodeError`.

Messages are written with the newest schema of their class, and read with the schema they were written
with, upgraded to the newest. The functions at the end are those of the process's own codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple

from billing.envelope import CommandEnvelope, CommandMeta, CommandResult, EventEnvelope, EventMeta
from billing.metering import RejectedUsage, UsageAmended, UsageBatch, UsageControl, UsageVoided
from schemas import usage_json
from schemas.binary import fingerprint, parsed, read, write
from schemas.errors import DecodeError, EncodeError, InvalidValue
from schemas.framing import CONFLUENT, SINGLE_OBJECT, SINGLE_OBJECT_BYTES, Registry, header_bytes
from schemas.mapping import converter
from schemas.released import Released, bundled, newest
from schemas.streams import Stream, declared


class UsageRecords(NamedTuple):
    """A usage batch in raw form: the aggregator's fast path, about twice as fast as dataclasses."""

    tenant: str
    events: list[dict[str, Any]]
    """Keys as the fields of `UsageEvent`; `time` in microseconds since 1970 UTC."""


UsageMessage = UsageBatch | UsageControl | UsageVoided | UsageAmended
"""What travels on the usage log."""


class _Message:
    """One message class: its converter, and the schema it is written with."""

    def __init__(self, stream: Stream, cls: type, released: Released) -> None:
        expected = (["meta"] if stream.meta else []) + [each.name for each in fields(cls)]
        if [each["name"] for each in released.schema["fields"]] != expected:
            raise ValueError(f"{cls.__name__} differs from {released.file_name}: run python -m schemas.release")
        self.stream = stream
        self.cls = cls
        self.converter = converter(cls, stream.namespace)
        self.schema = parsed(released.schema)
        self.fingerprint = fingerprint(released.schema)
        self.released = released


class _Writer:
    """A released schema that bytes were written with, and how to read them today."""

    def __init__(self, released: Released, message: _Message | None) -> None:
        self.schema = parsed(released.schema)
        self.message = message
        self.file_name = released.file_name
        is_newest = message is not None and message.released.version == released.version
        self.reader = None if is_newest or message is None else message.schema


class Codec:
    """All messages of the released schemas; schemas are parsed at first use."""

    def __init__(
        self, released: Callable[[], tuple[Released, ...]] = bundled, registry: Registry | None = None
    ) -> None:
        self._released = released
        self._registry = registry
        self._prefixes: dict[type, bytes] = {}
        self._by_id: dict[int, bytes] = {}
        self._known: dict[tuple[str, bytes], tuple[_Writer, _Message]] = {}
        """By stream and framing, of records that were decoded."""

    def use_registry(self, registry: Registry | None) -> None:
        """Write with the ids of `registry` from now on; None: with fingerprints. Part of a process's wiring."""
        self._registry = registry
        self._prefixes.clear()
        self._by_id.clear()
        self._known.clear()

    @cached_property
    def _messages(self) -> dict[type, _Message]:
        latest = newest(self._released())
        return {cls: _Message(stream, cls, latest[f"{stream.namespace}.{cls.__name__}"]) for stream, cls in declared()}

    @cached_property
    def _writers(self) -> dict[bytes, _Writer]:
        by_name = {each.released.full_name: each for each in self._messages.values()}
        return {fingerprint(each.schema): _Writer(each, by_name.get(each.full_name)) for each in self._released()}

    def encode_command(self, envelope: CommandEnvelope) -> bytes:
        """Raises `EncodeError` with the path of a value that the schema cannot hold."""
        return self._encode(envelope.command, CommandMeta, envelope.meta)

    def decode_command(self, value: bytes | None) -> CommandEnvelope:
        """Raises `DecodeError`."""
        meta, command = self._decode_with_meta(value, "commands", CommandMeta)
        return CommandEnvelope(meta, command)

    def encode_event(self, envelope: EventEnvelope) -> bytes:
        """Raises `EncodeError` with the path of a value that the schema cannot hold."""
        return self._encode(envelope.event, EventMeta, envelope.meta)

    def decode_event(self, value: bytes | None) -> EventEnvelope:
        """Raises `DecodeError`."""
        meta, event = self._decode_with_meta(value, "events", EventMeta)
        return EventEnvelope(meta, event)

    def event_body(self, envelope: EventEnvelope) -> bytes:
        """The event's Avro body without framing: what the hash chain covers. `body_of(encode_event(e))` is the same."""
        return self._encode(envelope.event, EventMeta, envelope.meta, framed=False)

    def encode_result(self, result: CommandResult) -> bytes:
        """Raises `EncodeError`."""
        return self._encode(result)

    def decode_result(self, value: bytes | None) -> CommandResult:
        """Raises `DecodeError`."""
        return self._decode(value, "results")  # type: ignore[no-any-return]

    def encode_usage(self, message: UsageMessage) -> bytes:
        """Raises `EncodeError`."""
        return self._encode(message)

    def decode_usage(self, value: bytes | None) -> UsageMessage:
        """Also a batch that is written as JSON (`schemas.usage_json`). Raises `DecodeError`."""
        return self._decode(value, "usage")  # type: ignore[no-any-return]

    def decode_usage_records(self, value: bytes | None) -> UsageRecords | UsageControl | UsageVoided | UsageAmended:
        """As `decode_usage`, but a batch stays in raw form. Raises `DecodeError`."""
        message, raw = self._raw(value, "usage")
        if message.cls is UsageBatch:
            return UsageRecords(raw["tenant"], raw["events"])
        return self._build(message.converter.decode, raw)  # type: ignore[no-any-return]

    def usage_body(self, value: bytes | None) -> int:
        """Where in `value` the body begins of a batch that the newest schema wrote in Avro; 0: it is something else."""
        try:
            header = header_bytes(value)
            assert value is not None
            writer = self._writers.get(self._fingerprint(value, header))
        except DecodeError:
            return 0
        if writer is None or writer.message is not self._messages[UsageBatch] or writer.reader is not None:
            return 0
        return header

    def encode_rejected(self, rejected: RejectedUsage) -> bytes:
        """Raises `EncodeError`."""
        return self._encode(rejected)

    def decode_rejected(self, value: bytes | None) -> RejectedUsage:
        """Raises `DecodeError`."""
        return self._decode(value, "rejected")  # type: ignore[no-any-return]

    def fingerprint_of(self, value: bytes) -> str:
        """Fingerprint of the schema that `value` was written with, as 16 hex digits: the `schema` header."""
        return self._fingerprint(value, header_bytes(value)).hex()

    def _encode(self, body: Any, meta_type: type | None = None, meta: Any = None, *, framed: bool = True) -> bytes:
        message = self._messages.get(type(body))
        if message is None or message.stream.meta is not meta_type:
            raise EncodeError("", f"{type(body).__name__} is not a message of this stream")
        raw = message.converter.encode(body)
        if meta_type is not None:
            try:
                raw["meta"] = converter(meta_type, message.stream.namespace).encode(meta)
            except EncodeError as e:
                raise e.under("meta") from e.__cause__
        return write(message.schema, raw, self._prefix(message) if framed else b"")

    def _prefix(self, message: _Message) -> bytes:
        prefix = self._prefixes.get(message.cls)
        if prefix is None:
            if self._registry is None:
                prefix = SINGLE_OBJECT + message.fingerprint
            else:
                schema_id = self._registry.id_of(message.released.full_name, message.released.schema)
                prefix = CONFLUENT + schema_id.to_bytes(4, "big")
            self._prefixes[message.cls] = prefix
        return prefix

    def _fingerprint(self, value: bytes, header: int) -> bytes:
        if header == SINGLE_OBJECT_BYTES:
            return value[2:header]
        schema_id = int.from_bytes(value[1:header], "big")
        known = self._by_id.get(schema_id)
        if known is None:
            if self._registry is None:
                raise DecodeError("unknown_schema", f"id {schema_id}, but no registry is configured")
            schema = self._registry.schema_of(schema_id)
            if schema is None:
                raise DecodeError("unknown_schema", f"id {schema_id} is not in the registry")
            known = self._by_id[schema_id] = fingerprint(schema)
        return known

    def _raw(self, value: bytes | None, stream: str) -> tuple[_Message, dict[str, Any]]:
        """The raw record in `value`, upgraded to the newest schema, and its message."""
        if stream == "usage" and value is not None and value[:1] == usage_json.FIRST_BYTE:
            batch = self._messages[UsageBatch]
            return batch, usage_json.read(value, batch.released.schema)
        header = header_bytes(value)
        assert value is not None
        known = self._known.get((stream, value[:header]))
        if known is None:
            known = self._known[stream, value[:header]] = self._written(value, header, stream)
        writer, message = known
        return message, read(writer.schema, value, header, writer.reader)

    def _written(self, value: bytes, header: int, stream: str) -> tuple[_Writer, _Message]:
        """How `value` was written, and the message that it is. Raises `DecodeError` if it is none of the stream."""
        mark = self._fingerprint(value, header)
        writer = self._writers.get(mark)
        if writer is None or writer.message is None:
            raise DecodeError("unknown_schema", f"fingerprint {mark.hex()} is of no released schema")
        if writer.message.stream.name != stream:
            raise DecodeError("unknown_schema", f"{writer.file_name} is not of the stream {stream}")
        return writer, writer.message

    def _decode(self, value: bytes | None, stream: str) -> Any:
        message, raw = self._raw(value, stream)
        return self._build(message.converter.decode, raw)

    def _decode_with_meta(self, value: bytes | None, stream: str, meta_type: type) -> tuple[Any, Any]:
        message, raw = self._raw(value, stream)
        try:
            meta = self._build(converter(meta_type, message.stream.namespace).decode, raw["meta"])
        except DecodeError as e:
            raise DecodeError(e.reason, f"meta.{e.detail}") from e
        return meta, self._build(message.converter.decode, raw)

    @staticmethod
    def _build(decode: Callable[[Any], Any] | None, raw: Any) -> Any:
        assert decode is not None
        try:
            return decode(raw)
        except InvalidValue as e:
            raise DecodeError("invalid_value", str(e)) from e


def body_of(value: bytes) -> bytes:
    """`value` without its framing. Raises `DecodeError`."""
    return value[header_bytes(value) :]


_codec = Codec()
use_registry = _codec.use_registry
encode_command = _codec.encode_command
decode_command = _codec.decode_command
encode_event = _codec.encode_event
decode_event = _codec.decode_event
event_body = _codec.event_body
encode_result = _codec.encode_result
decode_result = _codec.decode_result
encode_usage = _codec.encode_usage
decode_usage = _codec.decode_usage
decode_usage_records = _codec.decode_usage_records
usage_body = _codec.usage_body
encode_rejected = _codec.encode_rejected
decode_rejected = _codec.decode_rejected
fingerprint_of = _codec.fingerprint_of
