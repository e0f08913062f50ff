"""Applying corrections of usage: voids and amendments of events that were counted before, one by one, in log order.

A correction finds what all records before it left, whatever batch they came in. So it is decided by its position alone,
and a repeated one changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.failpoints import failpoint
from infra.postgres import Cursor
from projections import usage_corrections
from projections.usage_rows import Series
from services.usage_judged import Correction, Judged


def apply(tx: Cursor, partition: int, run: Judged, ids: Mapping[Series, int]) -> None:
    """Apply the corrections that end `run`, whose claims are written; adds to its refusals and fates."""
    for each in run.corrections:
        fates = run.fate(each.tenant, each.record)
        standing = usage_corrections.standing(tx, partition, each.tenant, each.identity)
        if standing is None or standing.time < each.oldest:
            # One reason for both: whether it is still kept is no matter of the log.
            said = f"no event ({each.source}, {each.id}) of {each.oldest} or later was counted before this record"
            run.refuse_correction(each, "unknown_event", said)
        elif _changes_nothing(standing, each):
            fates.repeated += 1
        elif standing.voided:
            run.refuse_correction(each, "event_voided", "the event is voided; send another one with an id of its own")
        elif each.amended is None:
            usage_corrections.void(tx, partition, each.tenant, each.identity, each.record.offset)
            fates.voided += 1
        else:
            usage_corrections.amend(tx, partition, each.amended, ids)
            fates.amended += 1
        failpoint("usage.after_correction")


def _changes_nothing(standing: usage_corrections.Standing, correction: Correction) -> bool:
    if correction.amended is None:
        return standing.voided
    return not standing.voided and standing.content == correction.amended.content
