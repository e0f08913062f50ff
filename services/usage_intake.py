"""Judging usage: records in, and for each event what it claims, contributes, or why it is refused.

Pure: no clock, no network. The aggregator asks Postgres which claims are taken (`Judged.claims`) and hands the answer
to `Judged.settle`; both halves depend on nothing but the log and the order of its partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import (
    ID_LENGTH_MAX,
    RejectedUsage,
    UsageBatch,
    UsageControl,
)
from infra.kafka import Record
from projections.usage import Taken
from projections.usage_rows import Arrival, Place, Series
from schemas.codec import UsageRecords, decode_usage_records, encode_usage
from schemas.errors import DecodeError
from services.usage_measuring import EPOCH, Measuring, RawEvent, event_of, is_name

WHOLE_RECORD = -1  # batch_index of a refusal that concerns the whole record
_MICROSECOND = timedelta(microseconds=1)

Placed = Callable[[str, int], bool]
"""Whether a tenant's usage belongs into a partition."""


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

    claims: list[Arrival] = field(default_factory=list)
    """First event of each identity, in order of the log."""
    refusals: list[Refusal] = field(default_factory=list)
    fates: dict[tuple[str, datetime], Fates] = field(default_factory=dict)
    """By tenant and hour of the append; final after `settle`."""
    controls: dict[str, Measuring] = field(default_factory=dict)
    """Tenants that are measured in a new way at the end of the run."""
    _records: dict[int, Record] = field(default_factory=dict)
    """By offset: what the claims came in."""
    _repeats: list[tuple[int, Arrival]] = field(default_factory=list)
    """(Place of the claim with that identity, the later arrival)."""

    def series(self) -> set[Series]:
        """Of all accepted events, repeats included: so the log alone decides which series there are."""
        found = {made[0] for claim in self.claims for made in claim.contributions}
        found.update(made[0] for _, repeat in self._repeats for made in repeat.contributions)
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


def judge(records: Iterable[Record], controls: Mapping[str, Measuring], placed: Placed) -> Judged:
    """What `records`, one partition's in order, come to when the partition measures by `controls` at their start."""
    judged = Judged()
    places: dict[str, dict[bytes, int]] = {}
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
                judged.controls[content.tenant] = _measuring(known, content, record)
        elif count == 0:
            _refuse_record(judged, record, content.tenant, 1, "empty_batch", "a batch holds at least one event")
        else:
            measuring = judged.controls.get(content.tenant) or controls.get(content.tenant)
            _judge_batch(judged, places.setdefault(content.tenant, {}), record, content, measuring)
    return judged


def _measuring(known: Measuring | None, control: UsageControl, record: Record) -> Measuring:
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    if known is None:
        return Measuring(control, record.offset, record.value or b"", appended_us)
    return known.followed_by(control, record.offset, record.value or b"", appended_us)


def _judge_batch(
    judged: Judged, places: dict[bytes, int], record: Record, batch: UsageRecords, measuring: Measuring | None
) -> None:
    """`places`: of the tenant's claims by identity. The loop that all usage passes: each step counts."""
    if measuring is None:
        detail = f"tenant {batch.tenant!r} is not registered, or its registration has not reached this partition yet"
        _refuse_record(judged, record, batch.tenant, len(batch.events), "unknown_tenant", detail)
        return
    tenant = batch.tenant
    fates = judged.fate(tenant, record)
    fates.received += len(batch.events)
    appended_us = (record.appended_at - EPOCH) // _MICROSECOND
    place = Place(tenant, record.offset, appended_us)
    judged._records[record.offset] = record
    claims, measure = judged.claims, measuring.contributions
    for index, raw in enumerate(batch.events):
        try:
            contributions = measure(raw, appended_us)
        except Rejected as refused:
            fates.rejected += 1
            judged.refusals.append(_refused_event(tenant, record, index, raw, refused))
            continue
        identity = _identity(raw["source"], raw["id"])
        arrival = Arrival(identity, content_of(raw), place, index, raw["customer"], raw["time"], contributions)
        at = places.setdefault(identity, len(claims))
        if at < len(claims):
            judged._repeats.append((at, arrival))
        else:
            claims.append(arrival)


class _Sources(dict[str, Any]):
    """Source -> a hash that has taken it in already."""

    def __missing__(self, source: str) -> Any:
        if len(self) > SOURCES_KNOWN_MAX:
            self.clear()
        made = self[source] = blake2b(f"{len(source)}:{source}".encode(), digest_size=16)
        return made


SOURCES_KNOWN_MAX = 10_000
_sources = _Sources()
_TIME_BYTES = 5  # of a UUIDv7's 48 bits of milliseconds since 1970: to a quarter of a second


def identity_of(source: str, id: str) -> str:
    """What an event is recognised by within its tenant: 32 hex digits (SEMANTICS 13)."""
    return _identity(source, id).hex()


def _identity(source: str, id: str) -> bytes:
    """The same as 16 bytes.

    A hash; but an id that tells when it was made (UUIDv7) keeps its first 40 bits, so that events of one time lie
    together.
    """
    hashed = _sources[source].copy()
    hashed.update(id.encode())
    digest: bytes = hashed.digest()
    if len(id) == 36 and id[14] == "7" and id[8] == id[13] == "-":
        try:
            time = bytes.fromhex(id[:8] + id[9:11])
        except ValueError:
            return digest
        if len(time) == _TIME_BYTES:  # white space is skipped
            return time + digest[_TIME_BYTES:]
    return digest


class _Shapes(dict[tuple[str, ...], tuple[str, Callable[[Any], Any]]]):
    """Names of properties -> the same in order, joined, and what takes their values in that order."""

    def __missing__(self, names: tuple[str, ...]) -> tuple[str, Callable[[Any], Any]]:
        if len(self) > SHAPES_KNOWN_MAX:
            self.clear()
        order = sorted(names)
        take = itemgetter(*order) if len(order) > 1 else lambda properties: [properties[name] for name in order]
        made = self[names] = ("\0".join(order), take)
        return made


SHAPES_KNOWN_MAX = 10_000
_shapes = _Shapes()


def content_of(raw: RawEvent) -> bytes:
    """What two events with the same identity must share to be the same: 16 bytes."""
    properties = raw["properties"]
    separators = 2 * len(properties) + 2 if properties else 3
    names, values_of = _shapes[tuple(properties)]
    text = "\0".join((raw["type"], raw["customer"], str(raw["time"]), names, *values_of(properties)))
    if text.count("\0") != separators:
        return _content_with_nul(raw)
    return blake2b(text.encode(), digest_size=16).digest()


def _content_with_nul(raw: RawEvent) -> bytes:
    """The same of an event with NUL in a name: a length before each part tells them apart."""
    parts = [raw["type"], raw["customer"], str(raw["time"])]
    for name, value in sorted(raw["properties"].items()):
        parts += (name, value)
    text = "".join([f"{len(each)}:{each}" for each in parts])
    return blake2b(text.encode(), digest_size=16, person=b"lengths").digest()


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
