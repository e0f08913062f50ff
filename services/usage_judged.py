"""What a run of usage records comes to: what it claims, contributes and corrects, and what is refused and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import RejectedUsage, UsageBatch
from infra.kafka import Record
from projections import usage_rows
from projections.usage import Taken
from projections.usage_rows import Arrival, Repeat, Series
from schemas.codec import UsageRecords, decode_usage_records, encode_usage
from services.usage_measuring import Measuring, RawEvent, event_of, is_name
from services.usage_scanning import Scanned


@dataclass(slots=True)
class Fates:
    """What became of a tenant's events that were appended in one hour."""

    received: int = 0
    counted: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0
    voided: int = 0
    """Corrections, which are no events; those that changed nothing are `repeated`."""
    amended: int = 0
    repeated: int = 0


class Correction(NamedTuple):
    """What was counted before is to count as another event, or not at all."""

    record: Record
    tenant: str
    source: str
    id: str
    identity: bytes
    oldest: datetime
    """Events before it are not known one by one any more, and can not be corrected."""
    amended: Arrival | None
    """What it is to count as; None: it is voided."""


class Refusal(NamedTuple):
    """Usage that is not counted, and how many events that is."""

    usage: RejectedUsage
    events: int
    """0 for a correction."""
    appended_at: datetime


@dataclass(slots=True)
class Judged:
    """What a run of records comes to, before it is known which identities are taken. Corrections end it."""

    claims: list[Arrival] = field(default_factory=list)
    """First event of each identity, in order of the log, but for those that are `scanned`."""
    scanned: list[Scanned] = field(default_factory=list)
    """By record, in order of the log. No identity of theirs is in `claims`."""
    refusals: list[Refusal] = field(default_factory=list)
    fates: dict[tuple[str, datetime], Fates] = field(default_factory=dict)
    """By tenant and hour of the append; final after `settle`."""
    controls: dict[str, Measuring] = field(default_factory=dict)
    """Tenants that are measured in a new way at the end of all runs."""
    backfills: list[tuple[Measuring, datetime]] = field(default_factory=list)
    """Control records of all runs, with their append, that ask for events before them to be counted again."""
    corrections: list[Correction] = field(default_factory=list)
    """To be applied when the run's claims are settled, in order of the log."""
    following: Judged | None = None
    """What comes after the corrections."""
    duplicates: list[Repeat] = field(default_factory=list)
    """Copies of counted events; complete after `settle`."""
    records: dict[int, Record] = field(default_factory=dict)
    """By offset: what the claims came in."""
    repeats: list[tuple[Arrival | Scanned, Arrival]] = field(default_factory=list)
    """(What claims the identity, the later arrival)."""

    def runs(self) -> Iterator[Judged]:
        """This run and those that follow it."""
        each: Judged | None = self
        while each is not None:
            yield each
            each = each.following

    @property
    def size(self) -> int:
        """How many identities the run claims."""
        return len(self.claims) + sum(len(each.indexes) for each in self.scanned)

    def rows(self, ids: Mapping[Series, int]) -> Iterator[bytes]:
        """The rows of the run's claims. `ids`: of every series of `series`."""
        yield from (each.rows(ids) for each in self.scanned)
        yield from usage_rows.rows(self.claims, ids)

    def series(self) -> set[Series]:
        """Of all accepted events, repeats included, but for those that the scanners know."""
        found: set[Series] = set()
        for run in self.runs():
            amended = [each.amended for each in run.corrections if each.amended is not None]
            repeats = [repeat for _, repeat in run.repeats]
            for scanned in run.scanned:
                found |= scanned.series()
            found.update(made[0] for each in (*run.claims, *amended, *repeats) for made in each.contributions)
        return found

    def times_us(self) -> Iterator[list[int]]:
        """The times of what may count, of all runs, in pieces."""
        for run in self.runs():
            amended = [each.amended.time_us for each in run.corrections if each.amended is not None]
            yield amended + [each.time_us for each in run.claims]
            yield from (each.times_us for each in run.scanned)

    def settle(self, taken: Taken) -> int:
        """How many claims count. `taken`: those that came too late, by the content of the earlier event.

        Adds the conflicts to `refusals` and completes `fates`.
        """
        for fates in self.fates.values():
            fates.counted = fates.received - fates.rejected
        if taken:
            arrivals = {(each.place.offset, each.batch_index): each for each in self.claims}
            scanned = {each.place.offset: each for each in self.scanned}
            for (offset, index), first in sorted(taken.items()):
                late = arrivals.get((offset, index))
                if late is not None:
                    self._late_arrival(first, late.content, Repeat(late.identity, late.place, index))
                else:
                    found = scanned[offset]
                    at = found.indexes.index(index)
                    self._late_arrival(first, found.contents[at], Repeat(found.identities[at], found.place, index))
        for claim, repeat in self.repeats:
            place, content = _claimed(claim, repeat.identity)
            copy = Repeat(repeat.identity, repeat.place, repeat.batch_index)
            self._late_arrival(taken.get(place, content), repeat.content, copy)
        return self.size - len(taken)

    def _late_arrival(self, first: bytes, content: bytes, late: Repeat) -> None:
        record, tenant, index = self.records[late.place.offset], late.place.tenant, late.batch_index
        fates = self.fate(tenant, record)
        fates.counted -= 1
        if first == content:
            fates.duplicate += 1
            self.duplicates.append(late)
            return
        fates.conflict += 1
        detail = "an event with this source and id but other content was counted before"
        conflict = Rejected("id_conflict", detail, field="id")
        batch = decode_usage_records(record.value)
        assert isinstance(batch, UsageRecords)
        self.refuse_event(tenant, record, index, batch.events[index], conflict)

    def fate(self, tenant: str, record: Record) -> Fates:
        """Where to count an event of `record`."""
        key = (tenant, record.appended_at.replace(minute=0, second=0, microsecond=0))
        known = self.fates.get(key)
        if known is None:
            known = self.fates[key] = Fates()
        return known

    def refuse_record(
        self,
        record: Record,
        tenant: str,
        events: int,
        reason: str,
        detail: str,
        field: str = "",
        source: str | None = None,
        id: str | None = None,
    ) -> None:
        """Refuse a record as a whole. `source` and `id`: of the event that it corrects."""
        fates = self.fate(tenant, record)
        fates.received += events
        fates.rejected += events
        usage = RejectedUsage(
            tenant=TenantId(tenant) if tenant else None,
            reason=reason,
            detail=detail,
            field=field,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            source=source,
            id=id,
            original=record.value or b"",
        )
        self.refusals.append(Refusal(usage, events, record.appended_at))

    def refuse_event(self, tenant: str, record: Record, index: int, raw: RawEvent, refused: Rejected) -> None:
        """Refuse one event; its original is a batch of it alone, ready to be sent again."""
        usage = RejectedUsage(
            tenant=TenantId(tenant),
            reason=refused.code,
            detail=refused.detail,
            field=f"events[{index}].{refused.field}" if refused.field else f"events[{index}]",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            index=index,
            source=raw["source"],
            id=raw["id"],
            original=_alone(tenant, raw, record),
        )
        self.refusals.append(Refusal(usage, 1, record.appended_at))

    def refuse_correction(self, each: Correction, reason: str, detail: str) -> None:
        """What is to be corrected is not there."""
        self.refuse_record(each.record, each.tenant, 0, reason, detail, "id", each.source, each.id)


def _claimed(claim: Arrival | Scanned, identity: bytes) -> tuple[tuple[int, int], bytes]:
    """Where the claim of `identity` stands, and its content."""
    if isinstance(claim, Arrival):
        return (claim.place.offset, claim.batch_index), claim.content
    at = claim.identities.index(identity)
    return (claim.place.offset, claim.indexes[at]), claim.contents[at]


def _alone(tenant: str, raw: RawEvent, record: Record) -> bytes:
    try:
        return encode_usage(UsageBatch(tenant=TenantId(tenant), events=(event_of(raw),)))
    except Rejected:  # its time is none that a calendar knows: keep the record it came in
        return record.value or b""


def told_tenant(text: str) -> str:
    """The tenant that a record tells, under which it is counted; empty where that is no tenant's name."""
    return text if is_name(text) else ""
