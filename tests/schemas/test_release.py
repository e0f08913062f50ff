"""Dataclasses and released files agree, and a release never touches what is out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.binary import fingerprint, framed_example, parsed, read
from schemas.release import Tree, carry_out, plan, publish
from schemas.released import load
from schemas.streams import Stream, declared

STREAM = Stream("events", "billing.events", ())


@dataclass(frozen=True)
class PaidFirst:
    """An invoice was paid."""

    id: str
    """The invoice."""


@dataclass(frozen=True)
class PaidSecond:
    """An invoice was paid in full."""

    id: str
    """The invoice."""
    parts: tuple[str, ...] = ("all",)
    """Its parts."""
    token: bytes = b"\xff"
    """A token."""


@dataclass(frozen=True)
class PaidThird:
    """An invoice was paid."""

    invoice: str
    """The invoice."""


GENERATIONS: dict[int, type] = {1: PaidFirst, 2: PaidSecond, 3: PaidThird}


def generation(number: int) -> type:
    """The class `Paid` as it was declared in release `number`."""
    cls = GENERATIONS[number]
    cls.__name__ = "Paid"
    return cls


def release(tree: Tree, number: int, *, draft: bool = False) -> tuple[str, ...]:
    what = plan(tree, [(STREAM, generation(number))])
    if not what.problems:
        carry_out(what)
        if not draft:
            publish(tree)
    return tuple(each.code for each in what.problems)


def test_files_and_dataclasses_agree() -> None:
    what = plan(Tree(), declared())
    assert what.problems == ()
    assert [*what.writes, *what.deletes] == [], "run python -m schemas.release"


def test_a_changed_message_gets_its_next_version_and_the_first_stays(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    first = (tree.schemas / "events" / "Paid.1.avsc").read_bytes()
    assert release(tree, 2) == ()
    assert (tree.schemas / "events" / "Paid.1.avsc").read_bytes() == first
    assert [each.version for each in load(tree.schemas)] == [1, 2]
    assert sorted(path.name for path in tree.golden.iterdir()) == ["Paid.1.hex", "Paid.2.hex"]
    assert plan(tree, [(STREAM, generation(2))]).writes == {}


def test_an_old_message_is_read_with_the_new_fields_at_their_defaults(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    release(tree, 2)
    old, new = load(tree.schemas)
    raw: dict[str, Any] = read(parsed(old.schema), framed_example(old.schema), 10, parsed(new.schema))
    from schemas.mapping import converter

    decode = converter(generation(2), STREAM.namespace).decode
    assert decode is not None
    paid = decode(raw)
    assert (paid.id, paid.parts, paid.token) == ("id é", ("all",), b"\xff")


def test_an_incompatible_change_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    before = sorted(tmp_path.rglob("*"))
    assert release(tree, 3) == ("renamed_without_alias", "added_without_default")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_draft_is_made_anew_until_it_is_released(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    release(tree, 2, draft=True)
    assert [each.version for each in load(tree.schemas)] == [1, 2]
    release(tree, 1, draft=True)
    assert [each.version for each in load(tree.schemas)] == [1]
    assert sorted(path.name for path in tree.golden.iterdir()) == ["Paid.1.hex"]


def test_a_first_draft_may_become_anything(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1, draft=True)
    assert release(tree, 3) == ()
    schema = json.loads((tree.schemas / "events" / "Paid.1.avsc").read_text())
    assert [each["name"] for each in schema["fields"]] == ["invoice"]
    golden = bytes.fromhex((tree.golden / "Paid.1.hex").read_text())
    assert golden[2:10] == fingerprint(schema)


def test_a_released_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    path = tree.schemas / "events" / "Paid.1.avsc"
    path.write_text(path.read_text().replace("was paid", "was not paid"))
    with pytest.raises(ValueError, match=r"events/Paid.1.avsc is released, and was changed"):
        plan(tree, [(STREAM, generation(1))])


def test_a_missing_version_is_noticed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    release(tree, 1)
    release(tree, 2)
    (tree.schemas / "events" / "Paid.1.avsc").unlink()
    with pytest.raises(ValueError, match="a version before it is missing"):
        load(tree.schemas)


def test_the_reference_names_every_message() -> None:
    page = Tree().reference.read_text()
    for _, cls in declared():
        assert f"### {cls.__name__} (version " in page
