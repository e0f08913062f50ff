"""Runs a scenario file: compares what comes of it with what the file says, or writes it there."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.scenario import golden, kernel
from services.scenario.golden import Outcome
from services.scenario.kernel import Played
from services.scenario.text import RULE, BadScenario, Scenario, load
from services.shapes import Fault

PASSED, UPDATED, DIFFERS = "passed", "updated", "differs"

System = Callable[[Scenario, Played], Outcome]
"""Plays the same steps elsewhere, and says what came of them there."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file."""

    path: Path
    title: str
    status: str
    """`passed`, `updated` or `differs`."""
    diff: str = ""
    """Unified, from what the file says to what came of it; empty unless it differs."""


def run(path: Path, *, update: bool = False, system: System | None = None) -> Result:
    """Play the scenario of a file on the kernel, or with a `system` there as well, which is then compared.

    Raises:
        BadScenario: the file is no scenario, or its catalogue cannot bill; names line and field.
        OSError: it cannot be read or written.
    """
    scenario = load(path)
    try:
        played = kernel.play(scenario)
    except kernel.Stuck as e:
        raise BadScenario([(path, e.line, Fault(e.refused.code, e.refused.detail, e.refused.field))]) from e
    made = golden.text(played.outcome if system is None else system(scenario, played))
    if made == scenario.golden:
        return Result(path, scenario.title, PASSED)
    if update:
        _write(path, f"{scenario.script}{RULE}\n{made}")
        return Result(path, scenario.title, UPDATED)
    return Result(path, scenario.title, DIFFERS, _diff(path, scenario.golden, made))


def _diff(path: Path, expected: str, made: str) -> str:
    lines = difflib.unified_diff(
        expected.splitlines(keepends=True), made.splitlines(keepends=True), f"{path} (expected)", f"{path} (made)"
    )
    return "".join(lines)


def _write(path: Path, content: str) -> None:
    """Replace the file as a whole, or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content, encoding="utf-8")
    os.replace(beside, path)
