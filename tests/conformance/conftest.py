"""Where the cases come from: the copy in this folder, or another with `pytest tests/conformance --vectors DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

COPY = Path(__file__).parent / "vectors"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, default=COPY, help="folder with the cases to run (JSON files)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    params = [
        pytest.param(file, case, id=case["id"], marks=[pytest.mark.policy] if case.get("policy") else [])
        for file, case in cases(metafunc.config.getoption("--vectors", COPY))
    ]
    metafunc.parametrize(("file", "case"), params)


def cases(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every case of every file, with the name of its file."""
    found: list[tuple[str, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found += [(path.stem, case) for case in (content if isinstance(content, list) else content["cases"])]
    assert found, f"no cases in {folder}"
    return found
