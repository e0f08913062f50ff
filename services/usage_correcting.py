"""Applying corrections of usage: voids and amendments of events that were counted before, in log order.

A correction finds what all records before it left, whatever batch they came in. So it is decided by its position alone,
and a repeated one changes nothing. Those that stand together are decided one by one, and written together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from infra.failpoints import failpoint
from infra.postgres import Cursor
from projections import usage_corrections
from projections.usage_corrections import Ended, Key, Standing
from projections.usage_rows import Arrival, Series
from services.usage_judged import Correction, Judged
from services.usage_measuring import EPOCH

TOGETHER_MAX = 5_000  # corrections: what a step costs by itself is little for each, and so is the memory


@dataclass(slots=True)
class _Decided:
    """What some corrections come to, each decided by what those before it left."""

    known: dict[Key, Standing]
    """By what they began with; those that were corrected, by what is left."""
    corrected: set[Key] = field(default_factory=set)
    ended: list[Ended] = field(default_factory=list)
    amended: list[Arrival] = field(default_factory=list)
    """Whether or not another of them ended it."""


def apply(tx: Cursor, partition: int, run: Judged, ids: Mapping[Series, int]) -> None:
    """Apply the corrections that end `run`, whose claims are written; adds to its refusals and fates."""
    for at in range(0, len(run.corrections), TOGETHER_MAX):
        together = run.corrections[at : at + TOGETHER_MAX]
        decided = _decided(usage_corrections.standing(tx, partition, {_key(each) for each in together}), together, run)
        if decided.corrected:
            usage_corrections.correct(tx, partition, decided.ended, decided.amended, ids)
        # Their values are corrected; that they are, no event knows yet.
        failpoint("usage.after_correction")
        if decided.corrected:
            usage_corrections.mark(tx, partition, {each: decided.known[each] for each in decided.corrected})


def _decided(known: dict[Key, Standing], corrections: Sequence[Correction], run: Judged) -> _Decided:
    made = _Decided(known)
    for each in corrections:
        fates = run.fate(each.tenant, each.record)
        key, amended, offset = _key(each), each.amended, each.record.offset
        stands = known.get(key)
        if stands is None or stands.time < each.oldest:
            # One reason for both: whether it is still kept is no matter of the log.
            said = f"no event ({each.source}, {each.id}) of {each.oldest} or later was counted before this record"
            run.refuse_correction(each, "unknown_event", said)
        elif _changes_nothing(stands, each):
            fates.repeated += 1
        elif stands.voided_offset is not None:
            run.refuse_correction(each, "event_voided", "the event is voided; send another one with an id of its own")
        else:
            made.corrected.add(key)
            made.ended.append(
                Ended(each.tenant, stands.customer, stands.time, stands.offset, stands.batch_index, offset)
            )
            if amended is None:
                known[key] = stands._replace(voided_offset=offset)
                fates.voided += 1
            else:
                known[key] = _standing(amended)
                made.amended.append(amended)
                fates.amended += 1
    return made


def _key(correction: Correction) -> Key:
    return Key(correction.tenant, correction.identity)


def _standing(amended: Arrival) -> Standing:
    return Standing(
        content=amended.content,
        voided_offset=None,
        customer=amended.customer,
        time=EPOCH + timedelta(microseconds=amended.time_us),
        offset=amended.place.offset,
        batch_index=amended.batch_index,
        amended_at=EPOCH + timedelta(microseconds=amended.place.appended_us),
    )


def _changes_nothing(stands: Standing, correction: Correction) -> bool:
    if correction.amended is None:
        return stands.voided_offset is not None
    return stands.voided_offset is None and stands.content == correction.amended.content
