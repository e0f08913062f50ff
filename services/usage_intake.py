"""Judging usage: records in, and for each event what it claims, contributes, or why it is refused.

Pure: no clock, no network. The aggregator asks Postgres which claims are taken (`Judged.claims`) and hands the answer
to `Judged.settle`; both halves depend on nothing but the log and the order of its partition. A correction ends a run:
what it finds is what all before it left, and what follows it finds what it left (`Judged.runs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import (
    ID_LENGTH_MAX,
    RejectedUsage,
    UsageAmended,
    UsageBatch,
    UsageControl,
    UsageVoided,
)
from billing.placing import partition_of, width_at
from infra.kafka import Record
from projections.usage import Taken
from projections.usage_rows import Arrival, Place, Series
from schemas.codec import UsageRecords, decode_usage_records, encode_usage
from schemas.errors import DecodeError
from services.usage_identity import content_of, identity_bytes
from services.usage_measuring import EPOCH, Measuring, RawEvent, event_of, is_name, raw_of
from services.usage_placing import Layout

WHOLE_RECORD = -1  # batch_index of a refusal that concerns the whole record
_MICROSECOND = timedelta(microseconds=1)


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
    """First event of each identity, in order of the log."""
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
    duplicates: list[Arrival] = field(default_factory=list)
    """Copies of counted events; complete after `settle`."""
    _records: dict[int, Record] = field(default_factory=dict)
    """By offset: what the claims came in."""
    _repeats: list[tuple[int, Arrival]] = field(default_factory=list)
    """(Place of the claim with that identity, the later arrival)."""

    def runs(self) -> Iterator[Judged]:
        """This run and those that follow it."""
        each: Judged | None = self
        while each is not None:
            yield each
            each = each.following

    def arrivals(self) -> Iterator[Arrival]:
        """What may count, of all runs: claims and amendments."""
        for run in self.runs():
            yield from run.claims
            yield from (each.amended for each in run.corrections if each.amended is not None)

    def series(self) -> set[Series]:
        """Of all accepted events, repeats included: so the log alone decides which series there are."""
        found = {made[0] for arrival in self.arrivals() for made in arrival.contributions}
        for run in self.runs():
            found.update(made[0] for _, repeat in run._repeats for made in repeat.contributions)
        return found

    def settle(self, taken: Taken) -> list[Arrival]:
        """The claims that count. `taken`: those that came too late, by the content of the earlier event.

        Adds the conflicts to `refusals` and completes `fates`.
        """
        for fates in self.fates.values():
            fates.counted = fates.received - fates.rejected
        late: dict[int, bytes] = {}
        if taken:
            places = [(claim.place.offset, claim.batch_index) for claim in self.claims]
            late = {at: taken[place] for at, place in enumerate(places) if place in taken}
        for at, content in late.items():
            self._late_arrival(content, self.claims[at])
        for at, repeat in self._repeats:
            self._late_arrival(late.get(at, self.claims[at].content), repeat)
        return [claim for at, claim in enumerate(self.claims) if at not in late] if late else self.claims

    def _late_arrival(self, first: bytes, late: Arrival) -> None:
        record = self._records[late.place.offset]
        tenant = late.place.tenant
        fates = self.fate(tenant, record)
        fates.counted -= 1
        if first == late.content:
            fates.duplicate += 1
            self.duplicates.append(late)
            return
        fates.conflict += 1
        detail = "an event with this source and id but other content was counted before"
        conflict = Rejected("id_conflict", detail, field="id")
        batch = decode_usage_records(record.value)
        assert isinstance(batch, UsageRecords)
        self.refusals.append(_refused_event(tenant, record, late.batch_index, batch.events[late.batch_index], conflict))

    def fate(self, tenant: str, record: Record) -> Fates:
        """Where to count an event of `record`."""
        key = (tenant, record.appended_at.replace(minute=0, second=0, microsecond=0))
        known = self.fates.get(key)
        if known is None:
            known = self.fates[key] = Fates()
        return known


def judge(records: Iterable[Record], controls: Mapping[str, Measuring], layout: Layout) -> Judged:
    """What `records`, one partition's in order, come to when the partition measures by `controls` at their start."""
    first = judged = Judged()
    places: dict[str, dict[bytes, int]] = {}
    for record in records:
        try:
            content = decode_usage_records(record.value)
        except DecodeError as error:
            _refuse_record(judged, record, "", 1, error.reason, error.detail)
            continue
        if isinstance(content, UsageVoided | UsageAmended):
            known = judged.controls.get(content.tenant) or controls.get(content.tenant)
            _judge_correction(judged, record, content, known, layout)
            continue
        if judged.corrections:
            judged.following = Judged(controls=judged.controls, backfills=judged.backfills)
            judged, places = judged.following, {}
        count = len(content.events) if isinstance(content, UsageRecords) else 1
        if refusal := misaddressed(record, content):
            _refuse_record(judged, record, told_tenant(content.tenant), max(count, 1), *refusal)
        elif isinstance(content, UsageControl):
            known = judged.controls.get(content.tenant) or controls.get(content.tenant)
            if known is None or content.version > known.control.version:
                judged.controls[content.tenant] = changed = _measuring(known, content, record)
                if content.backfill is not None and not _misplaced_record(record, content.tenant, changed, layout):
                    judged.backfills.append((changed, record.appended_at))
        elif count == 0:
            _refuse_record(judged, record, content.tenant, 1, "empty_batch", "a batch holds at least one event")
        else:
            measuring = judged.controls.get(content.tenant) or controls.get(content.tenant)
            if refusal := _misplaced_record(record, content.tenant, measuring, layout):
                _refuse_record(judged, record, content.tenant, count, *refusal)
            else:
                _judge_batch(judged, places.setdefault(content.tenant, {}), record, content, measuring, layout)
    return first


def _judge_correction(
    judged: Judged, record: Record, content: UsageVoided | UsageAmended, measuring: Measuring | None, layout: Layout
) -> None:
    """An amendment must be an event that would be accepted now; if it is not, the old one stays."""
    told = content.event if isinstance(content, UsageAmended) else content
    tenant = told_tenant(content.tenant)
    if refusal := misaddressed(record, content) or _misplaced_record(record, tenant, measuring, layout):
        _refuse_record(judged, record, tenant, 0, *refusal, source=told.source, id=told.id)
        return
    if measuring is None:
        _refuse_record(judged, record, tenant, 0, "unknown_tenant", _UNKNOWN.format(tenant), "", told.source, told.id)
        return
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    identity = identity_bytes(told.source, told.id)
    amended = None
    if isinstance(content, UsageAmended):
        raw = raw_of(content.event)
        try:
            made = measuring.contributions(raw, appended_us)
            if measuring.control.spread:  # by its new time it stays where copies of either meet
                _check_place(raw, measuring.control, record.partition, layout)
        except Rejected as e:
            _refuse_record(judged, record, tenant, 0, e.code, e.detail, f"event.{e.field}", told.source, told.id)
            return
        place = Place(tenant, record.offset, appended_us)
        amended = Arrival(identity, content_of(raw), place, 0, raw["customer"], raw["time"], made)
    oldest = _instant(measuring.oldest_us(appended_us))
    judged.corrections.append(Correction(record, tenant, told.source, told.id, identity, oldest, amended))


def _measuring(known: Measuring | None, control: UsageControl, record: Record) -> Measuring:
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    if known is None:
        return Measuring(control, record.offset, record.value or b"", appended_us)
    return known.followed_by(control, record.offset, record.value or b"", appended_us)


def _judge_batch(
    judged: Judged,
    places: dict[bytes, int],
    record: Record,
    batch: UsageRecords,
    measuring: Measuring | None,
    layout: Layout,
) -> None:
    """`places`: of the tenant's claims by identity. The loop that all usage passes: each step counts."""
    if measuring is None:
        detail = _UNKNOWN.format(batch.tenant)
        _refuse_record(judged, record, batch.tenant, len(batch.events), "unknown_tenant", detail)
        return
    tenant = batch.tenant
    fates = judged.fate(tenant, record)
    fates.received += len(batch.events)
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    place = Place(tenant, record.offset, appended_us)
    judged._records[record.offset] = record
    claims, measure, is_spread = judged.claims, measuring.contributions, bool(measuring.control.spread)
    for index, raw in enumerate(batch.events):
        try:
            contributions = measure(raw, appended_us)
            if is_spread:
                _check_place(raw, measuring.control, record.partition, layout)
        except Rejected as refused:
            fates.rejected += 1
            judged.refusals.append(_refused_event(tenant, record, index, raw, refused))
            continue
        identity = identity_bytes(raw["source"], raw["id"])
        arrival = Arrival(identity, content_of(raw), place, index, raw["customer"], raw["time"], contributions)
        at = places.setdefault(identity, len(claims))
        if at < len(claims):
            judged._repeats.append((at, arrival))
        else:
            claims.append(arrival)


_UNKNOWN = "tenant {!r} is not registered, or its registration has not reached this partition yet"


def _misplaced_record(
    record: Record, tenant: str, measuring: Measuring | None, layout: Layout
) -> tuple[str, str, str] | None:
    """Reason, detail and field if no usage of the tenant belongs into the record's partition."""
    home = layout.home(tenant)
    if measuring is None or not measuring.control.spread:
        if record.partition == home:
            return None
        said = f"partition {record.partition} is not the tenant's, {home} is: the partitioner must be murmur2_random"
        return "key_mismatch", said, "partition"
    belonging = layout.touched(tenant, measuring.control.spread)
    if record.partition in belonging:
        return None
    return "key_mismatch", f"partition {record.partition} is none of the tenant's: {belonging}", "partition"


def _check_place(raw: RawEvent, control: UsageControl, partition: int, layout: Layout) -> None:
    """Raises `Rejected` if an event, in order otherwise, belongs into another partition than its copies would."""
    width = width_at(control.spread, EPOCH + timedelta(microseconds=raw["time"]))
    home = layout.home(control.tenant)
    right = partition_of(home, layout.partitions, width, raw["source"], raw["id"])
    if right != partition:
        said = f"it lies in partition {partition}; usage of its time is spread over {width}, it belongs into {right}"
        raise Rejected("key_mismatch", said, field="partition")


def _instant(us: int) -> datetime:
    """The same, or the first that a calendar knows."""
    try:
        return EPOCH + timedelta(microseconds=us)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def misaddressed(
    record: Record, content: UsageRecords | UsageControl | UsageVoided | UsageAmended
) -> tuple[str, str, str] | None:
    """Reason, detail and field if key or headers do not belong to the tenant in the record."""
    tenant = content.tenant
    if not is_name(tenant):
        return "invalid_tenant", f"allowed are 1 to {ID_LENGTH_MAX} printable characters", "tenant"
    if record.key != tenant.encode():
        return "key_mismatch", f"the record's key is {record.key!r:.80}; it must be the tenant, {tenant!r}", "key"
    if "tenant" in record.repeated or record.headers.get("tenant") != tenant.encode():
        return "header_mismatch", f"the header `tenant` must be given once, as {tenant!r}", "headers.tenant"
    return None


def refuse_correction(judged: Judged, each: Correction, reason: str, detail: str) -> None:
    """What is to be corrected is not there."""
    _refuse_record(judged, each.record, each.tenant, 0, reason, detail, "id", each.source, each.id)


def _refuse_record(
    judged: Judged,
    record: Record,
    tenant: str,
    events: int,
    reason: str,
    detail: str,
    field: str = "",
    source: str | None = None,
    id: str | None = None,
) -> None:
    fates = judged.fate(tenant, record)
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
    judged.refusals.append(Refusal(usage, events, record.appended_at))


def _refused_event(tenant: str, record: Record, index: int, raw: RawEvent, refused: Rejected) -> Refusal:
    """The refusal of one event; its original is a batch of it alone, ready to be sent again."""
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
    return Refusal(usage, 1, record.appended_at)


def _alone(tenant: str, raw: RawEvent, record: Record) -> bytes:
    try:
        return encode_usage(UsageBatch(tenant=TenantId(tenant), events=(event_of(raw),)))
    except Rejected:  # its time is none that a calendar knows: keep the record it came in
        return record.value or b""


def told_tenant(text: str) -> str:
    """The tenant that a record tells, under which it is counted; empty where that is no tenant's name."""
    return text if is_name(text) else ""
