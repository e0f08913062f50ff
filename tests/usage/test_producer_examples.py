"""The examples for other Kafka clients: what they send is counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.codec import UsageRecords, decode_usage_records
from tests.stack import Stack
from tests.usage.test_aggregator import Aggregators
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "producers"
SCHEMA = ROOT / "schemas" / "avro" / "usage" / "UsageBatch.1.avsc"


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
        subprocess.run([sys.executable, EXAMPLES / words[0], *words[1:]], check=True, timeout=60)
    eventually(aggregators.is_caught_up)
    counts = aggregators.fates()[tenant]
    assert (counts.counted, counts.rejected) == (20, 0)


def test_an_example_says_what_was_not_delivered() -> None:
    words = [sys.executable, EXAMPLES / "plain_json.py", "127.0.0.1:1", "acme"]
    program = (EXAMPLES / "plain_json.py").read_text().replace("flush(30)", "flush(0.2)")
    done = subprocess.run([sys.executable, "-c", program, *words[2:]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not delivered, send again: no answer in time" in done.stderr


def test_the_line_in_the_kcat_example_is_usage_and_its_shell_is_sound() -> None:
    script = EXAMPLES / "kcat.sh"
    subprocess.run(["sh", "-n", script], check=True)
    (line,) = re.findall(r"^#   (\{.*\})$", script.read_text(), re.MULTILINE)
    made = decode_usage_records(line.encode())
    assert isinstance(made, UsageRecords)
    assert (made.tenant, made.events[0]["properties"]) == ("acme", {"bytes": "512"})
    assert json.loads(line)["tenant"] == "acme"
