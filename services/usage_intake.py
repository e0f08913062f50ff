"""Judging usage: records in, and for each event what it claims, contributes, or why it is refused.

Pure: no clock, no network. The aggregator asks Postgres which claims are taken (`Judged.claims`) and hands the answer
to `Judged.settle`; both halves depend on nothing but the log and the order of its partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import (
    ID_LENGTH_MAX,
    RejectedUsage,
    UsageBatch,
    UsageControl,
)
from infra.kafka import Record
from projections.usage import Identity
from schemas.codec import UsageRecords, decode_usage_records, encode_usage
from schemas.errors import DecodeError
from services.usage_measuring import EPOCH, Contribution, Measuring, RawEvent, event_of, is_name

WHOLE_RECORD = -1  # batch_index of a refusal that concerns the whole record
_MICROSECOND = timedelta(microseconds=1)

Placed = Callable[[str, int], bool]
"""Whether a tenant's usage belongs into a partition."""


class Claim(NamedTuple):
    """An event in order, which counts if its identity is still free."""

    event: Identity
    contributions: list[Contribution]
    record: Record
    """What it came in."""
    raw: RawEvent


@dataclass(slots=True)
class Fates:
    """What became of a tenant's events that were appended in one hour."""

    received: int = 0
    counted: int = 0
    duplicate: int = 0
    conflict: int = 0
    rejected: int = 0


class Refusal(NamedTuple):
    """Usage that is not counted, and how many events that is."""

    usage: RejectedUsage
    events: int
    appended_at: datetime


@dataclass(slots=True)
class Judged:
    """What a run of records comes to, before it is known which identities are taken."""

    claims: list[Claim] = field(default_factory=list)
    """First event of each identity, in order of the log."""
    refusals: list[Refusal] = field(default_factory=list)
    fates: dict[tuple[str, datetime], Fates] = field(default_factory=dict)
    """By tenant and hour of the append; final after `settle`."""
    controls: dict[str, Measuring] = field(default_factory=dict)
    """Tenants that are measured in a new way at the end of the run."""
    _repeats: list[tuple[int, Claim]] = field(default_factory=list)
    """(Place of the claim with that identity, the later arrival)."""

    def settle(self, taken: Mapping[int, str]) -> list[Claim]:
        """The claims that count. `taken`: content of the earlier event by place of each claim that came too late.

        Adds the conflicts to `refusals` and completes `fates`.
        """
        for place, content in sorted(taken.items()):
            self._late_arrival(content, self.claims[place])
        for place, claim in self._repeats:
            self._late_arrival(taken.get(place, self.claims[place].event.content), claim)
        counted = []
        for place, claim in enumerate(self.claims):
            if place not in taken:
                counted.append(claim)
                self.fate(claim.event.tenant, claim.record).counted += 1
        return counted

    def _late_arrival(self, first: str, claim: Claim) -> None:
        event = claim.event
        fates = self.fate(event.tenant, claim.record)
        if first == event.content:
            fates.duplicate += 1
            return
        fates.conflict += 1
        detail = "an event with this source and id but other content was counted before"
        conflict = Rejected("id_conflict", detail, field="id")
        self.refusals.append(_refused_event(event.tenant, claim.record, event.batch_index, claim.raw, conflict))

    def fate(self, tenant: str, record: Record) -> Fates:
        """Where to count an event of `record`."""
        key = (tenant, record.appended_at.replace(minute=0, second=0, microsecond=0))
        known = self.fates.get(key)
        if known is None:
            known = self.fates[key] = Fates()
        return known


def judge(records: Iterable[Record], controls: Mapping[str, Measuring], placed: Placed) -> Judged:
    """What `records`, one partition's in order, come to when the partition measures by `controls` at their start."""
    judged = Judged()
    places: dict[tuple[str, str], int] = {}
    for record in records:
        try:
            content = decode_usage_records(record.value)
        except DecodeError as error:
            _refuse_record(judged, record, "", 1, error.reason, error.detail)
            continue
        count = len(content.events) if isinstance(content, UsageRecords) else 1
        if refusal := misaddressed(record, content, placed):
            _refuse_record(judged, record, told_tenant(content.tenant), max(count, 1), *refusal)
        elif isinstance(content, UsageControl):
            known = judged.controls.get(content.tenant) or controls.get(content.tenant)
            if known is None or content.version > known.control.version:
                judged.controls[content.tenant] = Measuring(content, record.offset, record.value or b"")
        elif count == 0:
            _refuse_record(judged, record, content.tenant, 1, "empty_batch", "a batch holds at least one event")
        else:
            measuring = judged.controls.get(content.tenant) or controls.get(content.tenant)
            _judge_batch(judged, places, record, content, measuring)
    return judged


def _judge_batch(
    judged: Judged, places: dict[tuple[str, str], int], record: Record, batch: UsageRecords, measuring: Measuring | None
) -> None:
    if measuring is None:
        detail = f"tenant {batch.tenant!r} is not registered, or its registration has not reached this partition yet"
        _refuse_record(judged, record, batch.tenant, len(batch.events), "unknown_tenant", detail)
        return
    tenant = batch.tenant
    fates = judged.fate(tenant, record)
    fates.received += len(batch.events)
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    for index, raw in enumerate(batch.events):
        try:
            contributions = measuring.contributions(raw, appended_us)
        except Rejected as refused:
            fates.rejected += 1
            judged.refusals.append(_refused_event(tenant, record, index, raw, refused))
            continue
        identity = identity_of(raw["source"], raw["id"])
        event = Identity(
            tenant, identity, content_of(raw), record.partition, record.offset, index, raw["customer"], raw["time"]
        )
        claim = Claim(event, contributions, record, raw)
        place = places.setdefault((tenant, identity), len(judged.claims))
        if place < len(judged.claims):
            judged._repeats.append((place, claim))
        else:
            judged.claims.append(claim)


def identity_of(source: str, id: str) -> str:
    """What an event is recognised by within its tenant: 32 hex digits (SEMANTICS 13)."""
    return blake2b(f"{len(source)}:{source}{id}".encode(), digest_size=16).hexdigest()


def content_of(raw: RawEvent) -> str:
    """What two events with the same identity must share to be the same: 32 hex digits."""
    parts = [raw["type"], raw["customer"], str(raw["time"])]
    properties = raw["properties"]
    for name in sorted(properties):
        parts += (name, properties[name])
    # A length before each part: no two contents run together.
    return blake2b("".join([f"{len(each)}:{each}" for each in parts]).encode(), digest_size=16).hexdigest()


def misaddressed(record: Record, content: UsageRecords | UsageControl, placed: Placed) -> tuple[str, str, str] | None:
    """Reason, detail and field if key, headers or partition do not belong to the tenant in the record."""
    tenant = content.tenant
    if not is_name(tenant):
        return "invalid_tenant", f"allowed are 1 to {ID_LENGTH_MAX} printable characters", "tenant"
    if record.key != tenant.encode():
        return "key_mismatch", f"the record's key is {record.key!r:.80}; it must be the tenant, {tenant!r}", "key"
    if "tenant" in record.repeated or record.headers.get("tenant") != tenant.encode():
        return "header_mismatch", f"the header `tenant` must be given once, as {tenant!r}", "headers.tenant"
    if isinstance(content, UsageRecords) and not placed(tenant, record.partition):
        detail = f"partition {record.partition} is not the tenant's: the partitioner must be murmur2_random"
        return "key_mismatch", detail, "partition"
    return None


def _refuse_record(
    judged: Judged, record: Record, tenant: str, events: int, reason: str, detail: str, field: str = ""
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
