"""Reading the event log again: every tenant's numbers without gaps, every aggregate's versions, the hash chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from billing.envelope import GENESIS, EventMeta
from infra.kafka import KafkaConfig, Record, end_offsets, partition_for, scan, start_offsets
from infra.settings import Settings
from schemas import codec
from schemas.errors import DecodeError
from schemas.hashing import hash_of_stored

EVENTS = "billing.events"
FAULTS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the log contradicts itself."""

    position: str
    """topic[partition]@offset"""
    tenant: str
    what: str


@dataclass(slots=True)
class Report:
    """What a check found."""

    events: int = 0
    tenants: int = 0
    faults: list[Fault] = field(default_factory=list)
    """The first ones; there may be more."""
    faults_total: int = 0

    @property
    def sound(self) -> bool:
        """Whether the log never contradicts itself."""
        return self.faults_total == 0


@dataclass(slots=True)
class _Chain:
    """Where a tenant's events stand."""

    sequence: int = 0
    hash: bytes = GENESIS
    versions: dict[str, int] = field(default_factory=dict)


class LogCheck:
    """Takes events in the order of the log. After a fault it goes on from what the log says, to find the others."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._chains: dict[str, _Chain] = {}
        self.report = Report()

    def take(self, record: Record) -> None:
        """Check one record."""
        self.report.events += 1
        try:
            meta = codec.decode_event(record.value).meta
            assert record.value is not None
            hashed = hash_of_stored(record.value)
        except DecodeError as e:
            self._fault(record, "", str(e))
            return
        if record.key != meta.tenant.encode():
            self._fault(record, meta.tenant, f"its key is {record.key!r}")
        if partition_for(meta.tenant, self._partitions) != record.partition:
            self._fault(record, meta.tenant, "the tenant belongs to another partition")
        self._follow(record, meta, hashed)
        self.report.tenants = len(self._chains)

    def _follow(self, record: Record, meta: EventMeta, hashed: bytes) -> None:
        chain = self._chains.setdefault(meta.tenant, _Chain())
        if meta.sequence != chain.sequence + 1:
            self._fault(record, meta.tenant, f"event {meta.sequence} after {chain.sequence}")
        if meta.previous_hash != chain.hash:
            self._fault(record, meta.tenant, f"event {meta.sequence} does not continue the hash chain")
        version = chain.versions.get(meta.aggregate_id, 0) + 1
        if meta.aggregate_version != version:
            what = f"{meta.aggregate_id}: version {meta.aggregate_version} where {version} follows"
            self._fault(record, meta.tenant, what)
        chain.sequence, chain.hash = meta.sequence, hashed
        chain.versions[meta.aggregate_id] = meta.aggregate_version

    def _fault(self, record: Record, tenant: str, what: str) -> None:
        self.report.faults_total += 1
        if len(self.report.faults) < FAULTS_KEPT:
            self.report.faults.append(Fault(f"{record.topic}[{record.partition}]@{record.offset}", tenant, what))


def check_log(settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Read all of `billing.events` and check it; `progress` hears of records done and (about) in all.

    Raises:
        Transient: the cluster does not answer.
    """
    config = KafkaConfig.of(settings)
    partitions = range(settings.billing_partitions)
    starts = start_offsets(config, EVENTS, partitions)
    ends = end_offsets(config, EVENTS, partitions)
    total = sum(ends.values()) - sum(starts.values())
    check = LogCheck(settings.billing_partitions)
    for records in scan(config, EVENTS, starts, ends):  # in order per partition, and a tenant has only one
        for each in records:
            check.take(each)
        progress(check.report.events, total)
    for partition, start in starts.items():
        if start:  # the topic is kept for ever: something cut its beginning off
            check.report.faults_total += 1
            check.report.faults.append(Fault(f"{EVENTS}[{partition}]@{start}", "", "the log before it is gone"))
    return check.report
