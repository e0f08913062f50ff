"""Every sum is exact although everything is killed in turn; the long version is a benchmark's."""

from __future__ import annotations

import pytest

from benchmarks import usage_chaos, usage_system


@pytest.mark.stack
def test_every_sum_is_exact_after_one_kill_of_each() -> None:
    with usage_system.running() as system:
        outcome = usage_chaos.run(system, kills=len(usage_chaos.TARGETS), quiet_s=0, rate=500)
    assert outcome.wrong == []
    assert {target for target, _ in outcome.kills} == set(usage_chaos.TARGETS)
    assert outcome.fates["duplicate"] > 0
    assert outcome.fates["conflict"] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_sum_is_exact_after_many_kills_at_a_high_rate() -> None:
    with usage_system.running() as system:
        outcome = usage_chaos.run(system, kills=16, quiet_s=30, rate=5_000, seed=2)
    assert outcome.wrong == []
    assert outcome.restarts >= 4
