"""Waiting ends with the condition, or says what it was."""

from __future__ import annotations

import pytest

from tests.waiting import eventually


def test_the_first_true_value_is_returned() -> None:
    values = iter([0, "", 7])
    assert eventually(lambda: next(values)) == 7


def test_a_condition_that_stays_false_is_reported_with_its_last_value() -> None:
    with pytest.raises(AssertionError, match="at the end it was 0"):
        eventually(lambda: 0, within_s=0.1)


def test_a_condition_that_raises_is_reported_with_its_error() -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        eventually(lambda: {}["x"], within_s=0.1)
