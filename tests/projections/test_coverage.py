"""Nothing that happened is lost on the way to the tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from billing.messages import EVENTS
from projections import billing_set, generation

_FOLDER = Path(billing_set.__file__).parent


def _matched() -> set[str]:
    """Names of the classes that some `apply` of the set distinguishes."""
    found = set()
    for name in generation.BILLING:
        for node in ast.walk(ast.parse((_FOLDER / f"{name}.py").read_text())):
            if isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name):
                found.add(node.cls.id)
    return found


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_every_event_reaches_a_table(event: str) -> None:
    assert event in _matched(), f"no projection takes {event}: say in one of projections/*.py what becomes of it"


def test_each_subject_has_its_tables_and_its_code_side_by_side() -> None:
    applied = [apply.__module__.removeprefix("projections.") for apply in billing_set.APPLY]
    assert applied == list(generation.BILLING)
    assert all((_FOLDER / f"{name}.sql").exists() for name in generation.BILLING)
