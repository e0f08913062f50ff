"""Tells every usage partition how a tenant's usage is measured, at one place in each partition's order.

Consumes  billing.events, group `meters`: TenantRegistered, PriceBookPublished, ClockAdvanced, UsageSpreadSet,
          MeterBackfillOrdered
Produces  a UsageControl into every partition of usage.events for each of them, versioned by the event's sequence
Owns      app.meter_set (each tenant's last control record), app.usage_spread (what of it says where usage lies, for
          all who send) and its own place in app.consumer_offset
Repeats   safely because a partition ignores a version that is not above its last one: after a crash between sending
          and committing the same records go out again and change nothing
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from billing.backfilling import Backfill, MeterBackfillOrdered
from billing.catalog import PriceBookPublished
from billing.envelope import EventEnvelope, EventMeta
from billing.errors import CorruptHistory
from billing.metering import UsageControl
from billing.placing import Spread
from billing.tenant import ClockAdvanced, TenantRegistered, UsageSpreadSet
from infra import postgres, telemetry
from infra.errors import Transient
from infra.kafka import KafkaConfig, Producer, headers
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import watched
from projections.usage import TOPIC
from schemas.codec import decode_usage, encode_usage, fingerprint_of
from services.event_intake import EventIntake, consumer

log = telemetry.logger("services.meters")

NAME: Final = "meters"
POLL_S: Final = 0.1
TROUBLE_S: Final = 1.0
WANTED: Final = (TenantRegistered, PriceBookPublished, ClockAdvanced, UsageSpreadSet, MeterBackfillOrdered)

_PLACES: Final = {"rows": "meters.before_commit", "commit": "meters.after_commit"}

Send = Callable[[UsageControl, EventMeta], None]
"""Appends a control record to every usage partition; returns when the brokers have all of them."""


def main(settings: Settings) -> int:
    """Publish until SIGTERM."""
    stop = on_signals()
    send = sender(settings, Producer(KafkaConfig.of(settings)))
    with postgres.worker_pool(settings) as pool:
        intake = EventIntake(
            NAME,
            consumer(settings, NAME),
            pool,
            WANTED,
            publishing(send),
            passing=_PLACES,
            watchdog=watched(settings),
        )
        try:
            while not stop.is_set():
                try:
                    intake.step(POLL_S)
                except Transient as e:
                    log.warning("meters pause", reason=str(e))
                    stop.wait(TROUBLE_S)
        finally:
            intake.close()
    return 0


def sender(settings: Settings, producer: Producer) -> Send:
    """Sends to all partitions of `usage.events`."""

    def send(control: UsageControl, cause: EventMeta) -> None:
        value = encode_usage(control)
        for partition in range(settings.usage_partitions):
            producer.send(
                TOPIC,
                value,
                key=control.tenant,
                partition=partition,
                headers=headers(
                    id=f"{cause.event_id}/{partition}",
                    type="tallybook.usage.UsageControl",
                    source="tallybook/meters",
                    time=cause.occurred_at,
                    schema=fingerprint_of(value),
                    tenant=control.tenant,
                ),
            )
        producer.flush()

    return send


def publishing(send: Send) -> Callable[[postgres.Cursor, EventEnvelope, bytes], None]:
    """What the intake does with an event: fold it into the tenant's control record, send that, and remember it."""

    def apply(tx: postgres.Cursor, envelope: EventEnvelope, _value: bytes) -> None:
        meta = envelope.meta
        row = tx.execute("SELECT control FROM app.meter_set WHERE tenant_id = %s", (meta.tenant,)).fetchone()
        control = control_after(decode_usage(bytes(row[0])) if row else None, meta, envelope.event)
        send(control, meta)
        tx.execute(_REMEMBER, (meta.tenant, control.version, encode_usage(control)))
        for each in control.spread if isinstance(envelope.event, UsageSpreadSet) else ():
            tx.execute(_REMEMBER_SPREAD, (meta.tenant, each.effective_from, each.partitions))
        log.info("meters published", tenant=meta.tenant, version=control.version, meters=len(control.meters))

    return apply


_REMEMBER = """
INSERT INTO app.meter_set (tenant_id, version, control)
VALUES (%s, %s, %s)
    ON CONFLICT (tenant_id) DO UPDATE
   SET version = EXCLUDED.version, control = EXCLUDED.control
"""


_REMEMBER_SPREAD = """
INSERT INTO app.usage_spread (tenant_id, effective_from, partitions)
VALUES (%s, %s, %s)
    ON CONFLICT DO NOTHING
"""


def published(tx: postgres.Cursor, tenant: str) -> int:
    """Sequence of the event by which usage sent from now on is measured, in every partition; 0 if there is none."""
    row = tx.execute("SELECT version FROM app.meter_set WHERE tenant_id = %s", (tenant,)).fetchone()
    return int(row[0]) if row else 0


def control_after(known: Any, meta: EventMeta, event: Any) -> UsageControl:
    """The tenant's control record after `event`; `known` is the one before, None at its registration.

    A meter that a new price book leaves out is measured on: subscriptions on older books are billed by it.
    """
    if isinstance(known, UsageControl):
        known = replace(known, version=meta.sequence, backfill=None)  # asked for once, at one place
    match known, event:
        case None, TenantRegistered():
            return UsageControl(
                tenant=meta.tenant, version=meta.sequence, meters=(), bounds=event.bounds, clock=event.test_clock
            )
        case UsageControl(), ClockAdvanced(to=to):
            return replace(known, clock=to)
        case UsageControl(spread=spread), UsageSpreadSet() as e:
            newer = Spread(effective_from=e.effective_from, partitions=e.partitions)
            return replace(known, spread=(*spread, newer))
        case UsageControl(), PriceBookPublished(meters=newest):
            meters = {each.key: each for each in (*known.meters, *newest)}
            return replace(known, meters=tuple(meters.values()))
        case UsageControl(), MeterBackfillOrdered() as e:
            return replace(known, backfill=Backfill(meter=e.meter, from_time=e.from_time, to_time=e.to_time))
        case _:
            raise CorruptHistory(f"{meta.event_id}: {meta.type} of a tenant that is not registered")
