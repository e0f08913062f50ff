"""Corrections of usage on their way to the log, each in a record of its own, keyed as the events that they correct.

A correction is applied in the partition of the event that counted, and refused in any other. Where a tenant's usage is
spread, that follows from the event's time, which a void does not tell: so the counted event is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from billing.errors import Rejected
from billing.metering import UsageAmended, UsageEvent, UsageVoided
from billing.placing import partition_of, width_at
from infra.kafka import Producer, headers
from infra.postgres import Cursor
from projections import usage_events
from projections.usage import TOPIC
from schemas.codec import encode_usage, fingerprint_of
from services.usage_identity import identity_of
from services.usage_placing import Layout, Spreads

Correction = UsageVoided | UsageAmended


def corrected(correction: Correction) -> UsageEvent | UsageVoided:
    """What tells source and id of the event that is corrected."""
    return correction.event if isinstance(correction, UsageAmended) else correction


def addressed(tx: Cursor, layout: Layout, spread: Spreads, correction: Correction, time: datetime | None = None) -> int:
    """The one partition where `correction` belongs. `tx` reads the current projections.

    `time`: of the event, where it may not be counted yet.

    Raises:
        Rejected: unknown_event: the event lies in one of several partitions, and nothing tells in which;
            key_mismatch: an amended time would move the event to another partition.
    """
    tenant, about = correction.tenant, corrected(correction)
    candidates = layout.candidates(tenant, spread, about.source, about.id)
    if len(candidates) == 1:
        return candidates[0]
    amended = layout.place(tenant, spread, correction.event) if isinstance(correction, UsageAmended) else None
    known = usage_events.found(tx, tenant, identity_of(about.source, about.id))
    if known is not None:
        if amended not in (None, known.place.partition):
            raise Rejected("key_mismatch", _MOVED.format(about.source, about.id), field="time")
        return known.place.partition
    if time is not None:
        width = width_at(spread, time)
        return partition_of(layout.home(tenant), layout.partitions, width, about.source, about.id)
    if amended is None:
        raise Rejected("unknown_event", _UNKNOWN.format(about.source, about.id), field="time")
    return amended


_MOVED = (
    "by its new time ({}, {}) belongs into another partition, for the tenant's usage is spread in another way then; "
    "void it, and send the event with an id of its own"
)
_UNKNOWN = (
    "no event ({}, {}) is counted yet, and the tenant's usage is spread in different ways at different times; "
    "tell the event's time, or try again once it is counted"
)


def send(producer: Producer, corrections: Iterable[tuple[Correction, int]], *, sender: str, now: datetime) -> None:
    """Returns when the brokers have them, each in the partition that stands with it (`addressed`).

    Raises:
        Transient: some may not have arrived; sending them again is free.
    """
    for each, partition in corrections:
        value = encode_usage(each)
        about = corrected(each)
        told = headers(
            id=f"{each.tenant}/{about.source}/{about.id}",
            type=f"tallybook.usage.{type(each).__name__}",
            source=sender,
            time=now,
            schema=fingerprint_of(value),
            tenant=each.tenant,
        )
        producer.send(TOPIC, value, key=each.tenant, partition=partition, headers=told)
    producer.flush()
