"""One test per case: what a peer's own test suite states, Tallybook computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.conformance import aggregation, coupons_tax_credit, grants, periods, proration, rating
from tests.conformance.conftest import chosen
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
    asked = case["given"]["op"]
    adapters = (OPERATIONS.get(file, {}), *OPERATIONS.values())  # the file's own first, whatever the file is called
    operation = next((each[asked] for each in adapters if asked in each), None)
    assert operation is not None, f"no adapter for {asked} of {file}.json"
    given = Watched(case["given"])
    actual = operation(given, peer_of(case))
    wrong = differences(case["expected"], actual, case.get("not_recomputed", ()))
    ignored = f"given but not used: {', '.join(sorted(given.unread)) or 'nothing'}"
    assert not wrong, "\n".join([*wrong, ignored, f"policy: {case.get('policy')}", f"notes: {case.get('notes')}"])


UNSAID = {"timezone": "UTC", "count": 1, "interval": "month", "tie_break": "input order", "billed": "arrears"}
"""What a case means that leaves it out."""


class Watched(dict[str, Any]):
    """What is given, knowing which of its fields no adapter looked at: the first suspects when a result differs.

    Null says as little as a field that is not there.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        said = {name: value for name, value in given.items() if value is not None}
        super().__init__({**UNSAID, **said})
        self.unread = set(said) - {"op"}

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.unread.discard(key)
        return super().get(key, default)


def test_most_house_rules_are_offered(request: pytest.FixtureRequest) -> None:
    with_policy = [case for _, case in chosen(request.config) if case.get("policy")]
    refused = [case for case in with_policy if refusal(case)]
    assert 2 * len(refused) <= len(with_policy), f"{len(refused)} of {len(with_policy)} are refused"


def test_nothing_is_refused_without_a_policy(request: pytest.FixtureRequest) -> None:
    assert not [case["id"] for _, case in chosen(request.config) if refusal(case) and not case.get("policy")]
