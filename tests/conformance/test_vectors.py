"""One test per case: what a peer's own test suite states, Tallybook computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import aggregation, coupons_tax_credit, grants, periods, proration, rating
from tests.conformance.conftest import COPY, cases
from tests.conformance.figures import differences
from tests.conformance.peers import Peer, peer_of, refusal

Operation = Callable[[dict[str, Any], Peer], dict[str, Any]]
OPERATIONS: Mapping[str, Mapping[str, Operation]] = {
    "rating": rating.OPERATIONS,
    "proration": proration.OPERATIONS,
    "periods": periods.OPERATIONS,
    "coupons_tax_credit": coupons_tax_credit.OPERATIONS,
    "aggregation": aggregation.OPERATIONS,
    "grants": grants.OPERATIONS,
}


def test_what_the_peers_state_is_computed(file: str, case: dict[str, Any]) -> None:
    reason = refusal(case)
    if reason is not None:
        pytest.skip(f"refused by rule: {reason}")
    operation = OPERATIONS.get(file, {}).get(case["given"]["op"])
    assert operation is not None, f"no adapter for {case['given']['op']} of {file}.json"
    actual = operation(case["given"], peer_of(case))
    wrong = differences(case["expected"], actual, case.get("not_recomputed", ()))
    assert not wrong, "\n".join([*wrong, f"policy: {case.get('policy')}", f"notes: {case.get('notes')}"])


def test_most_house_rules_are_offered(request: pytest.FixtureRequest) -> None:
    folder: Path = request.config.getoption("--vectors", COPY)
    with_policy = [case for _, case in cases(folder) if case.get("policy")]
    refused = [case for case in with_policy if refusal(case)]
    assert 2 * len(refused) <= len(with_policy), f"{len(refused)} of {len(with_policy)} are refused"


def test_nothing_is_refused_without_a_policy(request: pytest.FixtureRequest) -> None:
    folder: Path = request.config.getoption("--vectors", COPY)
    assert not [case["id"] for _, case in cases(folder) if refusal(case) and not case.get("policy")]
