"""What depends on order is the same wherever the events of one instant lie, in whatever order workers come by them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.invoicing import PartitionPosition
from billing.measuring import Need, measured
from billing.metering import Aggregation, Meter
from billing.period import Period
from billing.placing import Spread
from infra import postgres
from infra.kafka import Record
from projections import generation, usage, usage_query
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from tests.usage.conftest import Bench
from tests.usage.making import NOON, TENANT, Log, batch, control, event
from tests.usage.test_laws_of_quantities import LEVEL, SEATS, VARIANTS, points

LAYOUT = Layout(3)
SPREAD = (Spread(effective_from=NOON - timedelta(days=365), partitions=3),)
PLAIN = Meter(key="level", event_type="api", aggregation=Aggregation.LATEST, value="bytes", dimensions=("region",))
IN_ORDER = [
    (meter, held)
    for meter, held in VARIANTS
    if meter.aggregation is Aggregation.LATEST or (meter.aggregation is Aggregation.UNIQUE and meter.removal)
]
"""Those whose quantity is decided by what came last."""


def written(chance: random.Random) -> list[Log]:
    """Three partitions on which almost every instant has several events, in each of them."""
    logs = [Log(each) for each in range(LAYOUT.partitions)]
    for log in logs:
        log.append(control(meters=(LEVEL, SEATS), spread=SPREAD))
    for number in range(12):
        made = [
            event(
                f"{number}-{each}",
                NOON - timedelta(hours=chance.randrange(3)),
                region=chance.choice(["eu", "us"]),
                user=chance.choice(["ann", "bob"]),
                operation=chance.choice(["add", "remove"]),
                bytes=str(number * 100 + each),
            )
            for each in range(chance.randint(1, 12))
        ]
        for partition, events in LAYOUT.divided(TENANT, SPREAD, made).items():
            logs[partition].append(batch(*events))
    return logs


def some_order(chance: random.Random, logs: Sequence[Log]) -> Iterator[Sequence[Record]]:
    """Micro-batches of all partitions, interleaved as it happens."""
    left = {log.partition: list(log.records) for log in logs}
    while left:
        partition = chance.choice(sorted(left))
        size = chance.choice([1, 2, 5])
        yield left[partition][:size]
        left[partition] = left[partition][size:]
        if not left[partition]:
            del left[partition]


def apply(bench: Bench, chance: random.Random, logs: Sequence[Log], workers: Sequence[UsageStore]) -> None:
    for records in some_order(chance, logs):
        bench.apply(records, store=chance.choice(workers))


def rebuilt(bench: Bench, chance: random.Random, logs: Sequence[Log]) -> None:
    """A new generation, from the same log in another order of work, is the one that is read."""
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
        connection.commit()
        apply(bench, chance, logs, [UsageStore(bench.pool, LAYOUT, None, into=number)])
        tx.execute("UPDATE app.generation SET current = %s WHERE projection_set = %s", (number, usage.SET))


def asked(bench: Bench, period: Period) -> list[tuple[Decimal, int]]:
    with postgres.transaction(bench.pool) as tx:
        generation.enter_all(tx)
        found = usage_query.answers(tx, TENANT, usage_query.Question(meter=PLAIN, period=period, customer="c1"))
    return [(each.quantity, each.events) for each in found]


@pytest.mark.parametrize("seed", range(4))
def test_of_several_partitions_at_one_instant_the_same_is_the_last_for_all(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    logs = written(chance)
    apply(bench, chance, logs, [UsageStore(bench.pool, LAYOUT, bench.refused.extend) for _ in range(2)])
    assert not bench.refused
    period = Period(NOON - timedelta(hours=2), NOON + timedelta(hours=1))
    full = tuple(PartitionPosition(partition=log.partition, offset=len(log.records)) for log in logs)
    part = tuple(replace(each, offset=chance.randint(1, each.offset)) for each in full)
    plain = Need(PLAIN, period, full)
    needs = [plain, *(Need(meter, period, cut, None, held) for meter, held in IN_ORDER for cut in (full, part))]
    expected = {need: measured(need, points(logs, need.meter, need.positions)) for need in needs}
    told = [(expected[plain].total, expected[plain].events)]
    assert (bench.quantities(needs), asked(bench, period)) == (expected, told)
    rebuilt(bench, chance, logs)
    assert (bench.quantities(needs), asked(bench, period)) == (expected, told)
