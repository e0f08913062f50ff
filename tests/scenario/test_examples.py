"""Every scenario that we ship comes out as it says, and all of them quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.scenario import golden, kernel
from services.scenario.run import DIFFERS, PASSED, UPDATED, run
from services.scenario.text import load

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
SHIPPED = sorted(EXAMPLES.glob("*.scenario"))
CPU_S = 2.0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_comes_out_as_it_says(path: Path) -> None:
    result = run(path)
    assert result.diff == ""
    assert result.status == PASSED


def test_all_shipped_scenarios_take_less_than_two_seconds() -> None:
    assert len(SHIPPED) >= 25
    started = time.process_time()
    for path in SHIPPED:
        kernel.play(load(path))
    assert time.process_time() - started < CPU_S


def test_a_shipped_scenario_states_its_rule_and_says_why() -> None:
    titles = [load(path).title for path in SHIPPED]
    assert len(set(titles)) == len(titles)
    assert [path.name for path in SHIPPED if not load(path).golden] == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    path = tmp_path / "volume.scenario"
    path.write_text((EXAMPLES / "rating-volume-cliff.scenario").read_text())
    return path


def test_a_wrong_expectation_fails_with_a_diff(copied: Path) -> None:
    before = copied.read_text().replace("9.51", "9.50")
    copied.write_text(before)
    result = run(copied)
    assert result.status == DIFFERS
    removed = [line for line in result.diff.splitlines() if line.startswith("-  Calls")]
    added = [line for line in result.diff.splitlines() if line.startswith("+  Calls")]
    assert [line.split()[-1] for line in (*removed, *added)] == ["9.50", "9.51"]
    assert copied.read_text() == before


def test_a_changed_price_shows_in_every_line_that_it_moves(copied: Path) -> None:
    copied.write_text(copied.read_text().replace("unit: 0.0095", "unit: 0.01"))
    assert "+      = 1,001 x 0.01\n" in run(copied).diff


def test_update_writes_the_result_once_and_leaves_the_rest_alone(copied: Path) -> None:
    whole = copied.read_text()
    script, _, _ = whole.partition("-" * 88)
    copied.write_text(script)
    assert run(copied).status == DIFFERS
    assert run(copied, update=True).status == UPDATED
    assert copied.read_text() == whole
    assert run(copied, update=True).status == PASSED
    assert copied.read_text() == whole


def test_the_result_does_not_depend_on_the_run() -> None:
    for path in SHIPPED[:5]:
        first, second = (golden.text(kernel.play(load(path)).outcome) for _ in range(2))
        assert first == second
