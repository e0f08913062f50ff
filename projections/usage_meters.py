"""By which meters usage is measured now, as the newest control record that was applied says."""

from __future__ import annotations

from billing.errors import Rejected
from billing.metering import Meter, UsageControl
from projections.usage import Tx
from schemas.codec import decode_usage


def meters(tx: Tx, tenant: str) -> dict[str, Meter]:
    """Every meter by which usage of `tenant` is measured now, by key; those of retired price books too."""
    row = tx.execute(
        "SELECT control FROM usage_control WHERE tenant_id = %s ORDER BY version DESC LIMIT 1", (tenant,)
    ).fetchone()
    if row is None:
        return {}
    control = decode_usage(bytes(row[0]))
    assert isinstance(control, UsageControl)
    return {each.key: each for each in control.meters}


def meter(tx: Tx, tenant: str, key: str) -> Meter:
    """The one of `meters` with that key.

    Raises:
        Rejected: `unknown_meter`, with those that there are.
    """
    known = meters(tx, tenant)
    if key not in known:
        told = ", ".join(sorted(known)) or "none"
        raise Rejected("unknown_meter", f"there is no meter {key!r}; known: {told}", field="meter")
    return known[key]
