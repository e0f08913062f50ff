"""`tallybook log verify` and `tallybook log tail` on a real log."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from billing.customer import CreateCustomer
from billing.ids import CustomerId
from infra.kafka import KafkaConfig, Producer, Record, partition_for
from services.log_check import LogCheck
from tests.handler.conftest import SELLER, Handlers


def tallybook(handlers: Handlers, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *words],
        env=handlers.stack.environment(handlers.settings),
        capture_output=True,
        text=True,
        check=False,
    )


def lived(handlers: Handlers) -> None:
    handlers.start()
    handlers.ask("acme", SELLER, "test:register")
    handlers.ask("acme", CreateCustomer(customer_id=CustomerId("c1")), "test:c1")
    handlers.ask("globex", SELLER, "test:register")


def test_a_sound_log_is_said_to_be_sound(handlers: Handlers) -> None:
    lived(handlers)
    done = tallybook(handlers, "log", "verify")
    assert (done.returncode, done.stdout) == (0, "3 events of 2 tenants: sound\n")


def test_a_forged_event_is_found_with_its_place(handlers: Handlers) -> None:
    lived(handlers)
    first = handlers.records("billing.events")[0]
    producer = Producer(KafkaConfig.of(handlers.settings))
    producer.send("billing.events", first.value or b"", key="acme", headers=first.headers, partition=0)
    producer.flush()
    done = tallybook(handlers, "log", "verify", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["sound"], report["events"]) == (1, False, 4)
    assert {each["what"] for each in report["faults"]} == {
        "event 1 after 2",
        "event 1 does not continue the hash chain",
        "tenant: version 1 where 2 follows",
    }
    assert {each["tenant"] for each in report["faults"]} == {"acme"}


def test_the_latest_records_are_shown_and_decoded(handlers: Handlers) -> None:
    lived(handlers)
    lines = tallybook(handlers, "log", "tail", "--topic", "billing.events", "-n", "2", "--decode").stdout.splitlines()
    shown = [json.loads(each) for each in lines]
    assert [each["key"] for each in shown] == ["acme", "globex"]
    assert shown[0]["value"]["CustomerCreated"]["customer_id"] == "c1"
    assert shown[0]["value"]["meta"]["sequence"] == 2


def test_a_topic_that_does_not_exist_is_wrong_usage(handlers: Handlers) -> None:
    done = tallybook(handlers, "log", "tail", "--topic", "billing.event")
    assert done.returncode == 2
    assert "billing.events" in done.stderr


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "event 2 after 0"),
        ("changed", "event 2 does not continue the hash chain"),
        ("moved", "the tenant belongs to another partition"),
        ("keyed", "its key is b'globex'"),
    ],
)
def test_the_check_finds_what_is_missing_changed_or_moved(handlers: Handlers, fault: str, said: str) -> None:
    lived(handlers)
    records: list[Record] = [each for each in handlers.records("billing.events") if each.key == b"acme"]
    if fault == "missing":
        records = records[1:]
    if fault == "changed":
        records[0] = records[0]._replace(value=(records[0].value or b"").replace(b"Harbour", b"Airport"))
    if fault == "moved":
        records = [each._replace(partition=1 - partition_for("acme", 2)) for each in records]
    if fault == "keyed":
        records[1] = records[1]._replace(key=b"globex")
    check = LogCheck(2 if fault == "moved" else 1)
    for each in records:
        check.take(each)
    assert said in {each.what for each in check.report.faults}
