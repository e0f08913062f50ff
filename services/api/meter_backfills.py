"""Counting events again that came before a meter was changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from billing.backfilling import BackfillMeter
from billing.errors import Rejected
from infra.kafka import Record
from infra.postgres import Cursor
from projections import generation, usage
from services import usage_backfills
from services.api.bodies import EdgeRoute
from services.api.pages import Limit, Page, PageCursor
from services.api.parts import Asking, Parts, Reading, asking, reading
from services.exact_values import Instant, Name
from services.shapes import StrictModel
from services.usage_backfilling import LogTooShort, ReadLog
from services.usage_backfills import MeterBackfill, QuantityChange

EVENTS_MAX: Final = 100_000
"""Held in memory for an answer."""
BYTES_MAX: Final = 256_000_000
"""Of the usage log, read for an answer."""
CHANGES_MAX: Final = 10_000

router = APIRouter(tags=["usage"], route_class=EdgeRoute)


class BackfillBody(StrictModel):
    """Of which event times."""

    from_time: Annotated[Instant, Field(alias="from")]
    """First event time; not older than the tenant accepts events."""
    to_time: Annotated[Instant | None, Field(alias="to")] = None
    """First event time beyond; none: every event that came before."""


@dataclass(frozen=True, slots=True)
class ForeseenBackfill:
    """What a backfill would come to now."""

    events: int
    """That would be counted again."""
    unmeasured: int
    """Of those, that the definition cannot measure."""
    customers: int
    """Whose quantity would change."""
    changes: list[QuantityChange]
    """The first of them, by customer."""


def _listed(tx: Cursor, tenant: str, parts: Parts, meter: str) -> list[MeterBackfill]:
    generation.enter_all(tx)
    return usage_backfills.listed(tx, tenant, parts.layout, meter)


@router.get("/v1/meters/{meter}/backfills")
def list_meter_backfills(
    meter: Name,
    reading: Annotated[Reading, Depends(reading)],
    response: Response,
    limit: Limit = 50,
    cursor: PageCursor = None,
) -> Page[MeterBackfill]:
    """All backfills of a meter that the usage log was told of, the newest first."""
    scope = [reading.tenant, "backfills", meter]
    below = reading.parts.cursors.open(scope, cursor)
    with reading.transaction(response) as tx:
        rows = _listed(tx, reading.tenant, reading.parts, meter)
    rows = [each for each in rows if not below or each.version < int(below)][: limit + 1]
    return Page.of(reading.parts.cursors, scope, rows, limit, lambda row: str(row.version))


@router.get("/v1/meters/{meter}/backfills/dry-run")
def foresee_meter_backfill(
    meter: Name,
    reading: Annotated[Reading, Depends(reading)],
    start: Annotated[Instant, Query(alias="from", description="First event time.")],
    end: Annotated[Instant | None, Query(alias="to", description="First event time beyond; none: no end.")] = None,
    limit: Annotated[int, Query(ge=1, le=CHANGES_MAX, description="How many changes are told at most.")] = 200,
) -> ForeseenBackfill:
    """What counting events again, as the meter is defined now, would come to; changes nothing.

    It reads the usage log while the caller waits, so the span is bounded: what is too much is `too_much_to_read`, and
    `tallybook meters backfill --dry-run` has no such bound.
    """
    parts = reading.parts
    with reading.transaction() as tx:
        generation.enter_all(tx)
        usage_backfills.check_log(tx, reading.tenant, parts.layout, parts.usage_log.starts, start, end)
        positions = generation.checkpoints(tx, usage.SET, generation.current(tx, usage.SET), usage.TOPIC)
        log = _bounded(parts.usage_log.between)
        try:
            found = usage_backfills.foresee(
                tx, reading.tenant, parts.layout, log, positions, meter, start, end, events_max=EVENTS_MAX
            )
        except LogTooShort as e:
            raise Rejected("log_too_short", f"{e}; ask for a later time", field="from") from e
    shown = [replace(each, before=_plain(each.before), after=_plain(each.after)) for each in found.changes[:limit]]
    return ForeseenBackfill(found.events, found.unmeasured, len(found.changes), shown)


def _plain(quantity: Decimal) -> Decimal:
    """Without zeros at its end, and not in powers of ten."""
    return Decimal(f"{quantity.normalize():f}")


def _bounded(read: ReadLog) -> ReadLog:
    """`read`, as much of it as a request may take."""
    left = BYTES_MAX

    def bounded(partition: int, start: int, end: int) -> Iterator[Sequence[Record]]:
        nonlocal left
        for records in read(partition, start, end):
            left -= sum(len(each.value or b"") for each in records)
            if left < 0:
                raise Rejected(
                    "too_much_to_read",
                    f"more than {BYTES_MAX // 1_000_000} MB of the usage log would have to be read: ask for less time",
                )
            yield records

    return bounded


@router.post("/v1/meters/{meter}/backfills", status_code=201, response_model=MeterBackfill)
def backfill_meter(
    meter: Name, body: BackfillBody, asking: Annotated[Asking, Depends(asking)], response: Response
) -> Any:
    """Have events that were counted before count for a meter as it is defined now.

    202: accepted, and not yet told to the usage log; look again. Periods that were cut before it keep what they had;
    the next invoice settles the difference as late usage. An invoice that is cut later waits until it is done.
    """
    parts = asking.parts
    with Reading(parts, asking.caller, 0).transaction() as tx:
        generation.enter_all(tx)
        usage_backfills.check_log(tx, asking.tenant, parts.layout, parts.usage_log.starts, body.from_time, body.to_time)
    result = asking.send(BackfillMeter(meter=meter, from_time=body.from_time, to_time=body.to_time))

    def read(tx: Cursor) -> MeterBackfill | None:
        found = _listed(tx, asking.tenant, parts, meter)
        return next((each for each in found if each.version == result.sequence), None)

    return asking.answer(response, result, read)
