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
from billing.metering import UsageAmended, UsageBatch, UsageVoided
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
) -> list[Requeued]:
    """Send the originals of `refusals` again; returns when the brokers have them. `producer` None: only say what would.

    `records`: those of the refusals' positions, as far as the log has them.

    Raises:
        Transient: some may not have arrived; asking again is free.
    """
    made = []
    for each in refusals:
        if each.events and counted_since(tx, each):
            said = "with other content: a conflict stays one" if each.fate == "conflict" else ""
            made.append(Requeued(each, COUNTED, said))
            continue
        try:
            value, tenant = _original(records.get((each.place.partition, each.place.offset)), each)
        except Rejected as e:
            made.append(Requeued(each, HOPELESS, e.detail))
            continue
        if producer is not None:
            _send(producer, each, value, tenant, now)
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


def _send(producer: Producer, refused: Refused, value: bytes, tenant: str, now: datetime) -> None:
    place = "/".join(str(each) for each in refused.place)
    producer.send(
        TOPIC,
        value,
        key=tenant,
        headers=headers(
            id=f"requeue/{place}",
            type=f"tallybook.usage.{type(decode_usage(value)).__name__}",
            source="tallybook/requeue",
            time=now,
            schema=fingerprint_of(value),
            tenant=tenant,
        ),
    )
