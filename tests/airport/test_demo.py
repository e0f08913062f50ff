"""The whole system on the whole year: every invoice of `tallybook demo` equals the independent calculation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.airport import independent

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What `tallybook demo` found, on a stack of its own, with three processes killed on the way."""
    data = tmp_path_factory.mktemp("demo") / "data"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_")}
    tallybook = [sys.executable, "-m", "services.cli"]
    try:
        done = subprocess.run(
            [*tallybook, "demo", "--data", str(data), "--json"],
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr[-4000:]
        yield json.loads(done.stdout)
    finally:
        # The demonstration ends what it started; this is for one that was ended itself.
        subprocess.run(
            [*tallybook, "down"], env={**clean, "TALLYBOOK_DATA": str(data)}, capture_output=True, check=False
        )


def test_every_invoice_equals_the_independent_calculation(demonstration: dict[str, Any]) -> None:
    expected = {
        (total.airline, total.issued.replace(tzinfo=independent.NEW_YORK).astimezone(UTC)): total.cents
        for total in independent.invoices(independent.flights())
    }
    made = {(each["customer"], _boundary(each)): each["total"]["minor"] for each in demonstration["invoices"]}
    assert made == expected
    assert len(demonstration["invoices"]) == 205


def _boundary(invoice: dict[str, Any]) -> datetime:
    """The moment the invoice is about: the start of a subscription, or the end of a period."""
    at_start = invoice["reason"] == "subscription_start"
    return datetime.fromisoformat(invoice["period_start" if at_start else "period_end"])


def test_numbers_are_gapless(demonstration: dict[str, Any]) -> None:
    serials = sorted(each["serial"] for each in demonstration["invoices"])
    assert serials == list(range(1, 206))


def test_the_provider_charged_every_invoice_once(demonstration: dict[str, Any]) -> None:
    charged = defaultdict(list)
    for charge in demonstration["charges"]:
        charged[charge["metadata"]["invoice_id"]].append(charge["amount"])
    assert charged == {each["id"]: [each["total"]["minor"]] for each in demonstration["invoices"]}


def test_a_declined_card_is_collected_on_a_retry(demonstration: dict[str, Any]) -> None:
    keys = [charge["key"] for charge in demonstration["charges"] if charge["metadata"]["customer_id"] == "F9"]
    assert sum(key.endswith("-attempt-2") for key in keys) == 1


def test_nothing_is_lost_and_nothing_counted_twice(demonstration: dict[str, Any]) -> None:
    (airport,) = demonstration["reconciliation"]["tenants"]
    assert demonstration["reconciliation"]["balanced"]
    assert airport["received"] == demonstration["sent"]
    assert airport["counted"] + airport["unmatched"] == 328_521
    assert airport["duplicate"] == demonstration["sent"] - 328_521
    assert airport["billed"] == airport["counted"]


def test_the_replay_is_identical(demonstration: dict[str, Any]) -> None:
    assert demonstration["verification"]["identical"]
    assert demonstration["verification"]["invoices"] == {"checked": 205, "differing": 0, "differences": []}
    assert demonstration["passed"]
