"""The running system bills a scenario as the kernel does, to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import Transient
from services.scenario import kernel, system
from services.scenario.run import PASSED, System, run
from services.scenario.text import Scenario, load
from tests.stack import Stack
from tests.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
PROCESSES = ("command-handler", "projector", "usage-aggregator", "meters", "scheduler", "invoicing")


@pytest.fixture(scope="module")
def running(stack: Stack) -> Iterator[System]:
    """What bills, on a database and topics of this module."""
    settings = stack.fresh(billing_partitions=1, usage_partitions=1)
    processes = [stack.start(name, settings) for name in PROCESSES]
    warm = load(EXAMPLES / "money-zero-is-paid.scenario")
    with system.running(settings) as playing:
        # A process that was just started takes its time until it has its partitions.
        eventually(lambda: _answers(playing, warm))
        yield playing
    for each in processes:
        stack.stop(each)


def _answers(playing: System, scenario: Scenario) -> bool:
    try:
        playing(scenario, kernel.play(scenario))
    except Transient:
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        "add-ons-come-and-go",
        "airport-month",
        "change-of-plan-at-once",
        "commands-refused",
        "late-usage-and-commitment",
        "late-usage-within-grace",
        "money-credit-is-used-up",
        "meters-daily-maximum",
        "meters-expression",
        "meters-level-by-time",
        "meters-percentile",
        "meters-seats-at-the-end",
        "meters-seats-by-time",
        "meters-time-of-day",
        "own-prices-and-ramp",
        "money-grants-by-priority",
        "periods-change-of-anchor",
        "periods-change-of-zone",
        "periods-free-periods",
        "periods-trial",
        "periods-trial-canceled",
        "periods-yearly-fee-on-monthly-plan",
        "subscription-canceled-at-once",
        "tax-by-jurisdiction",
        "usage-amended-after-the-invoice",
        "usage-duplicates-and-conflicts",
        "usage-refused",
        "usage-voided-after-the-invoice",
        "usage-voided-and-amended",
    ],
)
def test_the_system_bills_what_the_kernel_says(stack: Stack, running: System, name: str) -> None:
    result = run(EXAMPLES / f"{name}.scenario", system=running)
    assert result.diff == ""
    assert result.status == PASSED
