"""Judging usage: records in, and for each event what it claims, contributes, or why it is refused.

Pure: no clock, no network. The aggregator asks Postgres which claims are taken (`Judged.claims`) and hands the answer
to `Judged.settle`; both halves depend on nothing but the log and the order of its partition. A correction ends a run:
what it finds is what all before it left, and what follows it finds what it left (`Judged.runs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from billing.errors import Rejected
from billing.metering import ID_LENGTH_MAX, UsageAmended, UsageControl, UsageVoided
from billing.placing import width_at
from infra.kafka import Record
from projections.usage_rows import Arrival, Place
from schemas.codec import UsageRecords, decode_usage_records, usage_body
from schemas.errors import DecodeError
from services.usage_identity import content_of, identity_bytes
from services.usage_judged import Correction, Judged, told_tenant
from services.usage_measuring import EPOCH, MICROSECOND, Measuring, RawEvent, is_name, raw_of
from services.usage_placing import Layout
from services.usage_scanning import Scanned, Scanners

WHOLE_RECORD = -1  # batch_index of a refusal that concerns the whole record

_Claims = dict[bytes, Arrival | Scanned]
"""Of a tenant in a run: identity -> what claims it."""


def judge(
    records: Iterable[Record], controls: Mapping[str, Measuring], layout: Layout, scanners: Scanners | None = None
) -> Judged:
    """What `records`, one partition's in order, come to when the partition measures by `controls` at their start.

    `scanners`: of the generation that `controls` are of. They take what they can, which is quicker and comes to the
    same.
    """
    intake = _Intake(controls, layout, scanners)
    for record in records:
        intake.take(record)
    return intake.first


class _Intake:
    def __init__(self, controls: Mapping[str, Measuring], layout: Layout, scanners: Scanners | None) -> None:
        self.first = self._run = Judged()
        self._controls = controls
        self._layout = layout
        self._scanners = scanners
        self._claims: dict[str, _Claims] = {}

    def take(self, record: Record) -> None:
        start = usage_body(record.value) if self._scanners is not None else 0
        if start and self._scan(record, start):
            return
        try:
            content = decode_usage_records(record.value)
        except DecodeError as error:
            self._run.refuse_record(record, "", 1, error.reason, error.detail)
            return
        if isinstance(content, UsageVoided | UsageAmended):
            self._correct(record, content)
            return
        self._end_corrections()
        count = len(content.events) if isinstance(content, UsageRecords) else 1
        if refusal := misaddressed(record, content.tenant):
            self._run.refuse_record(record, told_tenant(content.tenant), max(count, 1), *refusal)
        elif isinstance(content, UsageControl):
            known = self._measuring(content.tenant)
            if known is None or content.version > known.control.version:
                self._run.controls[content.tenant] = changed = _followed(known, content, record)
                if content.backfill is not None and not _misplaced(record, content.tenant, changed, self._layout):
                    self._run.backfills.append((changed, record.appended_at))
        elif count == 0:
            self._run.refuse_record(record, content.tenant, 1, "empty_batch", "a batch holds at least one event")
        else:
            measuring = self._measuring(content.tenant)
            if refusal := _misplaced(record, content.tenant, measuring, self._layout):
                self._run.refuse_record(record, content.tenant, count, *refusal)
            elif measuring is None:
                unknown = _UNKNOWN.format(content.tenant)
                self._run.refuse_record(record, content.tenant, count, "unknown_tenant", unknown)
            else:
                self._judge(record, content.tenant, enumerate(content.events), measuring)

    def _measuring(self, tenant: str) -> Measuring | None:
        return self._run.controls.get(tenant) or self._controls.get(tenant)

    def _end_corrections(self) -> None:
        """What follows corrections is a run of its own."""
        if self._run.corrections:
            self._run.following = Judged(controls=self._run.controls, backfills=self._run.backfills)
            self._run, self._claims = self._run.following, {}

    def _scan(self, record: Record, start: int) -> bool:
        """Take a batch the quick way; False: it is untouched, and must be decoded."""
        tenant = (record.key or b"").decode(errors="replace")
        measuring = self._measuring(tenant)
        if measuring is None or misaddressed(record, tenant) or _misplaced(record, tenant, measuring, self._layout):
            return False
        assert self._scanners is not None
        assert record.value is not None
        claims = {} if self._run.corrections else self._claims.setdefault(tenant, {})
        place = Place(tenant, record.offset, _appended_us(record))
        accepted_us = measuring.accepted_us(place.appended_us)
        scanned = self._scanners.of(measuring).scan(record.value, start, place, record.partition, accepted_us, claims)
        if scanned is None:
            return False
        left: list[tuple[int, RawEvent]] = []
        if scanned.left:
            try:
                batch = decode_usage_records(record.value)
            except DecodeError:
                return False
            assert isinstance(batch, UsageRecords)
            left = [(index, batch.events[index]) for index in scanned.left]
            if not {identity_bytes(each["source"], each["id"]) for _, each in left}.isdisjoint(scanned.identities):
                return False  # their order in the log decides
        self._end_corrections()
        self._run.scanned.append(scanned)
        self._run.records[record.offset] = record
        self._run.fate(tenant, record).received += len(scanned.indexes)
        self._claims.setdefault(tenant, {}).update(dict.fromkeys(scanned.identities, scanned))
        self._judge(record, tenant, left, measuring)
        return True

    def _judge(self, record: Record, tenant: str, events: Iterable[tuple[int, RawEvent]], measuring: Measuring) -> None:
        """`events` by their places in the record."""
        run = self._run
        claims = self._claims.setdefault(tenant, {})
        fates = run.fate(tenant, record)
        appended_us = _appended_us(record)
        place = Place(tenant, record.offset, appended_us)
        run.records[record.offset] = record
        for index, raw in events:
            fates.received += 1
            try:
                contributions = measuring.contributions(raw, appended_us)
                _check_place(raw, measuring.control, record.partition, self._layout)
            except Rejected as refused:
                fates.rejected += 1
                run.refuse_event(tenant, record, index, raw, refused)
                continue
            identity = identity_bytes(raw["source"], raw["id"])
            arrival = Arrival(identity, content_of(raw), place, index, raw["customer"], raw["time"], contributions)
            first = claims.setdefault(identity, arrival)
            if first is arrival:
                run.claims.append(arrival)
            else:
                run.repeats.append((first, arrival))

    def _correct(self, record: Record, content: UsageVoided | UsageAmended) -> None:
        """An amendment must be an event that would be accepted now; if it is not, the old one stays."""
        told = content.event if isinstance(content, UsageAmended) else content
        tenant = told_tenant(content.tenant)
        named = {"source": told.source, "id": told.id}
        measuring = self._measuring(content.tenant)
        run = self._run
        if refusal := misaddressed(record, content.tenant) or _misplaced(record, tenant, measuring, self._layout):
            run.refuse_record(record, tenant, 0, *refusal, **named)
            return
        if measuring is None:
            run.refuse_record(record, tenant, 0, "unknown_tenant", _UNKNOWN.format(tenant), **named)
            return
        appended_us = _appended_us(record)
        identity = identity_bytes(told.source, told.id)
        amended = None
        if isinstance(content, UsageAmended):
            raw = raw_of(content.event)
            try:
                made = measuring.contributions(raw, appended_us)
                # By its new time it stays where copies of either meet.
                _check_place(raw, measuring.control, record.partition, self._layout)
            except Rejected as e:
                run.refuse_record(record, tenant, 0, e.code, e.detail, f"event.{e.field}", **named)
                return
            place = Place(tenant, record.offset, appended_us)
            amended = Arrival(identity, content_of(raw), place, 0, raw["customer"], raw["time"], made)
        oldest = _instant(measuring.accepted_us(appended_us)[0])
        run.corrections.append(Correction(record, tenant, told.source, told.id, identity, oldest, amended))


_UNKNOWN = "tenant {!r} is not registered, or its registration has not reached this partition yet"


def _followed(known: Measuring | None, control: UsageControl, record: Record) -> Measuring:
    if known is None:
        return Measuring(control, record.offset, record.value or b"", _appended_us(record))
    return known.followed_by(control, record.offset, record.value or b"", _appended_us(record))


def _misplaced(record: Record, tenant: str, measuring: Measuring | None, layout: Layout) -> tuple[str, str, str] | None:
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
    if not control.spread:
        return
    right = layout.place_at(control, raw["time"], raw["source"], raw["id"])
    if right != partition:
        width = width_at(control.spread, EPOCH + timedelta(microseconds=raw["time"]))
        said = f"it lies in partition {partition}; usage of its time is spread over {width}, it belongs into {right}"
        raise Rejected("key_mismatch", said, field="partition")


def misaddressed(record: Record, tenant: str) -> tuple[str, str, str] | None:
    """Reason, detail and field if key or headers do not belong to `tenant`, which the record tells."""
    if not is_name(tenant):
        return "invalid_tenant", f"allowed are 1 to {ID_LENGTH_MAX} printable characters", "tenant"
    if record.key != tenant.encode():
        return "key_mismatch", f"the record's key is {record.key!r:.80}; it must be the tenant, {tenant!r}", "key"
    if "tenant" in record.repeated or record.headers.get("tenant") != tenant.encode():
        return "header_mismatch", f"the header `tenant` must be given once, as {tenant!r}", "headers.tenant"
    return None


def _appended_us(record: Record) -> int:
    return (record.appended_at - EPOCH) // MICROSECOND


def _instant(us: int) -> datetime:
    """The same, or the first that a calendar knows."""
    try:
        return EPOCH + timedelta(microseconds=us)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
