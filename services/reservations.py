"""Promises of parts of a hard limit: what is granted, with what is used, never exceeds the limit.

Postgres holds them, and one lock per (tenant, customer, feature) puts every decision about one limit in a line; Redis
has no part in it. A promise that was committed to a usage event ends in the moment in which that event is counted.
It is read before the usage is: an event that is counted in between stands on both sides for that one decision, and
never on none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from billing.entitlement import EntitlementKind, LimitKind
from billing.errors import Rejected
from infra import postgres, telemetry
from projections import generation
from services.entitlements import standings_of
from services.usage_identity import identity_of

DECIDED = telemetry.counter("reservations_total", "Reservations asked for, by what became of them.", "outcome")

TTL_MAX: Final = timedelta(days=1)
COUNTED_WITHIN: Final = timedelta(hours=1)
"""How long a committed reservation waits for its event at least: longer than usage is ever behind."""
_FORGOTTEN_AFTER: Final = timedelta(days=2)

HELD, COMMITTED, RELEASED, COUNTED, EXPIRED = "held", "committed", "released", "counted", "expired"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A promise."""

    id: str
    customer: str
    feature: str
    quantity: Decimal
    state: str
    """`held`, `committed`, `counted` (its event is), `released` or `expired`."""
    expires_at: datetime
    source: str | None
    """Of the usage event that uses it up."""
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Granted:
    """A promise that was made."""

    reservation: Reservation
    remaining: Decimal | None
    """What can still be promised; None without a hard limit."""
    replayed: bool
    """It had been made before, under the same key."""


class Reservations:
    """Grants, commits and releases; safe to use from several threads and processes."""

    def __init__(self, pool: postgres.Pool) -> None:
        self._pool = pool

    def reserve(self, tenant: str, key: str, customer: str, feature: str, quantity: Decimal, ttl: timedelta) -> Granted:
        """Promise `quantity` for `ttl`. The same `key` and wish gets the same promise again.

        Raises:
            Rejected: not_granted, not_metered, limit_exceeded, or idempotency_key_reused.
            Transient: nobody knows; ask again with the same key.
        """
        reservation_id = "rsv_" + hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()[:32]
        try:
            granted = self._reserve(tenant, reservation_id, customer, feature, quantity, ttl)
        except Rejected as error:
            DECIDED.labels(error.code).inc()
            raise
        DECIDED.labels("granted").inc()
        return granted

    def _reserve(
        self, tenant: str, reservation_id: str, customer: str, feature: str, quantity: Decimal, ttl: timedelta
    ) -> Granted:
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            _stand_in_line(tx, tenant, customer, feature)
            known = _found(tx, tenant, reservation_id)
            if known is not None and (known.customer, known.feature, known.quantity) != (customer, feature, quantity):
                raise Rejected("idempotency_key_reused", "this key made another reservation", field="")
            promised = _promised(tx, tenant, customer, feature)  # before the usage: see above
            remaining = _unused(tx, tenant, customer, feature)
            if remaining is not None:
                remaining -= promised
            if known is not None:
                return Granted(known, remaining, replayed=True)
            if remaining is not None and quantity > remaining:
                said = f"{max(remaining, Decimal(0)).normalize():f} can be reserved, {quantity:f} were asked for"
                raise Rejected("limit_exceeded", said, field="quantity")
            tx.execute(_FORGET, (tenant, customer, feature, _FORGOTTEN_AFTER))
            row = tx.execute(_GRANT, (tenant, reservation_id, customer, feature, quantity, ttl, ttl)).fetchone()
            assert row is not None
            made = Reservation(reservation_id, customer, feature, quantity, HELD, row[0], None, None)
            return Granted(made, None if remaining is None else remaining - quantity, replayed=False)

    def commit(self, tenant: str, reservation_id: str, source: str, event_id: str) -> Reservation | None:
        """What was promised is used: the usage event that says so is sent, or about to be. None: there is no such one.

        Raises:
            Rejected: it was released, ran out, or was committed to another event.
        """
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            known = _in_line(tx, tenant, reservation_id)
            if known is None or (known.source, known.event_id) == (source, event_id):
                return known
            if known.state != HELD:
                raise Rejected("invalid_state", f"the reservation is {known.state}", field="")
            tx.execute(_COMMIT, (source, event_id, COUNTED_WITHIN, tenant, reservation_id))
            return _found(tx, tenant, reservation_id)

    def release(self, tenant: str, reservation_id: str) -> Reservation | None:
        """What was promised is not needed. Free to repeat. None: there is no such reservation.

        Raises:
            Rejected: it was committed: its event may be on the way.
        """
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            known = _in_line(tx, tenant, reservation_id)
            if known is None or known.state in (RELEASED, EXPIRED):
                return known
            if known.state != HELD:
                raise Rejected("invalid_state", f"the reservation is {known.state}", field="")
            tx.execute(_RELEASE, (tenant, reservation_id))
            return _found(tx, tenant, reservation_id)

    def find(self, tenant: str, reservation_id: str) -> Reservation | None:
        """A reservation as it stands; None if there is none, or it ended days ago."""
        with postgres.tenant_transaction(self._pool, tenant) as tx:
            generation.enter_all(tx)
            return _found(tx, tenant, reservation_id)


def _stand_in_line(tx: postgres.Cursor, tenant: str, customer: str, feature: str) -> None:
    """Wait until nobody else decides about this limit; every statement after it sees what they decided."""
    digest = hashlib.sha256(json.dumps([tenant, customer, feature]).encode()).digest()
    tx.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(digest[:8], "big", signed=True),))


def _in_line(tx: postgres.Cursor, tenant: str, reservation_id: str) -> Reservation | None:
    """A reservation as it stands while nobody else decides about its limit: what ran out may be another's by now."""
    known = _found(tx, tenant, reservation_id)
    if known is not None:
        _stand_in_line(tx, tenant, known.customer, known.feature)
        known = _found(tx, tenant, reservation_id)
    return known


def _found(tx: postgres.Cursor, tenant: str, reservation_id: str) -> Reservation | None:
    row = tx.execute(_FIND, (tenant, reservation_id)).fetchone()
    if row is None:
        return None
    customer, feature, quantity, state, expires_at, source, event_id, is_over = row
    if state == COMMITTED and _counted(tx, tenant, [(source, event_id)]):
        state = COUNTED
    elif state != RELEASED and is_over:
        state = EXPIRED
    return Reservation(reservation_id, customer, feature, quantity, state, expires_at, source, event_id)


def _promised(tx: postgres.Cursor, tenant: str, customer: str, feature: str) -> Decimal:
    """What is promised and not counted."""
    rows = tx.execute(_ACTIVE, (tenant, customer, feature)).fetchall()
    committed = [(source, event_id) for _, source, event_id in rows if source is not None]
    counted = _counted(tx, tenant, committed)
    return sum((quantity for quantity, *event in rows if tuple(event) not in counted), Decimal(0))


def _counted(tx: postgres.Cursor, tenant: str, events: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the events that usage has counted."""
    identities = {str(identity_of(*each)).replace("-", ""): each for each in events}
    if not identities:
        return set()
    rows = tx.execute(_COUNTED, (tenant, list(identities))).fetchall()
    return {identities[identity] for (identity,) in rows}


def _unused(tx: postgres.Cursor, tenant: str, customer: str, feature: str) -> Decimal | None:
    """What is left of the limit by usage alone, of the grant that serves best; None: no hard limit holds it.

    Raises:
        Rejected: nothing can be reserved of the feature.
    """
    standings = standings_of(tx, (tenant, customer, feature))
    if not standings:
        raise Rejected("not_granted", "the customer has no such feature", field="feature")
    metered = [each for each in standings if each.entitlement.kind is EntitlementKind.METERED]
    if not metered:
        raise Rejected("not_metered", "the feature has no limit that could be reserved", field="feature")
    if any(each.entitlement.limit_kind is LimitKind.SOFT for each in metered):
        return None
    return max((each.entitlement.limit or Decimal(0)) - each.used for each in metered)


_FIND = """
SELECT customer_id, feature, trim_scale(quantity), state, expires_at, source, event_id, expires_at <= clock_timestamp()
  FROM app.reservation
 WHERE tenant_id = %s AND reservation_id = %s
"""

_ACTIVE = """
SELECT quantity, source, event_id
  FROM app.reservation
 WHERE tenant_id = %s AND customer_id = %s AND feature = %s
   AND state <> 'released'
   AND expires_at > clock_timestamp()
"""

_COUNTED = """
SELECT replace(identity::text, '-', '')
  FROM usage_identity
 WHERE tenant_id = %s AND identity = ANY (%s::uuid[])
"""

_GRANT = """
INSERT INTO app.reservation (tenant_id, reservation_id, customer_id, feature, quantity, ttl, expires_at)
VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp() + %s)
RETURNING expires_at
"""

_COMMIT = """
UPDATE app.reservation
   SET state = 'committed', source = %s, event_id = %s,
       expires_at = greatest(expires_at, clock_timestamp() + greatest(ttl, %s))
 WHERE tenant_id = %s AND reservation_id = %s
"""

_RELEASE = "UPDATE app.reservation SET state = 'released' WHERE tenant_id = %s AND reservation_id = %s"

_FORGET = """
DELETE FROM app.reservation
 WHERE tenant_id = %s AND customer_id = %s AND feature = %s AND expires_at < clock_timestamp() - %s
"""
