"""Where the cases come from: the copies in this folder, or another with `pytest tests/conformance --vectors DIR`.

`vectors/` is what was handed over, `more/` are further figures that the peers' public tests state, in the same form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

COPIES = (Path(__file__).parent / "vectors", Path(__file__).parent / "more")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, help="folder with the cases to run (JSON files) instead of the copies")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "file" not in metafunc.fixturenames:
        return
    params = [
        pytest.param(file, case, id=case["id"], marks=[pytest.mark.policy] if case.get("policy") else [])
        for file, case in chosen(metafunc.config)
    ]
    metafunc.parametrize(("file", "case"), params)


def chosen(config: pytest.Config) -> list[tuple[str, dict[str, Any]]]:
    """Every case of this run, with the name of its file."""
    other: Path | None = config.getoption("--vectors", None)
    return [each for folder in ([other] if other else COPIES) for each in cases(folder)]


def cases(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every case of every file, with the name of its file."""
    found: list[tuple[str, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found += [(path.stem, case) for case in (content if isinstance(content, list) else content["cases"])]
    assert found, f"no cases in {folder}"
    return found
