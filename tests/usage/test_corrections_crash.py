"""An aggregator that is killed between steps while corrections are in its batches leaves what the book says."""

from __future__ import annotations

import random
import signal
from datetime import timedelta
from decimal import Decimal

from infra.kafka import scan
from infra.settings import Settings
from schemas.codec import decode_usage
from services.reconcile import reconcile
from tallybook_sdk import UsageEvent, UsageProducer
from tests.stack import Stack
from tests.usage.making import NOON
from tests.usage.test_aggregator import PARTITIONS, Aggregators, aggregators
from tests.usage.test_laws_of_corrections import Model
from tests.waiting import eventually

__all__ = ["aggregators"]

FAILPOINTS = (
    "usage.after_poll",
    "usage.after_copy",
    "usage.after_correction",
    "usage.before_commit",
    "usage.after_commit",
)


def some(chance: random.Random, id: str) -> UsageEvent:
    at = NOON + timedelta(minutes=chance.randrange(600))
    number = chance.choice([1, 5, Decimal("2.5")])
    return UsageEvent(
        id=id, source="sdk", type="api", customer=chance.choice(["c1", "c2"]), time=at, properties={"bytes": number}
    )


def send(settings: Settings, tenant: str, chance: random.Random, first: int) -> None:
    """Events, copies, conflicts and corrections of them, of earlier ones and of none."""
    with UsageProducer(
        settings.kafka, tenant, source="sdk", batch_events=20, topic_prefix=settings.topic_prefix
    ) as sdk:
        for number in range(first, first + 60):
            sdk.send(some(chance, str(number)))
            known = str(chance.randrange(number + 3))
            match chance.randrange(12):
                case 0 | 1:
                    sdk.void(known, reason="a test run")
                case 2 | 3:
                    sdk.amend(some(chance, known), reason="wrong")
                case 4:
                    sdk.send(some(chance, known))


def books(aggregators: Aggregators) -> dict[str, Model]:
    """By the log alone."""
    made: dict[str, Model] = {}
    for records in scan(aggregators.config, "usage.events", dict.fromkeys(range(PARTITIONS), 0)):
        for record in records:
            content = decode_usage(record.value)
            made.setdefault(content.tenant, Model()).apply(record.offset, content)
    return made


def test_what_is_left_is_exact_after_a_kill_at_every_step(stack: Stack, aggregators: Aggregators) -> None:
    tenants = aggregators.tenants()
    aggregators.register(*tenants)
    spec = ",".join(f"{name}=kill@{2 + place % 2}" for place, name in enumerate(FAILPOINTS))
    own = {"TALLYBOOK_FAILPOINT": spec, "TALLYBOOK_INSTANCE": "one"}
    process = aggregators.start(**own)
    chance = random.Random(1)
    kills = 0

    def moved_on() -> bool:
        nonlocal process, kills
        code = process.poll()
        if code is not None:
            assert code == -signal.SIGKILL
            kills += 1
            process = aggregators.start(**own)
        return aggregators.is_caught_up()

    for round in range(12):
        for tenant in tenants:
            send(aggregators.settings, tenant, chance, 60 * round)
        eventually(moved_on, within_s=300)
        if kills == len(FAILPOINTS):
            break
    assert kills == len(FAILPOINTS)
    for tenant, book in books(aggregators).items():
        left = [each for each, _ in book.events.values() if each.customer == "c1"]
        expected = len(left), int(sum(Decimal(each.properties["bytes"]) for each in left))
        assert aggregators.total(tenant) == expected
        fates = aggregators.fates()[tenant]
        assert {name: getattr(fates, name) for name in book.fates} == book.fates
        assert min(fates.voided, fates.amended, fates.conflict) > 0
        refused = [each for each in aggregators.rejected().values() if each.tenant == tenant]
        assert sorted((each.reason, each.id or "") for each in refused) == sorted(book.refused)
    assert reconcile(aggregators.settings).balanced
