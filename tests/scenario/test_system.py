"""The running system bills a scenario as the kernel does, to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.scenario import system
from services.scenario.run import PASSED, System, run
from tests.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
PROCESSES = ("command-handler", "projector", "usage-aggregator", "meters", "scheduler", "invoicing")


@pytest.fixture(scope="module")
def running(stack: Stack) -> Iterator[System]:
    """What bills, on a database and topics of this module."""
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    processes = [stack.start(name, settings) for name in PROCESSES]
    with system.running(settings) as playing:
        yield playing
    for each in processes:
        stack.stop(each)


@pytest.mark.parametrize(
    "name",
    [
        "airport-month",
        "commands-refused",
        "late-usage-and-commitment",
        "late-usage-within-grace",
        "money-credit-is-used-up",
        "subscription-canceled-at-once",
        "usage-duplicates-and-conflicts",
        "usage-refused",
    ],
)
def test_the_system_bills_what_the_kernel_says(stack: Stack, running: System, name: str) -> None:
    result = run(EXAMPLES / f"{name}.scenario", system=running)
    assert result.diff == ""
    assert result.status == PASSED
