"""What the documents say is there, is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _commands() -> list[tuple[str, ...]]:
    """Every `tallybook` command that the README names, as words."""
    found = set()
    for line in README.splitlines():
        match = re.match(r"(?:\$ )?(?:\.venv/bin/)?tallybook ([a-z| ]+)", line)
        if match is None:
            continue
        words = match[1].split("  ")[0].strip()
        *shared, last = [part.strip() for part in words.split("|")] if "|" in words else [words]
        heads = [*shared, last]
        group = heads[0].split()[:-1]
        found.update((*group, *head.split()) if index else tuple(head.split()) for index, head in enumerate(heads))
    return sorted(found)


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_of_the_readme_exists(words: tuple[str, ...]) -> None:
    from services.cli import main

    assert main([*words, "--help"]) == 0


def test_every_make_target_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"^ +make ([a-z]+)", path.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [name for name in linked if not (path.parent / name).exists()]
    roots = "billing|schemas|infra|projections|services|tests|docs|examples|sdk|benchmarks"
    quoted = re.findall(rf"`((?:{roots})/[A-Za-z0-9_./-]*)`", text)
    missing += [name for name in quoted if not (ROOT / name).exists()]
    assert not missing


def test_no_document_names_a_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    home = re.compile(r"/(?:root|home)/[a-z]")
    named = [
        name
        for name in tracked
        if name.endswith((".md", ".toml", ".yml", ".yaml")) and home.search((ROOT / name).read_text())
    ]
    assert not named
