"""The projection set `billing`: every table that follows from `billing.events`, and how events enter them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from billing.envelope import EventEnvelope
from billing.errors import CorruptHistory
from projections import (
    customers,
    entitlements,
    invoices,
    ledger,
    payments,
    price_books,
    runs,
    subscriptions,
    tenants,
)
from projections.generation import Tx

NAME: Final = "billing"
TOPIC: Final = "billing.events"

APPLY: Final[tuple[Callable[[Tx, EventEnvelope], None], ...]] = (
    tenants.apply,
    price_books.apply,
    customers.apply,
    subscriptions.apply,
    runs.apply,
    invoices.apply,
    payments.apply,
    ledger.apply,
    entitlements.apply,
)
"""In this order: a later one may read what an earlier one has written for the same event."""


def apply_all(tx: Tx, event: EventEnvelope) -> None:
    """Apply one event; see `apply_batch`."""
    apply_batch(tx, (event,))


def apply_batch(tx: Tx, events: Sequence[EventEnvelope]) -> int:
    """Apply the events that are new, in their order; returns how many those were. A repeated event changes nothing.

    The statements travel together and are checked when the batch ends: one round trip instead of one for each.

    Raises:
        CorruptHistory: a tenant's event does not follow its last one. The transaction must be rolled back and the
            projector stopped: an event that is missing in the log cannot be projected around.
    """
    last = tenants.sequences(tx, {event.meta.tenant for event in events})
    moved: dict[str, int] = {}
    applied = 0
    with tx.connection.pipeline():
        for event in events:
            tenant, sequence = event.meta.tenant, event.meta.sequence
            before = last.get(tenant, 0)
            if sequence <= before:
                continue
            if sequence != before + 1:
                raise CorruptHistory(f"{tenant}: event {sequence} after {before}; {sequence - before - 1} are missing")
            for apply in APPLY:
                apply(tx, event)
            last[tenant] = moved[tenant] = sequence
            applied += 1
        if moved:
            tenants.reached(tx, moved)
    return applied
