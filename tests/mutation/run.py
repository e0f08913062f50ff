"""Run mutmut over the kernel in a folder of its own, and list the mutants that survive.

    python -m tests.mutation.run [--processes 2] [--into FOLDER] [MUTANT ...]

Takes about half an hour on two cores. The survivors are explained in `docs/rules/surviving_mutants.md`; exit code 1 if
there are others. It is no test of its own: `make check` stays under a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = ROOT / "docs" / "rules" / "surviving_mutants.md"
MODULES = (
    "money", "price", "price_check", "rating", "rated", "partial", "tiers", "quantity", "percentage", "proration",
    "period",
)  # fmt: skip
TESTS = (
    "money", "period", "rating", "rating_laws", "rated", "price_check", "proration", "discount_and_tax",
    "aggregation", "credit", "held",
)  # fmt: skip
CONFIG = """
[tool.pytest.ini_options]
addopts = "-x -q -p no:cacheprovider"
markers = ["policy: a peer's house rule"]
[tool.mutmut]
source_paths = ["billing"]
only_mutate = [{modules}]
also_copy = ["conftest.py", "tests"]
pytest_add_cli_args_test_selection = ["tests"]
"""
CONFTEST = '''
"""Few examples per law, always the same: each mutant is met by the same tests."""

from hypothesis import settings

settings.register_profile("mutation", max_examples=12, deadline=None, derandomize=True, database=None)
settings.load_profile("mutation")


def pytest_collection_modifyitems(items):
    for item in items:
        item._nodeid = item.nodeid  # mutmut 3.7 reads it; pytest 9 has it no more
'''


def assemble(into: Path) -> None:
    """The kernel and its tests, without whatever needs a server."""
    shutil.copytree(ROOT / "billing", into / "billing", ignore=shutil.ignore_patterns("__pycache__"))
    (into / "tests" / "billing").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "__init__.py", into / "tests")
    # The variations run the same code as the cases that they vary: they would only take longer.
    ignored = shutil.ignore_patterns("test_variations.py", "__pycache__")
    shutil.copytree(ROOT / "tests" / "conformance", into / "tests" / "conformance", ignore=ignored)
    for name in ("__init__.py", "charges.py", "refusals.txt", *(f"test_{each}.py" for each in TESTS)):
        shutil.copy(ROOT / "tests" / "billing" / name, into / "tests" / "billing")
    modules = ", ".join(f'"billing/{each}.py"' for each in MODULES)
    (into / "pyproject.toml").write_text(CONFIG.format(modules=modules), encoding="utf-8")
    (into / "conftest.py").write_text(CONFTEST, encoding="utf-8")


def survivors(folder: Path) -> list[str]:
    """Each surviving mutant as `function: the changed line`."""
    mutmut = [sys.executable, "-m", "mutmut"]
    listed = subprocess.run([*mutmut, "results"], cwd=folder, capture_output=True, text=True, check=True).stdout
    found = []
    for name in re.findall(r"^\s*(\S+): (?:survived|suspicious|no tests)", listed, re.MULTILINE):
        shown = subprocess.run([*mutmut, "show", name], cwd=folder, capture_output=True, text=True, check=True).stdout
        lines = [line[1:].strip() for line in shown.splitlines() if re.match(r"\+(?!\+\+)", line)]
        function = name.partition("__mutmut_")[0].replace(".x_", ".").removeprefix("billing.")
        found.append(f"{function}: {' '.join(lines)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="mutants at a time")
    parser.add_argument("--into", type=Path, help="folder to use and keep; default: a new temporary one")
    parser.add_argument("mutants", nargs="*", help="only these, by mutmut's names; default: all")
    options = parser.parse_args(arguments)
    folder = options.into or Path(tempfile.mkdtemp(prefix="mutation-"))
    if not (folder / "billing").exists():
        assemble(folder)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.processes), *options.mutants]
    subprocess.run(command, cwd=folder, check=True)
    explained = EXPLAINED.read_text(encoding="utf-8").replace(r"\|", "|") if EXPLAINED.exists() else ""
    unexplained = [each for each in survivors(folder) if f"`{each}`" not in explained]
    for each in unexplained:
        print(each)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
