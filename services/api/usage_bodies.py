"""Bodies of usage in every form that is taken: JSON, JSON Lines, and CloudEvents (structured, batched and binary).

Each form comes to the same list of events by our names of the fields; what is wrong with an event is said by the names
of the form that it came in. Of a CloudEvent, `subject` is the customer and `data` holds the properties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from fastapi import Request

from services.api.bodies import load, media_type, read_body
from services.api.problems import Problem
from services.shapes import Fault

EVENTS_MAX: Final = 10_000
SIZE_MAX_BYTES: Final = 16 * 1024 * 1024

JSON: Final = "application/json"
JSON_LINES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
CLOUDEVENT: Final = "application/cloudevents+json"
CLOUDEVENTS: Final = "application/cloudevents-batch+json"
TAKEN: Final = (JSON, *JSON_LINES, CLOUDEVENT, CLOUDEVENTS)

_SPECVERSION = "1.0"
_OURS: Final = {"id": "id", "source": "source", "type": "type", "subject": "customer", "time": "time"}
"""Attribute of a CloudEvent -> our field."""
_STRUCTURED: Final = {"customer": "subject", "properties": "data"}
_BINARY: Final = {"properties": "data"} | {ours: f"ce-{theirs}" for theirs, ours in _OURS.items()}
_FRACTION = re.compile(r"(\.[0-9]{6})[0-9]+")


@dataclass(frozen=True, slots=True)
class Given:
    """The events of one request."""

    items: Sequence[Any]
    """Each in our form but not checked, or the fault that kept it from being read."""
    is_single: bool = False
    """One event and no list: what is wrong with it is wrong with the request."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our field -> what the sender calls it, where that differs."""

    def told(self, path: str) -> str:
        """`path` of a field as the sender knows it."""
        head = re.split(r"[.\[]", path, maxsplit=1)[0]
        return self.names.get(head, head) + path[len(head) :]


@dataclass(frozen=True, slots=True)
class UsageContent:
    """A body of usage as it came."""

    kind: str
    content: bytes
    attributes: Mapping[str, str]
    """Of a CloudEvent in binary mode, by name; else empty."""

    def given(self) -> Given:
        """The events in it.

        Raises:
            Problem: 4xx: it cannot be read as what it says it is, or holds too many.
        """
        if self.attributes:
            return Given([_of_binary(self.attributes, self.content)], is_single=True, names=_BINARY)
        if self.kind in JSON_LINES:
            return Given(_lines(self.content))
        parsed = load(self.content)
        if self.kind == JSON:
            return _of_json(parsed)
        if self.kind == CLOUDEVENT:
            return Given([_of_cloudevent(parsed)], is_single=True, names=_STRUCTURED)
        return Given([_of_cloudevent(each) for each in _counted(parsed, "")], names=_STRUCTURED)


async def usage_content(request: Request) -> UsageContent:
    """The dependency that reads a body of usage; it is parsed later, outside of the event loop."""
    kind = media_type(request)
    attributes = {name[3:]: unquote(value) for name, value in request.headers.items() if name.startswith("ce-")}
    is_binary = "specversion" in attributes and not kind.startswith("application/cloudevents")
    if kind not in TAKEN and not (is_binary and not kind):
        raise Problem(415, "unsupported_media_type", f"send one of {', '.join(TAKEN)}; binary CloudEvents as {JSON}")
    content = await read_body(request, SIZE_MAX_BYTES)
    return UsageContent(kind, content, attributes if is_binary else {})


def _of_json(parsed: Any) -> Given:
    if isinstance(parsed, list):
        return Given(_counted(parsed, ""))
    if not isinstance(parsed, dict):
        raise Problem(422, "invalid_type", 'send one event, a list of them, or {"events": [...]}')
    if "events" not in parsed:
        return Given([parsed], is_single=True)
    extra = next((name for name in parsed if name != "events"), None)
    if extra is not None:
        said = "a batch has the field events and no other"
        raise Problem(422, "unknown_field", said, errors=[Fault("unknown_field", said, ascii(extra)[1:-1][:60])])
    return Given(_counted(parsed["events"], "events"))


def _counted(events: Any, field: str) -> list[Any]:
    if not isinstance(events, list) or not events:
        said = "a list of at least one event is needed here"
        raise Problem(422, "invalid_type", said, errors=[Fault("invalid_type", said, field)])
    if len(events) > EVENTS_MAX:
        raise _too_many(f"{len(events):,}")
    return events


def _too_many(found: str) -> Problem:
    return Problem(413, "batch_too_large", f"{found} events; allowed are {EVENTS_MAX:,} in one request")


def _lines(content: bytes) -> list[Any]:
    """Each line that is not empty, on its own: one that cannot be read keeps no other from being taken."""
    made: list[Any] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        if len(made) == EVENTS_MAX:
            raise _too_many(f"more than {EVENTS_MAX:,}")
        try:
            made.append(load(line))
        except Problem as e:
            made.append(Fault(e.code, f"line {number} of the body: {e.detail}", ""))
    if not made:
        raise Problem(400, "malformed_json", "the body is empty; one event on each line is needed")
    return made


def _of_cloudevent(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    if given.get("specversion") != _SPECVERSION:
        return Fault("invalid_value", f"the version of CloudEvents that is taken is {_SPECVERSION!r}", "specversion")
    if "data_base64" in given:
        return Fault("unknown_field", "the properties are taken from data, as JSON", "data_base64")
    kind = given.get("datacontenttype", JSON)
    if not isinstance(kind, str) or kind.partition(";")[0].strip().lower() != JSON:
        return Fault("invalid_value", f"allowed is {JSON}", "datacontenttype")
    return _ours(given, given.get("data"))


def _of_binary(attributes: Mapping[str, str], content: bytes) -> Any:
    if attributes["specversion"] != _SPECVERSION:
        said = f"the version of CloudEvents that is taken is {_SPECVERSION!r}"
        return Fault("invalid_value", said, "ce-specversion")
    return _ours(attributes, load(content) if content else None)


def _ours(attributes: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """An event by our names. Extension attributes, such as those of a trace, say nothing about usage."""
    made = {ours: attributes[theirs] for theirs, ours in _OURS.items() if theirs in attributes}
    if isinstance(made.get("time"), str):
        made["time"] = _FRACTION.sub(r"\1", made["time"])  # some senders write nanoseconds; the log has microseconds
    return made if data is None else made | {"properties": data}
