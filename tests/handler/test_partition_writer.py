"""The loop of one partition on a log in memory: what it does about everything that can go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from billing import decision
from billing.customer import CreateCustomer
from billing.envelope import CommandResult, Outcome
from billing.errors import CorruptHistory
from billing.ids import CustomerId
from infra.errors import Conflict, Poison
from infra.kafka import partition_for
from services.command_decider import PartitionDecider
from services.partition_writer import FENCED_PAUSE_S, PAUSE_S, PartitionWriter
from tests.handler.conftest import SELLER
from tests.handler.memory_log import LOST, Cluster, Fault, MemoryLog, StillClock, once


def customer(name: str) -> CreateCustomer:
    return CreateCustomer(customer_id=CustomerId(name))


def a_cluster(*names: str) -> Cluster:
    """A tenant and some customers are asked for."""
    cluster = Cluster()
    cluster.ask("acme", SELLER, "test:register")
    for name in names:
        cluster.ask("acme", customer(name), f"test:{name}")
    return cluster


def a_writer(cluster: Cluster, fault: Fault = lambda log, step: None) -> tuple[PartitionWriter, MemoryLog]:
    log = MemoryLog(cluster, fault)
    return PartitionWriter(0, 1, log, StillClock()), log


def work(writer: PartitionWriter, cluster: Cluster, steps_max: int = 200) -> list[float]:
    """Step until every command is answered; the pauses it asked for."""
    pauses = []
    for _ in range(steps_max):
        if writer.is_open and cluster.committed == len(cluster.topics["billing.commands"]):
            return [each for each in pauses if each]
        pauses.append(writer.step())
    raise AssertionError(f"not done in {steps_max} steps; committed {cluster.committed}")


def outcomes(cluster: Cluster) -> list[tuple[str, str]]:
    return [(each.outcome.value, each.code) for each in cluster.results]


def test_the_writer_fences_before_it_folds_and_folds_before_it_reads_the_offset() -> None:
    cluster = a_cluster()
    writer, log = a_writer(cluster)
    work(writer, cluster)
    assert log.steps[:4] == ["fence", "history", "resume", "poll"]


def test_many_commands_are_answered_in_one_transaction() -> None:
    cluster = a_cluster("c1", "c2", "c3")
    writer, log = a_writer(cluster)
    work(writer, cluster)
    assert log.steps.count("commit") == 1
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", ["fence", "history", "resume", "poll", "begin", "append", "move", "commit"])
def test_whatever_step_fails_everything_is_done_once(step: str) -> None:
    cluster = a_cluster("c1", "c2")
    writer, log = a_writer(cluster, once(step, LOST))
    assert work(writer, cluster) == [PAUSE_S]
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3]
    assert outcomes(cluster) == [("accepted", "")] * 3
    assert log.steps[log.steps.index("drop") + 1] == "fence"


def test_a_commit_whose_answer_was_lost_is_read_back_and_not_repeated() -> None:
    cluster = a_cluster("c1", "c2")
    writer, _ = a_writer(cluster, once("commit", LOST, after_effect=True))
    work(writer, cluster)
    cluster.ask("acme", customer("c3"), "test:c3")
    work(writer, cluster)
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3, 4]
    assert len(cluster.results) == 4


def test_a_writer_that_was_fenced_waits_to_hear_whose_the_partition_is() -> None:
    cluster = a_cluster()
    first, _ = a_writer(cluster)
    work(first, cluster)
    second, _ = a_writer(cluster)
    cluster.ask("acme", customer("c1"), "test:c1")
    work(second, cluster)
    cluster.ask("acme", customer("c2"), "test:c2")
    assert first.step() == FENCED_PAUSE_S
    assert not first.is_open
    work(second, cluster)
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3]


def test_a_zombie_that_fences_back_folds_what_was_committed_meanwhile() -> None:
    cluster = a_cluster()
    first, _ = a_writer(cluster)
    second, _ = a_writer(cluster)
    work(first, cluster)
    for n in range(5):
        cluster.ask("acme", customer(f"c{n}"), f"test:{n}")
        work(first if n % 2 else second, cluster)
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3, 4, 5, 6]
    assert outcomes(cluster) == [("accepted", "")] * 6


def test_pauses_grow_while_nothing_works() -> None:
    cluster = a_cluster()

    def down(log: MemoryLog, step: str) -> None:
        raise LOST

    writer, _ = a_writer(cluster, down)
    assert [writer.step() for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_undecodable_commands_are_set_aside_and_block_nothing() -> None:
    cluster = a_cluster("c1")
    tenant = {"tenant": b"acme", "ce_id": b"command-x"}
    good = cluster.topics["billing.commands"][1].value
    assert good is not None
    for value in (None, b"", b"\x07\x07\x07\x07\x07\x07", good[:-3], good + b"\x00", b"\xc3\x01" + bytes(8)):
        cluster.put("billing.commands", b"acme", value, tenant)
    cluster.ask("acme", customer("c2"), "test:c2")
    writer, log = a_writer(cluster)
    work(writer, cluster)
    assert log.steps.count("commit") == 1
    assert [each.meta.type for each in cluster.events] == ["TenantRegistered", "CustomerCreated", "CustomerCreated"]
    assert [each.headers["dlq-reason"].decode() for each in cluster.quarantine] == [
        "null_value",
        "bad_framing",
        "bad_magic",
        "truncated",
        "trailing_bytes",
        "unknown_schema",
    ]
    assert outcomes(cluster)[2:8] == [("rejected", "poison")] * 6
    assert {each.command_id for each in cluster.results[2:8]} == {"command-x"}


def test_a_quarantined_record_keeps_its_bytes_its_headers_and_its_place() -> None:
    cluster = a_cluster()
    cluster.put("billing.commands", b"\xff\xfe", b"rubbish", {"tenant": b"acme", "traceparent": b"00-1"})
    writer, _ = a_writer(cluster)
    work(writer, cluster)
    (kept,) = cluster.quarantine
    assert (kept.key, kept.value) == (b"unknown", b"rubbish")
    named = {name: value.decode(errors="replace") for name, value in kept.headers.items()}
    assert (named["dlq-topic"], named["dlq-partition"], named["dlq-offset"]) == ("billing.commands", "0", "1")
    assert (named["dlq-reason"], named["traceparent"]) == ("bad_magic", "00-1")
    assert kept.headers["dlq-key"] == b"\xff\xfe"
    assert {"dlq-exception", "dlq-app-version"} <= named.keys()


@pytest.mark.parametrize(
    ("key", "named", "repeated", "reason"),
    [
        (b"globex", {"tenant": b"acme"}, "", "key_mismatch"),
        (None, {"tenant": b"acme"}, "", "key_mismatch"),
        (b"acme", {"tenant": b"globex"}, "", "header_mismatch"),
        (b"acme", {}, "", "header_mismatch"),
        (b"acme", {"tenant": b"acme"}, "tenant", "header_mismatch"),
    ],
)
def test_a_command_in_another_tenants_name_is_set_aside_and_nobody_is_told(
    key: bytes | None, named: dict[str, bytes], repeated: str, reason: str
) -> None:
    cluster = a_cluster()
    smuggled = Cluster()
    smuggled.ask("acme", customer("c1"), "test:c1")
    value = smuggled.topics["billing.commands"][0].value
    cluster.put("billing.commands", key, value, named, repeated=repeated)
    writer, _ = a_writer(cluster)
    work(writer, cluster)
    assert [each.headers["dlq-reason"].decode() for each in cluster.quarantine] == [reason]
    assert len(cluster.results) == 1
    assert len(cluster.events) == 1


def test_a_tenant_on_the_wrong_partition_is_a_mismatch() -> None:
    cluster = a_cluster()
    log = MemoryLog(cluster)
    elsewhere = 1 - partition_for("acme", 2)
    cluster.topics["billing.commands"] = [
        each._replace(partition=elsewhere) for each in cluster.topics["billing.commands"]
    ]
    work(PartitionWriter(elsewhere, 2, log, StillClock()), cluster)
    assert [each.headers["dlq-reason"] for each in cluster.quarantine] == [b"key_mismatch"]


def test_a_command_that_crashes_the_decider_is_rejected_and_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    decide_really = decision.facts

    def facts(state: Any, command: Any, wall: Any) -> Any:
        if isinstance(command, CreateCustomer) and command.customer_id == "c2":
            raise ZeroDivisionError("a bug")
        return decide_really(state, command, wall)

    monkeypatch.setattr(decision, "facts", facts)
    cluster = a_cluster("c1", "c2", "c3")
    writer, log = a_writer(cluster)
    work(writer, cluster)
    assert log.steps.count("commit") == 1
    assert outcomes(cluster) == [("accepted", ""), ("accepted", ""), ("rejected", "poison"), ("accepted", "")]
    assert [each.headers["dlq-exception"] for each in cluster.quarantine] == [b"ZeroDivisionError: a bug"]
    assert [each.event.customer_id for each in cluster.events[1:]] == ["c1", "c3"]


def test_a_command_whose_events_cannot_be_recorded_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording fails half-way: the state is thrown away, the log folded, and the culprit set aside."""
    apply_really = decision.TenantState.apply

    def apply(state: Any, envelope: Any, hashed: bytes) -> None:
        apply_really(state, envelope, hashed)
        if getattr(envelope.event, "customer_id", "") == "c2":
            raise CorruptHistory("a bug")

    monkeypatch.setattr(decision.TenantState, "apply", apply)
    cluster = a_cluster("c1", "c2", "c3")
    writer, log = a_writer(cluster)
    work(writer, cluster)
    assert log.steps.count("fence") == 2
    assert outcomes(cluster) == [("accepted", ""), ("accepted", ""), ("rejected", "poison"), ("accepted", "")]
    assert [each.meta.sequence for each in cluster.events] == [1, 2, 3]
    assert [each.event.customer_id for each in cluster.events[1:]] == ["c1", "c3"]


def test_a_record_that_the_log_refuses_is_found_by_halving_the_batch() -> None:
    cluster = a_cluster(*(f"c{n}" for n in range(20)))

    class Picky(MemoryLog):
        def append(self, topic: str, key: str, value: bytes, headers: Any) -> None:
            if topic == "billing.events" and b"c13" in value:
                raise Poison("MSG_SIZE_TOO_LARGE")
            super().append(topic, key, value, headers)

    writer = PartitionWriter(0, 1, Picky(cluster), StillClock())
    work(writer, cluster)
    assert [each.headers["dlq-reason"] for each in cluster.quarantine] == [b"record_too_large"]
    assert outcomes(cluster).count(("rejected", "record_too_large")) == 1
    assert [each.event.customer_id for each in cluster.events[1:]] == [f"c{n}" for n in range(20) if n != 13]


def test_a_log_that_contradicts_itself_stops_the_writer() -> None:
    cluster = a_cluster("c1")
    writer, _ = a_writer(cluster)
    work(writer, cluster)
    del cluster.topics["billing.events"][0]
    other, _ = a_writer(cluster)
    with pytest.raises(CorruptHistory, match=r"billing.events\[0\]@1: acme: event 2 after 0"):
        other.step()


def test_an_event_that_nobody_can_read_stops_the_writer() -> None:
    cluster = a_cluster()
    cluster.put("billing.events", b"acme", b"\xc3\x01" + bytes(8), {})
    writer, _ = a_writer(cluster)
    with pytest.raises(CorruptHistory, match="unknown_schema"):
        writer.step()


def test_a_batch_that_was_begun_is_finished_before_stopping() -> None:
    cluster = a_cluster("c1")
    writer, log = a_writer(cluster)
    seen: list[bool] = []

    def stopped() -> bool:
        seen.append(cluster.committed == 2)
        return seen[-1]

    writer.run(stopped)
    assert cluster.committed == 2
    assert log.steps[-1] == "drop"


def test_refusals_for_tenants_that_do_not_exist_are_not_remembered() -> None:
    decider = PartitionDecider(0, 1)
    cluster = Cluster()
    for n in range(100):
        cluster.ask(f"nobody-{n}", customer("c1"), "test:c1")
    for record in cluster.topics["billing.commands"]:
        assert decider.answer(record, StillClock().now()).code == "unknown_tenant"
    assert decider._tenants == {}


def test_a_result_tells_where_to_read_from() -> None:
    cluster = a_cluster("c1")
    cluster.ask("acme", customer("c1"), "test:again")
    cluster.ask("acme", customer("c1"), "test:c1")
    writer, _ = a_writer(cluster)
    work(writer, cluster)
    results: Sequence[CommandResult] = cluster.results
    assert [(each.sequence, each.first_sequence, each.last_sequence, each.replayed) for each in results] == [
        (1, 1, 1, False),
        (2, 2, 2, False),
        (2, 0, 0, False),  # nothing was to be changed
        (2, 2, 2, True),
    ]
    assert results[2].outcome is Outcome.ACCEPTED


def test_a_fence_by_the_commit_itself_is_heard() -> None:
    cluster = a_cluster("c1")
    writer, _ = a_writer(cluster, once("commit", Conflict("fenced")))
    assert work(writer, cluster) == [FENCED_PAUSE_S]
    assert [each.meta.sequence for each in cluster.events] == [1, 2]
