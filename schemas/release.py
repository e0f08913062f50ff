"""Write the Avro schemas that the dataclasses declare: `python -m schemas.release [--check | --publish]`.

A message whose shape changed gets its next version, if the change is compatible with every version before it. Such a
version is a draft, and is written anew with every change, until `--publish` lists it in `avro/released.txt`: from then
on its file never changes. Golden bytes of each version and `docs/events.md` are written with it. `--check` writes
nothing and fails if something would be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.binary import fingerprint, framed_example
from schemas.compatibility import Problem, problems
from schemas.declaration import schema_of
from schemas.reference import reference
from schemas.released import FOLDER, Released, digest, load, newest, published
from schemas.streams import Stream, declared

Declarations = Iterable[tuple[Stream, type]]


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a release is written: a checkout of the project."""

    root: Path = FOLDER.parents[1]

    @property
    def schemas(self) -> Path:
        return self.root / "schemas" / "avro"

    @property
    def golden(self) -> Path:
        return self.root / "tests" / "golden" / "events"

    @property
    def released(self) -> Path:
        return self.schemas / "released.txt"

    @property
    def reference(self) -> Path:
        return self.root / "docs" / "events.md"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a release would write and delete, and why it may not."""

    writes: dict[Path, str]
    deletes: tuple[Path, ...]
    problems: tuple[Problem, ...]


def plan(tree: Tree, declarations: Declarations) -> Plan:
    """What has to be written for files and dataclasses to agree.

    Raises:
        TypeError: a dataclass cannot be a message; the error names class and field.
        ValueError: the files are not in order, or a released one was changed.
    """
    before = published(tree.schemas)
    latest = newest(before)
    after = list(before)
    for stream, cls in declarations:
        schema = schema_of(cls, stream.namespace, stream.meta)
        last = latest.get(f"{stream.namespace}.{cls.__name__}")
        if last is None or shape(last.schema) != shape(schema):
            after.append(Released(stream.name, cls.__name__, last.version + 1 if last else 1, schema))
    after.sort(key=lambda each: (each.stream, each.record, each.version))
    drafts = [each for each in after if each not in before]
    writes = {tree.schemas / each.stream / each.file_name: _text(each.schema) for each in drafts}
    for each in after:
        golden = tree.golden / f"{each.record}.{each.version}.hex"
        if each in drafts or not golden.exists():
            writes[golden] = _lines(framed_example(each.schema).hex())
    writes[tree.reference] = reference(tuple(newest(tuple(after)).values()))
    writes = {path: text for path, text in writes.items() if not path.exists() or path.read_text("utf-8") != text}
    return Plan(writes, _orphans(tree, after), tuple(problems(after, fingerprint)))


def publish(tree: Tree) -> None:
    """List every version as released: none of these files may change any more."""
    listed = [f"{each.stream}/{each.file_name} {digest(tree.schemas, each)}\n" for each in load(tree.schemas)]
    tree.released.write_text("".join(listed), encoding="utf-8")


def shape(schema: Any) -> Any:
    """`schema` without its docs: what makes a version."""
    if isinstance(schema, Mapping):
        return {key: shape(value) for key, value in schema.items() if key != "doc"}
    if isinstance(schema, list):
        return [shape(each) for each in schema]
    return schema


def carry_out(what: Plan) -> None:
    """Write and delete what `what` says."""
    for path in what.deletes:
        path.unlink()
    for path, text in what.writes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done or nothing to do; 1: refused, or `--check` found a difference."""
    parser = argparse.ArgumentParser(prog="python -m schemas.release", description=__doc__)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="write nothing; fail if something would be written")
    group.add_argument("--publish", action="store_true", help="release the drafts: they never change again")
    options = parser.parse_args(arguments)
    tree = Tree()
    what = plan(tree, declared())
    for problem in what.problems:
        print(problem, file=sys.stderr)
    if what.problems:
        return 1
    for path in what.deletes:
        print(f"delete {path.relative_to(tree.root)}")
    for path in what.writes:
        print(f"write  {path.relative_to(tree.root)}")
    if options.check:
        return 1 if what.writes or what.deletes else 0
    carry_out(what)
    if options.publish:
        publish(tree)
    return 0


def _orphans(tree: Tree, after: Sequence[Released]) -> tuple[Path, ...]:
    """Files of drafts that nothing declares any more."""
    schemas = {tree.schemas / each.stream / each.file_name for each in after}
    goldens = {tree.golden / f"{each.record}.{each.version}.hex" for each in after}
    found = [*tree.schemas.glob("*/*.avsc"), *tree.golden.glob("*.hex")]
    return tuple(sorted(path for path in found if path not in schemas | goldens))


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _lines(digits: str) -> str:
    return "\n".join(digits[at : at + 96] for at in range(0, len(digits), 96)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
