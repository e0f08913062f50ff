"""What became of a record of the usage log: every event in it has a fate, from the first position to the last applied.

The tables know counted events by identity, copies by identity and position, and refusals by position; the record itself
tells which identities it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from billing.errors import Rejected
from billing.metering import UsageAmended, UsageControl, UsageVoided
from infra.kafka import Record
from infra.postgres import Cursor
from projections import generation, usage, usage_duplicates, usage_events
from projections.usage_events import Counted, Place
from schemas.codec import UsageRecords, decode_usage_records
from schemas.errors import DecodeError
from services.reconcile import events_in
from services.usage_identity import identity_of
from services.usage_trace import Fate, traces

WAITING: Final = "waiting"
"""Not applied yet."""
APPLIED: Final = "applied"
"""Of a record that is no event: a control record, a void or an amendment."""
PRUNED: Final = "pruned"
"""Counted, or a copy of what was; no longer told one by one."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one event, or of a whole record."""

    place: Place
    tenant: str
    """Empty where the record does not tell."""
    source: str | None
    id: str | None
    fate: str
    """A `Fate`, `waiting`, `applied` or `pruned`."""
    detail: str
    """For people; may be empty."""


class Records(Protocol):
    """Reads the usage log again."""

    def record(self, partition: int, offset: int) -> Record | None:
        """The record there; None if the log does not have it, or not any more. Raises `Transient`."""


def record_at(log: Records, partition: int, offset: int, tenant: str | None = None) -> Record:
    """The record there. `tenant`: only if it is one of theirs.

    Raises:
        Rejected: unknown_position: there is none, or not any more.
        Transient: the log did not answer in time.
    """
    record = log.record(partition, offset)
    if record is None or tenant not in (None, events_in(record)[0]):
        raise Rejected("unknown_position", f"{usage.TOPIC} holds no record at {partition}/{offset}, or not any more")
    return record


def fates_in(
    tx: Cursor, record: Record, index: int | None = None, *, first: int = 0, limit: int | None = None
) -> list[Told]:
    """The fate of each event in `record`, or of all of it as one. `index`: of this event alone; `first`, `limit`: from
    this one on, at most so many.

    `tx` reads the current projections, of all tenants or of the record's.

    Raises:
        Rejected: unknown_position: it holds no such event.
    """
    asked = slice(first, None if limit is None else first + limit) if index is None else slice(index, index + 1)
    found = [each for each in _fates_in(tx, record, asked) if index in (None, each.place.batch_index)]
    if not found:
        at = f"{record.partition}/{record.offset}"
        raise Rejected("unknown_position", f"the record at {at} holds no event {first if index is None else index}")
    return found


def _fates_in(tx: Cursor, record: Record, asked: slice) -> list[Told]:
    generation.enter_all(tx)
    whole = Place(record.partition, record.offset, -1)
    stored = generation.checkpoints(tx, usage.SET, generation.current(tx, usage.SET), usage.TOPIC)
    if record.offset >= stored.get(record.partition, 0):
        return [Told(whole, "", None, None, WAITING, "the aggregator has not come to it yet")]
    try:
        content = decode_usage_records(record.value)
    except DecodeError:
        content = None
    events = content.events if isinstance(content, UsageRecords) else ()
    indexes = range(len(events))[asked]
    places = [whole, *(whole._replace(batch_index=index) for index in indexes)]
    refused = {
        each.place.batch_index: Told(
            each.place, each.tenant, each.source, each.id, each.fate, f"{each.reason}: {each.detail}"
        )
        for each in usage_events.refused_at(tx, None, places)
    }
    if whole.batch_index in refused:
        return [refused[whole.batch_index]]
    if isinstance(content, UsageRecords):
        taken = _taken(tx, content, record, indexes)
        return [refused.get(index) or taken[index] for index in indexes]
    if isinstance(content, UsageVoided | UsageAmended):
        event = content if isinstance(content, UsageVoided) else content.event
        said = (
            f"{'voids' if isinstance(content, UsageVoided) else 'amends'} the event: `usage show` tells how it stands"
        )
        return [Told(whole, content.tenant, event.source, event.id, APPLIED, said)]
    if isinstance(content, UsageControl):
        return [Told(whole, content.tenant, None, None, APPLIED, f"measures by version {content.version} from here on")]
    return [Told(whole, "", None, None, PRUNED, "it cannot be read, and its refusal is not kept")]


def _taken(tx: Cursor, batch: UsageRecords, record: Record, indexes: Sequence[int]) -> dict[int, Told]:
    """By place in the batch: what became of the events at `indexes`, if they were not refused."""
    named = {index: batch.events[index] for index in indexes}
    identities = {index: identity_of(raw["source"], raw["id"]) for index, raw in named.items()}
    copies = usage_duplicates.at(tx, batch.tenant, list(identities.values()), record.partition, record.offset)
    found = {index: usage_events.found(tx, batch.tenant, identity) for index, identity in identities.items()}
    standing = {index: each for index, each in found.items() if each is not None and index not in copies}
    fates = _fates(tx, batch.tenant, standing, record)
    made = {}
    for index, raw in named.items():
        if index in copies:
            fate, said = str(Fate.DUPLICATE), _counted_at(found[index])
        else:
            fate, said = fates.get(index, (PRUNED, "counted, or a copy: it lies beyond the dedupe horizon"))
        place = Place(record.partition, record.offset, index)
        made[index] = Told(place, batch.tenant, raw["source"], raw["id"], fate, said)
    return made


def _fates(tx: Cursor, tenant: str, standing: dict[int, Counted], record: Record) -> dict[int, tuple[str, str]]:
    made = {}
    for (index, each), way in zip(standing.items(), traces(tx, tenant, list(standing.values())), strict=True):
        if each.place[:2] == (record.partition, record.offset) or each.amended:
            made[index] = (str(way.fate), _corrected(each))
        else:
            made[index] = (str(Fate.DUPLICATE), _counted_at(each))
    return made


def _counted_at(event: Counted | None) -> str:
    if event is None:
        return "the event that counted lies beyond the dedupe horizon"
    where = _text(event.place)
    return f"it counts as amended at {where}" if event.amended else f"{where} is the one that counted"


def _corrected(event: Counted) -> str:
    said = [f"amended at {_text(event.place)}"] if event.amended else []
    if event.voided_offset is not None:
        said.append(f"voided at {event.place.partition}/{event.voided_offset}")
    return ", ".join(said)


def _text(place: Sequence[int]) -> str:
    return "/".join(map(str, place))
