"""What is sent under fire, and the truth of it: events twice, late, changed and out of order, and corrections.

The truth is kept as it is sent, by code that shares nothing with what counts.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import confluent_kafka
import uuid_utils
from confluent_kafka import admin

from benchmarks.usage_load import encode_batch
from benchmarks.usage_system import BOUNDS, tenants, until
from billing.ids import TenantId
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import usage
from schemas.codec import encode_usage, fingerprint_of

Event = dict[str, Any]
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REMEMBERED = 5_000  # events of each tenant that may come again or be corrected
_OF_YESTERDAY = 10  # batches of each tenant that were appended a day ago
_HELD_BACK = 8  # records that are sent in another order
_CORRECTED = 0.1  # corrections a batch; each costs a worker as much as hundreds of events


@dataclass(slots=True)
class Truth:
    """What was sent, and what it must come to."""

    sums: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(Tenant, customer) -> events, and their bytes."""
    sent: Counter[str] = field(default_factory=Counter)
    """Events by what they are, each once, however often a record was sent."""
    corrections: Counter[str] = field(default_factory=Counter)
    """Corrections, likewise."""

    def count(self, tenant: str, event: Event, sign: int = 1) -> None:
        """The event counts from now on; `sign` -1: not any more."""
        key = (tenant, event["customer"])
        events, total = self.sums.get(key, (0, 0))
        self.sums[key] = (events + sign, total + sign * int(event["properties"]["bytes"]))
        if not self.sums[key][0]:
            del self.sums[key]


@dataclass(slots=True)
class _Record:
    """One that was or will be sent."""

    tenant: str
    value: bytes
    fresh: list[Event] = field(default_factory=list)
    """New events: as soon as the brokers have them they may come again."""
    standing: list[Event] = field(default_factory=list)
    """Events as they count with it: as soon as the brokers have it they may be corrected."""
    voided: UsageVoided | None = None
    """Likewise, may be voided again."""


class Producer(threading.Thread):
    """Sends records at a steady rate, whatever happens to the broker, until it is told to stop."""

    def __init__(self, settings: Settings, rate: int, seed: int) -> None:
        super().__init__(name="producer", daemon=True)
        self.truth = Truth()
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self._config = KafkaConfig.of(settings)
        self._tenants = tenants(settings.usage_partitions)
        self._rate = rate
        self._random = random.Random(seed)
        self._known: dict[str, list[Event]] = {each: [] for each in self._tenants}
        """By tenant, events that the brokers have: what comes again comes later in the log."""
        self._old: dict[str, list[Event]] = {each: [] for each in self._tenants}
        """The same, appended a day ago."""
        self._standing: dict[str, list[Event]] = {each: [] for each in self._tenants}
        """By tenant, events as they count now, that no correction is under way for."""
        self._voided: dict[str, list[UsageVoided]] = {each: [] for each in self._tenants}
        self._waiting: list[_Record] = []
        self._unsent: list[_Record] = []

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        producer = confluent_kafka.Producer(
            self._config.client()
            | {
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "log_level": 2,
                "delivery.timeout.ms": 60_000,
            }
        )
        self._send_yesterdays(producer)
        for tenant in itertools.cycle(self._tenants):
            if self.stopping.is_set():
                break
            size = self._random.randint(1, 100)
            self._waiting.append(self._batch(tenant, size))
            if self._random.random() < _CORRECTED and (correction := self._correction(tenant)):
                self._waiting.append(correction)
            if len(self._waiting) > _HELD_BACK:
                self._random.shuffle(self._waiting)
                while self._waiting:
                    self._send(producer, self._waiting.pop())
            self.stopping.wait(size / self._rate)
        for each in self._waiting:
            self._send(producer, each)
        while producer.flush(60) or self._unsent:
            again, self._unsent = self._unsent, []
            for each in again:
                self._send(producer, each)

    def _send_yesterdays(self, producer: confluent_kafka.Producer) -> None:
        """Records that the log believes to have been appended a day ago."""
        day_ago_us = _now_us() - _DAY_US
        with _producers_tell_the_time(self._config):
            for tenant in self._tenants * _OF_YESTERDAY:
                fresh = [self._event(day_ago_us - self._random.randrange(_HOUR_US)) for _ in range(100)]
                for each in fresh:
                    self.truth.count(tenant, each)
                self.truth.sent["a day ago"] += len(fresh)
                self._send(
                    producer, _Record(tenant, encode_batch(tenant, fresh), fresh, fresh), at_ms=day_ago_us // 1000
                )
            assert producer.flush(60) == 0
        self._old = {tenant: list(events) for tenant, events in self._known.items()}

    def _send(self, producer: confluent_kafka.Producer, record: _Record, at_ms: int = 0) -> None:
        def delivered(error: object, message: confluent_kafka.Message) -> None:
            if error is not None:  # it may lie there all the same: then it is a repetition
                self._unsent.append(record)
                return
            assert not at_ms or message.timestamp() == (confluent_kafka.TIMESTAMP_CREATE_TIME, at_ms)
            self._delivered(record)

        headers = [("schema", fingerprint_of(record.value).encode()), ("tenant", record.tenant.encode())]
        topic, key = self._config.named(usage.TOPIC), record.tenant.encode()
        producer.produce(topic, record.value, key, headers=headers, on_delivery=delivered, timestamp=at_ms)
        producer.poll(0)
        again, self._unsent = self._unsent, []
        for each in again:
            self._send(producer, each)

    def _delivered(self, record: _Record) -> None:
        if record.voided is not None:
            self._voided[record.tenant].append(record.voided)
        for events, more in (
            (self._known[record.tenant], record.fresh),
            (self._standing[record.tenant], record.standing),
        ):
            events += more
            del events[: max(0, len(events) - _REMEMBERED)]

    def _batch(self, tenant: str, size: int) -> _Record:
        chance, truth = self._random, self.truth
        known, old = self._known[tenant], self._old[tenant]
        batch: list[Event] = []
        fresh: list[Event] = []
        for _ in range(size):
            what = chance.random()
            if what < 0.08:
                batch.append(chance.choice(known))
                truth.sent["again, in another batch"] += 1
            elif what < 0.10:
                batch.append(chance.choice(old))
                truth.sent["again, a day later"] += 1
            elif what < 0.12:
                batch.append({**chance.choice(known), "properties": {"bytes": "7777777", "region": "changed"}})
                truth.sent["again, but changed"] += 1
            elif what < 0.13:
                batch.append(self._event(_now_us() - (BOUNDS.oldest_days + 1) * _DAY_US))
                truth.sent["too late"] += 1
            else:
                is_late = what < 0.25
                event = self._event(_now_us() - chance.randrange(_DAY_US, 30 * _DAY_US) if is_late else _now_us())
                batch.append(event)
                fresh.append(event)
                truth.count(tenant, event)
                truth.sent["late" if is_late else "new"] += 1
                if what > 0.97:
                    batch.append(event)
                    truth.sent["again, in the same batch"] += 1
        return _Record(tenant, encode_batch(tenant, batch), fresh, fresh)

    def _correction(self, tenant: str) -> _Record | None:
        """Of an event that the brokers have, one at a time: what it does does not depend on when it arrives."""
        chance, what = self._random, self._random.random()
        if what < 0.1 and self._voided[tenant]:
            self.truth.corrections["voided again"] += 1
            return _Record(tenant, encode_usage(chance.choice(self._voided[tenant])))
        standing = self._standing[tenant]
        if not standing:
            return None
        event = standing.pop(chance.randrange(len(standing)))
        self.truth.count(tenant, event, -1)
        if what < 0.5:
            self.truth.corrections["voided"] += 1
            voided = UsageVoided(tenant=TenantId(tenant), source=event["source"], id=event["id"], reason="chaos")
            return _Record(tenant, encode_usage(voided), voided=voided)
        amended = {
            **self._event(event["time"] - chance.randrange(_HOUR_US)),
            "source": event["source"],
            "id": event["id"],
        }
        self.truth.count(tenant, amended)
        self.truth.corrections["amended"] += 1
        told = UsageEvent(**{**amended, "time": _EPOCH + timedelta(microseconds=amended["time"])})
        value = encode_usage(UsageAmended(tenant=TenantId(tenant), event=told, reason="chaos"))
        return _Record(tenant, value, standing=[amended])

    def _event(self, time_us: int) -> Event:
        chance = self._random
        return {
            "id": str(uuid_utils.uuid7()) if chance.random() < 0.7 else f"own-{chance.getrandbits(64):x}",
            "source": chance.choice(("gateway", "worker")),
            "type": "api",
            "customer": f"c-{chance.randrange(50)}",
            "time": time_us,
            "properties": {"bytes": str(chance.randrange(100_000)), "region": f"eu-{chance.randrange(4)}"},
        }


@contextmanager
def _producers_tell_the_time(config: KafkaConfig) -> Iterator[None]:
    """While it lasts, a record of usage was appended when its producer says."""
    client = admin.AdminClient(config.client())
    topic = config.named(usage.TOPIC)

    def stamp(by: str) -> None:
        entry = admin.ConfigEntry("message.timestamp.type", by, incremental_operation=admin.AlterConfigOpType.SET)
        wanted = admin.ConfigResource(admin.ResourceType.TOPIC, topic, incremental_configs=[entry])
        for answer in client.incremental_alter_configs([wanted]).values():
            answer.result(30)
        asked = admin.ConfigResource(admin.ResourceType.TOPIC, topic)
        until(
            lambda: client.describe_configs([asked])[asked].result(30)["message.timestamp.type"].value == by,
            within_s=30,
        )

    stamp("CreateTime")
    try:
        yield
    finally:
        stamp("LogAppendTime")


def _now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)
