"""Making every invoice again from the log alone: the proof that an issued amount can be explained.

Folds `billing.events` tenant by tenant, as the command handler did. Where an invoice was issued, its run is rated from
rebuilt usage, and the issue is decided again in the state that stood before it: credits, coupons, number, tax, total.
The document must come out as it was recorded, by its canonical hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from billing import decision
from billing.catalog import PriceBookPublished
from billing.envelope import EventEnvelope
from billing.errors import Rejected
from billing.ids import TenantId
from billing.invoice import Awaited, InvoiceFinalized, InvoiceLine
from billing.invoicing import PartitionPosition, RatedLine
from infra import kafka, postgres
from infra.kafka import KafkaConfig
from infra.settings import Settings
from projections import billing_set
from schemas.codec import decode_event
from schemas.hashing import document_hash, hash_of_stored
from services.invoice_jobs import Job
from services.invoicing import NotReady, PostgresSnapshot, rate
from services.replay import Progress

SHOWN_MAX = 50


@dataclass(slots=True)
class Rerated:
    """What became of the invoices that were made again."""

    checked: int = 0
    differing: int = 0
    differences: list[str] = field(default_factory=list)
    """The first ones, for people."""

    def differs(self, said: str) -> None:
        """Count a difference."""
        self.differing += 1
        if len(self.differences) < SHOWN_MAX:
            self.differences.append(said)


def rerate(
    settings: Settings, tx: postgres.Cursor, billing: Mapping[int, int], usage: Mapping[int, int], progress: Progress
) -> Rerated:
    """Make every invoice of the log up to `billing` again, from usage up to `usage` in the generation `tx` entered.

    Raises:
        CorruptHistory: the log's sequence or hash chain is broken.
    """
    found = Rerated()
    tenants: dict[str, decision.TenantState] = {}
    starts = dict.fromkeys(billing, 0)
    done, total = 0, sum(billing.values())
    progress("rating invoices again", done, total)
    for records in kafka.scan(KafkaConfig.of(settings), billing_set.TOPIC, starts, billing):
        for record in records:
            event = decode_event(record.value)
            state = tenants.setdefault(event.meta.tenant, decision.TenantState(event.meta.tenant))
            if isinstance(event.event, InvoiceFinalized):
                found.checked += 1
                _check(tx, state, event, usage, found)
            state.apply(event, hash_of_stored(record.value or b""))
            done += 1
            progress("rating invoices again", done, total)
    return found


class _Rebuilt(PostgresSnapshot):
    """Prices from the log itself, usage from a rebuilt generation that stands at `usage`."""

    def __init__(self, tx: postgres.Cursor, state: decision.TenantState, usage: Mapping[int, int]) -> None:
        super().__init__(tx)
        self._state = state
        self._usage = usage

    def passed(self, tenant: TenantId, positions: Sequence[PartitionPosition]) -> bool:
        return all(self._usage.get(each.partition, 0) >= each.offset for each in positions)

    def book(self, tenant: TenantId, version: int) -> PriceBookPublished:
        return self._state.catalog.books[version - 1]


def _check(
    tx: postgres.Cursor, state: decision.TenantState, event: EventEnvelope, usage: Mapping[int, int], found: Rerated
) -> None:
    """Make the invoice of `event` again, in the state before it."""
    recorded: InvoiceFinalized = event.event
    name = f"{event.meta.tenant} invoice {recorded.number}"
    awaited = state.invoices.get(recorded.invoice_id)
    if not isinstance(awaited, Awaited):
        found.differs(f"{name}: no run awaited it")
        return
    meta = event.meta
    job = Job(
        tenant_id=meta.tenant,
        sequence=meta.sequence,
        run=awaited.run,
        correlation_id=meta.correlation_id,
        causation_id=meta.causation_id or "",
        tries=1,
    )
    try:
        command = rate(job, _Rebuilt(tx, state, usage))
        facts = decision.facts(state, command, event.meta.recorded_at)
    except (Rejected, ValueError, NotReady) as error:
        found.differs(f"{name}: cannot be made again: {error}")
        return
    made = facts[0].event
    if document_hash(made) == document_hash(recorded):
        return
    found.differs(f"{name}: {_first_difference(made.lines, recorded.lines, made, recorded)}")


def _first_difference(
    made: Sequence[InvoiceLine], recorded: Sequence[InvoiceLine], again: InvoiceFinalized, before: InvoiceFinalized
) -> str:
    """Where the two part, line by line, then in the figures below the lines."""
    for number in range(max(len(made), len(recorded))):
        one = made[number].rated if number < len(made) else None
        other = recorded[number].rated if number < len(recorded) else None
        if one != other:
            return f"line {number + 1} is {_shown(other)}; the log makes it {_shown(one)}"
    return f"total is {before.total}; the log makes it {again.total}"


def _shown(line: RatedLine | None) -> str:
    if line is None:
        return "missing"
    quantity = "" if line.quantity is None else f" of {line.quantity:,}"
    return f"{line.charge}{quantity} for {line.amount}"
