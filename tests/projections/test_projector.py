"""The projector as a process: killed between every two durable steps, it leaves what an undisturbed one leaves."""

from __future__ import annotations

import signal

import pytest

from billing.envelope import EventEnvelope
from infra import postgres
from infra.faust_app import Batch
from infra.settings import Settings
from projections import generation, tenants
from projections.generation import Stale
from services import projector
from tests.projections.history import a_quarter
from tests.projections.log import append
from tests.projections.test_replay import TENANTS, compared
from tests.stack import Stack
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("topics")


def reached(pool: postgres.Pool) -> dict[str, int]:
    with postgres.transaction(pool) as tx:
        generation.enter(tx, "billing")
        return tenants.all_sequences(tx)


def histories() -> dict[str, list[EventEnvelope]]:
    return {tenant: a_quarter(tenant).events for tenant in TENANTS}


@pytest.mark.parametrize("place", ["projector.after_poll", "projector.after_rows", "projector.after_commit"])
def test_killed_and_started_again_it_projects_every_event_once(
    stack: Stack, fresh: Settings, pool: postgres.Pool, place: str
) -> None:
    logged = histories()
    append(fresh, *logged.values())
    fault = {"TALLYBOOK_FAILPOINT": f"{place}=kill", "TALLYBOOK_INSTANCE": "one"}
    process = stack.start("projector", fresh, **fault)
    assert process.wait(240) == -signal.SIGKILL
    process = stack.start("projector", fresh, **fault)  # it fires once per data folder
    wanted = {tenant: len(events) for tenant, events in logged.items()}
    eventually(lambda: reached(pool) == wanted)
    assert [each for each in compared(fresh, pool).values() if each.differing] == []
    append(fresh, a_quarter("late").events)
    eventually(lambda: reached(pool).get("late"))
    assert stack.stop(process) == 0


def test_a_missing_event_ends_it_and_nothing_after_the_gap_is_projected(
    stack: Stack, fresh: Settings, pool: postgres.Pool
) -> None:
    events = a_quarter("acme").events
    append(fresh, events[:10], events[12:])
    process = stack.start("projector", fresh)
    assert process.wait(240) == 70
    assert reached(pool).get("acme", 0) in (0, 10)
    assert "event 13 after 10; 2 are missing" in (fresh.data / "logs" / "projector.log").read_text()


def test_a_worker_that_lost_its_partition_writes_nothing(fresh: Settings, pool: postgres.Pool) -> None:
    from infra.kafka import Record
    from schemas.codec import encode_event

    records = [
        Record("billing.events", 0, 5 + number, b"acme", encode_event(event), {}, (), event.meta.recorded_at)
        for number, event in enumerate(a_quarter("acme").events[:4])
    ]
    projector.apply(pool, Batch(records[:2], 0))
    projector.apply(pool, Batch(records[:2], 0))  # delivered again: below the checkpoint
    assert reached(pool) == {"acme": 2}
    with pytest.raises(Stale):
        projector.apply(pool, Batch(records[3:], 8))  # records before it were applied by nobody
    assert reached(pool) == {"acme": 2}
    projector.apply(pool, Batch(records, 0))  # some of it is new
    assert reached(pool) == {"acme": 4}
