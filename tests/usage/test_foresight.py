"""A batch that is judged before its turn counts as if it had been judged in its turn."""

from __future__ import annotations

from collections.abc import Sequence

from infra.faust_app import Batch
from infra.kafka import Record
from tests.usage.conftest import Bench
from tests.usage.making import CALLS, Log, batch, control, event, opened


def batches(log: Log) -> list[Batch]:
    return [Batch([record], record.offset) for record in log.records]


def known(bench: Bench, log: Log) -> Sequence[Record]:
    """The store knows the partition as of the first record."""
    bench.apply(log.records[:1])
    return log.records[1:]


def test_batches_are_judged_while_earlier_ones_are_applied(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("2")))
    log.append(batch(event("2"), event("3")))
    known(bench, log)
    first, second = batches(log)[1:]
    foreseen = [bench.store.foresee(first), bench.store.foresee(second)]
    assert None not in foreseen
    bench.store.apply(first, foreseen[0])
    bench.store.apply(second, foreseen[1])
    assert (bench.fates().counted, bench.fates().duplicate) == (3, 1)


def test_a_control_record_in_a_foreseen_batch_measures_the_next(bench: Bench) -> None:
    log = opened()
    known(bench, log)
    switched = Batch([log.append(control(version=2, meters=()))], 1)
    refused = Batch([log.append(batch(event("1")))], 2)
    foreseen = [bench.store.foresee(switched), bench.store.foresee(refused)]
    bench.store.apply(switched, foreseen[0])
    bench.store.apply(refused, foreseen[1])
    assert [each.usage.reason for each in bench.refused] == ["unknown_meter"]


def test_what_was_foreseen_in_vain_is_judged_again(bench: Bench) -> None:
    """Another worker was first, and went further than the batch begins."""
    log = opened()
    log.append(batch(event("1")))
    log.append(batch(event("2")))
    known(bench, log)
    both = Batch(log.records[1:], 1)
    foreseen = bench.store.foresee(both)
    bench.apply(log.records[:2], follows=0, store=bench.another())
    bench.store.apply(both, foreseen)
    assert bench.measured(CALLS).events == 2
    assert (bench.fates().received, bench.fates().counted) == (2, 2)


def test_a_foreseen_batch_that_is_repeated_is_judged_again(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1"), event("1"), event("2", bytes="-1")))
    known(bench, log)
    (only,) = batches(log)[1:]
    foreseen = bench.store.foresee(only)
    assert foreseen is not None
    foreseen.judged = None  # as a first attempt that failed leaves it
    bench.store.apply(only, foreseen)
    counts = bench.fates()
    assert (counts.received, counts.counted, counts.duplicate, counts.rejected) == (3, 1, 1, 1)


def test_nothing_is_foreseen_beyond_a_gap_or_without_knowledge(bench: Bench) -> None:
    log = opened()
    log.append(batch(event("1")))
    log.append(batch(event("2")))
    first, second, third = batches(log)
    assert bench.store.foresee(first) is None
    known(bench, log)
    assert bench.store.foresee(third) is None
    assert bench.store.foresee(second) is not None
    assert bench.store.foresee(third) is not None
