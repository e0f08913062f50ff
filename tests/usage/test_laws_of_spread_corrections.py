"""Voids and amendments of usage that is spread: each finds its event where it counted, or says so, without noise."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal

import pytest

from billing.errors import Rejected
from billing.invoicing import Need, PartitionPosition
from billing.metering import UsageAmended, UsageEvent
from billing.placing import Spread
from billing.tenant import UsageBounds
from infra import postgres
from projections import generation, usage
from services.usage_aggregator import UsageStore
from services.usage_placing import Layout
from services.usage_sending import Correction, addressed, corrected
from tests.usage.conftest import DAY, Bench
from tests.usage.making import BYTES, NOON, TENANT, Log, amendment, batch, control, event, void

LAYOUT = Layout(6)
SPREAD = (
    Spread(effective_from=NOON + timedelta(hours=2), partitions=4),
    Spread(effective_from=NOON + timedelta(hours=4), partitions=2),
)


@dataclass
class Cluster:
    """The partitions, applied as they come, and by the book what stands."""

    bench: Bench
    logs: list[Log]
    stands: dict[str, UsageEvent] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.store = self.another()
        for log in self.logs:
            log.append(control(meters=(BYTES,), spread=SPREAD, bounds=UsageBounds(ahead_minutes=1440)))
            self.bench.apply(log.records, store=self.store)

    def another(self, into: int | None = None) -> UsageStore:
        return UsageStore(self.bench.pool, LAYOUT, self.bench.refused.extend if into is None else None, into=into)

    def put(self, partition: int, content: object) -> None:
        log = self.logs[partition]
        log.append(content)  # type: ignore[arg-type]
        self.bench.apply(log.records[-1:], store=self.store)

    def send(self, made: UsageEvent) -> None:
        place = LAYOUT.place(TENANT, SPREAD, made)
        self.put(place, batch(made))
        self.stands[made.id], self.where[made.id] = made, place
        self.fates["counted"] += 1

    def ask(self, correction: Correction, at: UsageEvent | None = None) -> str:
        """As HTTP and the CLI do; the code of the refusal if nothing was sent."""
        try:
            with postgres.transaction(self.bench.pool) as tx:
                generation.enter_all(tx)
                place = addressed(tx, LAYOUT, SPREAD, correction, at.time if at else None)
        except Rejected as e:
            return e.code
        self.put(place, correction)
        return ""

    def expect(self, correction: Correction) -> None:
        """What a correction in the partition of its event comes to."""
        id = corrected(correction).id
        amended = correction.event if isinstance(correction, UsageAmended) else None
        stands = self.stands.get(id)
        if (amended is None and stands is None) or (amended is not None and stands == amended):
            self.fates["repeated"] += 1
        elif stands is None:
            self.refused.append(("event_voided", id))
        elif amended is None:
            del self.stands[id]
            self.fates["voided"] += 1
        else:
            self.stands[id] = amended
            self.fates["amended"] += 1


def some_event(chance: random.Random, id: str) -> UsageEvent:
    at = NOON + timedelta(minutes=30 * chance.randrange(12))
    return event(id, at, customer=chance.choice(["c1", "c1", "c2"]), bytes=str(chance.choice([1, "2.5", 9])))


def step(cluster: Cluster, chance: random.Random, number: int) -> None:
    id = chance.choice([*cluster.where, str(number)])
    made = some_event(chance, str(number))
    stranger = f"x-{number}"
    candidates = LAYOUT.candidates(TENANT, SPREAD, "test", stranger)
    match chance.choice(["send", "send", "void", "void", "amend", "amend", "stranger", "early", "foreign"]):
        case "send":
            cluster.send(made)
        case "void" if id in cluster.where:
            assert cluster.ask(void(id)) == ""
            cluster.expect(void(id))
        case "amend" if id in cluster.where:
            other = replace(made, id=id)
            here = LAYOUT.place(TENANT, SPREAD, other) == cluster.where[id]
            assert cluster.ask(amendment(other)) == ("" if here else "key_mismatch")
            if here:
                cluster.expect(amendment(other))
        case "stranger":
            assert cluster.ask(void(stranger)) == ("" if len(candidates) == 1 else "unknown_event")
            if len(candidates) == 1:
                cluster.refused.append(("unknown_event", stranger))
        case "early":  # its event is on its way: the time tells where
            assert cluster.ask(void(stranger), made) == ""
            cluster.refused.append(("unknown_event", stranger))
        case "foreign" if id in cluster.where:  # a Kafka client that knows no time asks everywhere
            for place in LAYOUT.candidates(TENANT, SPREAD, "test", id):
                cluster.put(place, void(id))
                if place != cluster.where[id]:
                    cluster.refused.append(("unknown_event", id))
            cluster.expect(void(id))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_of_spread_usage_is_what_the_rules_leave(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    cluster = Cluster(bench, [Log(each) for each in range(LAYOUT.partitions)])
    for number in range(60):
        step(cluster, chance, number)
    cut = tuple(PartitionPosition(partition=log.partition, offset=len(log.records)) for log in cluster.logs)
    need = Need(BYTES, DAY, cut)
    expected = sum((Decimal(e.properties["bytes"]) for e in cluster.stands.values() if e.customer == "c1"), Decimal(0))
    assert bench.quantities([need])[need].total == expected
    assert sorted((each.usage.reason, each.usage.id or "") for each in bench.refused) == sorted(cluster.refused)
    fates = bench.fates()
    assert {name: getattr(fates, name) for name in ("counted", "voided", "amended", "repeated")} == {
        name: cluster.fates[name] for name in ("counted", "voided", "amended", "repeated")
    }
    rebuilt(cluster, chance)


def rebuilt(cluster: Cluster, chance: random.Random) -> None:
    """Another order of partitions and other batches leave the same rows."""
    bench = cluster.bench
    with postgres.connect(bench.owner) as connection:
        tx = connection.cursor()
        number = generation.reserve(tx, usage.SET)
        generation.create(tx, usage.SET, number)
    store = cluster.another(into=number)
    for log in chance.sample(cluster.logs, len(cluster.logs)):
        at = 0
        while at < len(log.records):
            size = chance.choice([1, 3, 60])
            bench.apply(log.records[at : at + size], store=store)
            at += size
    for table, statement in usage.COMPARED.items():
        here = sorted(map(repr, bench.rows(statement)))
        with postgres.transaction(bench.pool) as tx:
            generation.enter(tx, usage.SET, number)
            there = sorted(map(repr, tx.execute(statement).fetchall()))
        assert here == there, table


def test_an_amendment_that_lies_with_its_event_but_belongs_elsewhere_by_its_new_time_is_refused(bench: Bench) -> None:
    cluster = Cluster(bench, [Log(each) for each in range(LAYOUT.partitions)])
    later = NOON + timedelta(hours=3)
    ids = [str(each) for each in range(40)]
    home = LAYOUT.home(TENANT)
    moved = next(each for each in ids if LAYOUT.place(TENANT, SPREAD, event(each, later)) != home)
    cluster.send(event(moved, NOON))
    cluster.put(home, amendment(event(moved, later)))
    cluster.put(LAYOUT.place(TENANT, SPREAD, event(moved, later)), amendment(event(moved, later)))
    assert [each.usage.reason for each in bench.refused] == ["key_mismatch", "unknown_event"]
    assert bench.fates().amended == 0
