"""A spread that changes within a period, on a real log: the quantity below every cut is the truth."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing.ids import CustomerId, TenantId
from billing.invoicing import Need, PartitionPosition
from billing.metering import UsageControl
from billing.period import Period
from billing.placing import Spread
from infra import postgres
from infra.kafka import KafkaConfig, end_offsets
from projections import generation, usage, usage_read
from services.reconcile import reconcile
from services.usage_placing import Layout
from tallybook_sdk import Spread as SdkSpread
from tallybook_sdk import UsageEvent, UsageProducer
from tests.projections.history import CALLS, START
from tests.projections.usage_log import BOUNDS, append, count_log
from tests.stack import Stack

LAYOUT = Layout(3)
PERIOD = Period(START, START + timedelta(days=31))
SPREAD = (
    Spread(effective_from=START + timedelta(days=10), partitions=3),
    Spread(effective_from=START + timedelta(days=20), partitions=2),
)


def used(first: int, last: int) -> list[UsageEvent]:
    """Ten events for each day from `first` to before `last`."""
    return [
        UsageEvent(
            id=f"{day}-{number}",
            source="test",
            type="call",
            customer="ann",
            time=START + timedelta(days=day, minutes=number),
            properties={},
        )
        for day in range(first, last)
        for number in range(10)
    ]


@pytest.mark.parametrize("tenant", ["acme"])
def test_quantities_are_the_truth_across_a_change_of_the_spread(stack: Stack, tenant: str) -> None:
    settings = stack.fresh(usage_partitions=3, billing_partitions=1)
    client = settings.kafka_client()
    bootstrap = client.pop("bootstrap.servers")

    def tell(version: int) -> None:
        made = UsageControl(
            tenant=TenantId(tenant),
            version=version + 1,
            meters=(CALLS,),
            bounds=BOUNDS,
            clock=START,
            spread=SPREAD[:version],
        )
        append(settings, tenant, made, range(3))

    def send(events: list[UsageEvent], known: int) -> None:
        versions = tuple((each.effective_from, each.partitions) for each in SPREAD[:known])
        spread = SdkSpread(3, versions) if known else None
        with UsageProducer(bootstrap, tenant, spread=spread, topic_prefix=settings.topic_prefix, kafka=client) as sdk:
            for each in events:
                sdk.send(each)

    def cut() -> tuple[PartitionPosition, ...]:
        """As the scheduler makes it."""
        partitions = LAYOUT.touched(tenant, SPREAD)
        ends = end_offsets(KafkaConfig.of(settings), usage.TOPIC, list(partitions))
        return tuple(PartitionPosition(partition=each, offset=ends[each]) for each in partitions)

    with postgres.worker_pool(settings) as pool:

        def measured(positions: tuple[PartitionPosition, ...]) -> int:
            need = Need(CALLS, PERIOD, positions)
            with postgres.transaction(pool) as tx:
                generation.enter_all(tx)
                found = usage_read.quantities(tx, TenantId(tenant), CustomerId("ann"), [need])
            return int(found[need].total)

        tell(0)
        send(used(0, 10), 0)
        tell(1)
        send(used(5, 20), 1)  # half of the first ten days again
        tell(2)
        send(used(0, 25), 2)  # everything again, under the newest spread
        send(used(8, 12), 0)  # by a sender that knows of no spread: copies, or refused
        first = cut()
        send(used(3, 29), 2)  # the last four days come late
        count_log(settings, pool)
        assert (measured(first), measured(cut())) == (250, 290)
    made = reconcile(settings)
    assert [each.differences for each in made.tenants] == [[]]
