"""Usage events from a file, CSV or JSON Lines: each line an event, or what is wrong with it and where."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from tallybook_sdk import UsageEvent
from tallybook_sdk.event import InvalidEvent, as_record

REQUIRED = ("id", "type", "customer", "time")
_FIELDS = {*REQUIRED, "source", "properties"}


class Format(StrEnum):
    """How a file holds events."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that holds no event that could be accepted."""

    line: int
    """1 is the first line of the file."""
    field: str
    """The offending field, or empty."""
    detail: str
    """What is wrong and what is allowed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file, read."""

    number: int
    end: int
    """Bytes of the file up to its end."""
    event: UsageEvent | Fault
    text: str
    """As it stands in the file."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file was read."""

    line: int
    """Lines that were read; 0: none."""
    bytes: int
    """Their length."""


BEGINNING = Mark(0, 0)

MakeId = Callable[[int, str], str]
"""Makes an id from a line's number and its text."""


def format_of(path: Path) -> Format | None:
    """By the file's suffix; None if that does not tell."""
    return {".csv": Format.CSV, ".jsonl": Format.JSONL, ".ndjson": Format.JSONL}.get(path.suffix.lower())


def read(
    file: IO[bytes], form: Format, source: str, *, after: Mark = BEGINNING, make_id: MakeId | None = None
) -> Iterator[Line]:
    """Every event in `file`, or its fault. `source` stands in where a line has none. Empty lines are passed over.

    CSV: the header names `id,type,customer,time`, maybe `source`; all other columns are properties, empty cells none.
    JSON Lines: the same names, with `properties` an object of texts and numbers. `after`: read on behind this line.
    `make_id` makes an id where a line has none; without it, that is a fault.
    """
    counted = _Counted(file, after)
    needed = REQUIRED if make_id is None else tuple(name for name in REQUIRED if name != "id")
    rows = _csv_rows(counted, needed) if form is Format.CSV else _json_rows(counted)
    for number, row in rows:
        if not isinstance(row, Fault) and make_id is not None and row.get("id") in (None, ""):
            row = {**row, "id": make_id(number, counted.text)}
        made = row if isinstance(row, Fault) else _event(number, row, source)
        yield Line(number, counted.bytes, made, counted.text)


class _Counted:
    """Lines as text, and how many bytes they took. What is not UTF-8 becomes surrogates, which no field accepts."""

    def __init__(self, file: IO[bytes], after: Mark) -> None:
        self._file = file
        self._after = after
        self.bytes = 0
        self.number = 0
        self.text = ""

    def skip(self) -> None:
        """Go on behind the mark; whatever stands before it was read by somebody else."""
        if self._after.bytes > self.bytes:
            self._file.seek(self._after.bytes)
            self.bytes, self.number = self._after.bytes, self._after.line

    def __iter__(self) -> Iterator[str]:
        for line in iter(self._file.readline, b""):
            self.bytes += len(line)
            self.number += 1
            text = line.decode("utf-8", "surrogateescape")
            self.text = text.removeprefix("\ufeff") if self.number == 1 else text
            yield self.text


def _csv_rows(lines: _Counted, needed: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    texts = iter(lines)
    try:
        header = next(csv.reader([next(texts, "")], strict=True), [])
    except csv.Error as error:
        yield 1, Fault(1, "", f"the header is no CSV: {error}")
        return
    missing = [name for name in needed if name not in header]
    if missing or len(set(header)) != len(header):
        said = f"the header lacks {', '.join(missing)}" if missing else "the header names a column twice"
        yield 1, Fault(1, missing[0] if missing else "", said)
        return
    lines.skip()
    for text in texts:
        number = lines.number
        try:
            # Each line for itself: an open quotation mark would take all lines after it along.
            cells = next(csv.reader([text], strict=True), [])
        except csv.Error as error:
            yield number, Fault(number, "", f"no CSV: {error}; a cell ends on its line")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            yield number, Fault(number, "", f"{len(cells)} cells under {len(header)} columns")
            continue
        row = dict(zip(header, cells, strict=True))
        named: dict[str, Any] = {name: row[name] for name in (*REQUIRED, "source") if row.get(name)}
        named["properties"] = {n: v for n, v in row.items() if v and n not in _FIELDS}
        yield number, named


def _json_rows(lines: _Counted) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    lines.skip()
    for text in lines:
        number = lines.number
        if not text.strip():
            continue
        try:
            row = json.loads(
                text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_without_duplicates
            )
        except (ValueError, RecursionError) as error:
            yield number, Fault(number, "", f"no JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield number, Fault(number, "", "an event is a JSON object")
            continue
        yield number, row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _event(number: int, row: Mapping[str, Any], source: str) -> UsageEvent | Fault:
    for name in REQUIRED:
        if row.get(name) in (None, ""):
            return Fault(number, name, "is missing")
    unknown = sorted(row.keys() - _FIELDS)
    if unknown:
        return Fault(number, unknown[0], f"unknown; known are {', '.join((*REQUIRED, 'source', 'properties'))}")
    properties = row.get("properties") or {}
    if not isinstance(properties, dict):
        return Fault(number, "properties", "must be an object")
    try:
        time = datetime.fromisoformat(row["time"])
    except (TypeError, ValueError):
        return Fault(number, "time", f"{row['time']!r} is no time such as 2026-02-01T12:00:00Z")
    event = UsageEvent(
        id=row["id"],
        type=row["type"],
        customer=row["customer"],
        time=time,
        properties=properties,
        source=row.get("source") or source,
    )
    try:
        as_record(event, source)
    except InvalidEvent as error:
        return Fault(number, error.field, error.detail)
    return event
