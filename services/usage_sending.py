"""Corrections of usage to the log, each in a record of its own, keyed as the events that they correct."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from billing.metering import UsageAmended, UsageVoided
from infra.kafka import Producer, headers
from projections.usage import TOPIC
from schemas.codec import encode_usage, fingerprint_of
from services.usage_placing import Layout, Spreads


def send(
    producer: Producer,
    corrections: Iterable[UsageVoided | UsageAmended],
    layout: Layout,
    spread: Spreads,
    *,
    sender: str,
    now: datetime,
) -> None:
    """Returns when the brokers have them. All are of one tenant, whose usage is spread by `spread`.

    Raises:
        Transient: some may not have arrived; sending them again is free.
    """
    for each in corrections:
        value = encode_usage(each)
        about = each.event if isinstance(each, UsageAmended) else each
        told = headers(
            id=f"{each.tenant}/{about.source}/{about.id}",
            type=f"tallybook.usage.{type(each).__name__}",
            source=sender,
            time=now,
            schema=fingerprint_of(value),
            tenant=each.tenant,
        )
        for partition in layout.correcting(spread, each):
            producer.send(TOPIC, value, key=each.tenant, partition=partition, headers=told)
    producer.flush()
