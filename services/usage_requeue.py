"""Sending refused usage again, after what refused it was mended.

The same event with the same identity: whatever the second try comes to, nothing counts twice. An event that was counted
meanwhile is not sent; one that is refused again is refused at its new position; sent by two at once, the later copy is
a duplicate. The original is read from the usage log, where it lies as long as the log is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from billing.errors import Rejected
from billing.ids import TenantId
from billing.metering import UsageAmended, UsageBatch, UsageEvent, UsageVoided
from infra.kafka import Producer, Record, headers
from infra.postgres import Cursor
from projections import generation, usage_events
from projections.usage import TOPIC
from projections.usage_events import Refused
from schemas.codec import UsageRecords, decode_usage, decode_usage_records, encode_usage, fingerprint_of
from schemas.errors import DecodeError
from services.usage_identity import identity_of
from services.usage_log import event_in
from services.usage_measuring import event_of, is_name
from services.usage_placing import Layout, Spreads, spreads
from services.usage_sending import addressed

SENT: Final = "sent"
WOULD_BE_SENT: Final = "would be sent"
COUNTED: Final = "counted already"
HOPELESS: Final = "cannot be sent"


@dataclass(frozen=True, slots=True)
class Requeued:
    """What became of one refusal."""

    refused: Refused
    outcome: str
    """`sent`, `would be sent`, `counted already` or `cannot be sent`."""
    detail: str = ""


def counted_since(tx: Cursor, refused: Refused) -> bool:
    """Whether an event with the identity of the refused one is counted. `tx` reads the current projections."""
    if refused.source is None or refused.id is None:
        return False
    generation.enter_all(tx)
    return usage_events.found(tx, refused.tenant, identity_of(refused.source, refused.id)) is not None


def requeue(
    tx: Cursor,
    records: Mapping[tuple[int, int], Record],
    refusals: Sequence[Refused],
    producer: Producer | None,
    now: datetime,
    layout: Layout,
) -> list[Requeued]:
    """Send the originals of `refusals` again; returns when the brokers have them. `producer` None: only say what would.

    `records`: those of the refusals' positions, as far as the log has them.

    Raises:
        Transient: some may not have arrived; asking again is free.
    """
    made = []
    spread = spreads(tx, {each.tenant for each in refusals})
    for each in refusals:
        if each.events and counted_since(tx, each):
            said = "with other content: a conflict stays one" if each.fate == "conflict" else ""
            made.append(Requeued(each, COUNTED, said))
            continue
        try:
            value, tenant = _original(records.get((each.place.partition, each.place.offset)), each)
            parts = _placed(tx, value, tenant, layout, spread.get(tenant, ()))
        except Rejected as e:
            made.append(Requeued(each, HOPELESS, e.detail))
            continue
        if producer is not None:
            for partition, part in parts:
                _send(producer, each, part, tenant, partition, now)
        made.append(Requeued(each, SENT if producer is not None else WOULD_BE_SENT))
    if producer is not None:
        producer.flush()
    return made


def _original(record: Record | None, refused: Refused) -> tuple[bytes, str]:
    """The value to send, and its tenant.

    Raises:
        Rejected: there is nothing that could be counted.
    """
    if record is None:
        raise Rejected("log_pruned", "the log does not hold it any more")
    if refused.place.batch_index >= 0:
        raw: Any = event_in(record, refused.place.batch_index)
        if raw is None:
            raise Rejected("unreadable", "the record at this position does not hold the event")
        return encode_usage(UsageBatch(tenant=TenantId(refused.tenant), events=(event_of(raw),))), refused.tenant
    try:
        content = decode_usage_records(record.value)
    except DecodeError as e:
        raise Rejected("unreadable", f"it is no usage: {e}") from e
    if isinstance(content, UsageVoided | UsageAmended) and is_name(content.tenant):
        assert record.value is not None
        return record.value, content.tenant
    if not isinstance(content, UsageRecords) or not content.events or not is_name(content.tenant):
        raise Rejected("unreadable", "it holds no events of a tenant")
    assert record.value is not None
    return record.value, content.tenant


def _placed(tx: Cursor, value: bytes, tenant: str, layout: Layout, spread: Spreads) -> list[tuple[int, bytes]]:
    """The records to send and their partitions: one as it was, unless the events belong into several.

    Raises:
        Rejected: it is a correction, and nothing tells where.
    """
    if not spread:
        return [(layout.home(tenant), value)]
    content = decode_usage_records(value)
    if isinstance(content, UsageVoided | UsageAmended):
        generation.enter_all(tx)
        return [(addressed(tx, layout, spread, content), value)]
    assert isinstance(content, UsageRecords)
    found: dict[int, list[UsageEvent]] = {}
    hopeless = []
    for raw in content.events:
        try:
            event = event_of(raw)
            found.setdefault(layout.place(tenant, spread, event), []).append(event)
        except (Rejected, UnicodeEncodeError):  # of no time or name that has a place: refused wherever it lies
            hopeless.append(raw)
    if hopeless:
        return [(layout.home(tenant), value)]
    return [
        (partition, encode_usage(UsageBatch(tenant=TenantId(tenant), events=tuple(events))))
        for partition, events in found.items()
    ]


def _send(producer: Producer, refused: Refused, value: bytes, tenant: str, partition: int, now: datetime) -> None:
    place = "/".join(str(each) for each in refused.place)
    producer.send(
        TOPIC,
        value,
        key=tenant,
        partition=partition,
        headers=headers(
            id=f"requeue/{place}",
            type=f"tallybook.usage.{type(decode_usage(value)).__name__}",
            source="tallybook/requeue",
            time=now,
            schema=fingerprint_of(value),
            tenant=tenant,
        ),
    )
