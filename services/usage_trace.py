"""The fate of a usage event: counted or refused and why, where it lies, what it measured, and which invoices billed it.

An event is (source, id). A copy with the same content is a duplicate, and one with other content a conflict, told among
the refusals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from billing.errors import Rejected
from billing.invoicing import BillingRun, PartitionPosition
from infra.postgres import Cursor
from projections import generation, usage_duplicates, usage_events, usage_pruning
from projections.usage_duplicates import Copies
from projections.usage_events import Contribution, Counted, Place, Refused
from schemas.codec import decode_event
from services.usage_identity import identity_of

REFUSALS_MAX = 20  # of one event; an event that was sent and refused more often shows the newest


class Fate(StrEnum):
    """What became of an event."""

    COUNTED = "counted"
    UNMATCHED = "unmatched"
    AMENDED = "amended"
    VOIDED = "voided"
    DUPLICATE = "duplicate"
    """A copy; of (source, id): only copies are still known one by one, of an event that counted long ago."""
    CONFLICT = "conflict"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Billed:
    """An invoice whose usage includes the event."""

    invoice_id: str
    number: str | None
    """None while the invoice is being made."""
    late: bool
    """True if the period was already closed when the event came."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The way of a counted event."""

    customer: str
    time: datetime
    place: Place
    contributions: tuple[Contribution, ...]
    subscribed: bool
    """False: no subscription covers the event's time; it is unmatched and never billed."""
    late: bool
    """True if it came after the period of its time was closed."""
    billed: tuple[Billed, ...]
    """Of a voided event: those that were made before it was."""
    amended: bool = False
    """The rest tells it as it was amended last."""
    voided_offset: int | None = None
    """The record that voided it, in the event's partition."""

    @property
    def fate(self) -> Fate:
        """Counted, as it came or as it was amended; or counted but matched by no subscription; or voided since."""
        if self.voided_offset is not None:
            return Fate.VOIDED
        if not self.subscribed:
            return Fate.UNMATCHED
        return Fate.AMENDED if self.amended else Fate.COUNTED


@dataclass(frozen=True, slots=True)
class EventFate:
    """What became of (source, id)."""

    source: str
    id: str
    fate: Fate
    """Of the copy that counted; if none did, of the newest one."""
    counted: Trace | None
    refusals: tuple[Refused, ...]
    """Newest first."""
    copies: Copies
    """What came again with the same content."""


def fate_of(tx: Cursor, tenant: str, source: str, id: str) -> EventFate:
    """What became of the event (`source`, `id`) of `tenant`. `tx` reads the current projections.

    Raises:
        Rejected: unknown_event: nothing is known of it.
    """
    generation.enter_all(tx)
    identity = identity_of(source, id)
    found = usage_events.found(tx, tenant, identity)
    refusals = tuple(usage_events.refused(tx, tenant, source=source, id=id, limit=REFUSALS_MAX))
    copies = usage_duplicates.of(tx, tenant, identity)
    if found is None and not refusals and not copies.total:
        said = f"no event ({source}, {id}) was counted or refused; it may not have arrived yet"
        if gone := [before for (each, _), before in usage_pruning.marks(tx).items() if each == tenant]:
            said += f", or was appended before {max(gone)}: those that counted then are no longer kept one by one"
        raise Rejected("unknown_event", said, field="id")
    counted = None if found is None else traces(tx, tenant, [found])[0]
    if counted is not None:
        return EventFate(source, id, counted.fate, counted, refusals, copies)
    return EventFate(source, id, Fate.DUPLICATE if copies.total else Fate(refusals[0].fate), None, refusals, copies)


def traces(tx: Cursor, tenant: str, events: Sequence[Counted]) -> list[Trace]:
    """The way of each of `events`, in their order."""
    measured = usage_events.contributions(tx, tenant, events)
    runs = {each: _runs(tx, tenant, each, events) for each in {event.customer for event in events}}
    made = []
    for event in events:
        billed, late = _billing(runs[event.customer], event)
        told = measured.get(event.place, ())
        way = Trace(event.customer, event.time, event.place, told, event.subscribed, late, billed)
        made.append(replace(way, amended=event.amended, voided_offset=event.voided_offset))
    return made


@dataclass(frozen=True, slots=True)
class _Run:
    invoice_id: str
    number: str | None
    run: BillingRun


def _runs(tx: Cursor, tenant: str, customer: str, events: Iterable[Counted]) -> list[_Run]:
    """What billed the customer's usage since the oldest of its `events`, in order."""
    oldest = min(each.time for each in events if each.customer == customer)
    rows = tx.execute(_RUNS, {"tenant": tenant, "customer": customer, "time": oldest}).fetchall()
    return [_Run(id, number, decode_event(bytes(body)).event.run) for id, number, body in rows]


def _billing(runs: Iterable[_Run], event: Counted) -> tuple[tuple[Billed, ...], bool]:
    """The invoices that bill the event, and whether it came after the period of its time was closed."""
    billed, late = [], False
    for each in runs:
        run = each.run
        is_below = _counts(run.cut.positions, event)
        closed = [run.arrears] if run.arrears is not None else []
        closed += [own.span for own in run.ended_charges]
        if any(event.time in span.period for span in closed):
            late = late or not _below(run.cut.positions, event.place)
            if is_below:
                billed.append(Billed(each.invoice_id, each.number, late=False))
        for again in run.late:
            if is_below and event.time in again.period and not _counts(again.since, event):
                billed.append(Billed(each.invoice_id, each.number, late=True))
    return tuple(billed), late


def _below(positions: tuple[PartitionPosition, ...], place: Place) -> bool:
    return any(each.partition == place.partition and place.offset < each.offset for each in positions)


def _counts(positions: tuple[PartitionPosition, ...], event: Counted) -> bool:
    """Whether a cut at `positions` has the event: it came below, and was not voided there."""
    gone = event.voided_offset is not None and _below(positions, event.place._replace(offset=event.voided_offset))
    return _below(positions, event.place) and not gone


_RUNS = """
SELECT r.invoice_id, i.number, r.body
  FROM runs r
  LEFT JOIN invoices i USING (tenant_id, invoice_id)
 WHERE r.tenant_id = %(tenant)s
   AND r.customer_id = %(customer)s
   AND r.arrears_end > %(time)s
 ORDER BY r.sequence
"""
