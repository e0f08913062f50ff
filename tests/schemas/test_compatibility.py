"""No change of a schema that would make a recorded message unreadable gets through."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from schemas.binary import fingerprint
from schemas.compatibility import problems
from schemas.released import Released, bundled

MONEY = {
    "type": "record",
    "name": "Money",
    "doc": "An amount.",
    "fields": [
        {"name": "minor", "type": "long", "doc": "Minor units."},
        {"name": "currency", "type": "string", "doc": "ISO 4217 code."},
    ],
}
PAID = {
    "type": "record",
    "name": "Paid",
    "namespace": "tallybook.events",
    "doc": "An invoice was paid.",
    "fields": [
        {"name": "id", "type": "string", "doc": "The invoice."},
        {"name": "total", "type": MONEY, "doc": "What was paid."},
        {
            "name": "rate",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 12},
            "doc": "Rate of exchange.",
        },
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "doc": "When (UTC)."},
        {
            "name": "by",
            "type": {"type": "enum", "name": "By", "symbols": ["card", "cash"], "default": "card", "doc": "How."},
            "doc": "How.",
        },
        {"name": "parts", "type": {"type": "array", "items": "Money"}, "default": [], "doc": "Its parts."},
        {"name": "note", "type": ["null", "string"], "default": None, "doc": "A note; null for none."},
    ],
}
Schema = Any
Change = Callable[[Schema], object]


def field(schema: Schema, name: str) -> Schema:
    return next(each for each in schema["fields"] if each["name"] == name)


def changed(change: Change) -> list[Released]:
    schema = deepcopy(PAID)
    change(schema)
    return [Released("events", "Paid", 1, PAID), Released("events", "Paid", 2, schema)]


def added(**extra: Any) -> Change:
    return lambda schema: schema["fields"].append({"name": "new", "type": "string", "doc": "New.", **extra})


def removed(name: str) -> Change:
    return lambda schema: schema["fields"].remove(field(schema, name))


def in_type(name: str, /, **change: Any) -> Change:
    return lambda schema: field(schema, name)["type"].update(change)


def in_field(name: str, /, **change: Any) -> Change:
    return lambda schema: field(schema, name).update(change)


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (added(), "added_without_default", "new"),
        (removed("id"), "removed_without_default", "id"),
        (in_field("id", name="invoice"), "renamed_without_alias", "id"),
        (in_field("id", type="long"), "type_changed", "id"),
        (in_field("id", type=["null", "string"]), "type_changed", "id"),
        (in_field("note", type=["null", "string", "long"]), "type_changed", "note"),
        (in_field("parts", type={"type": "array", "items": "string"}), "type_changed", "parts[]"),
        (in_field("parts", type={"type": "map", "values": "Money"}), "type_changed", "parts"),
        (in_type("rate", scale=6), "decimal_changed", "rate"),
        (in_type("rate", precision=30), "decimal_changed", "rate"),
        (in_type("at", logicalType="timestamp-millis"), "type_changed", "at"),
        (in_field("at", type="long"), "type_changed", "at"),
        (in_type("by", symbols=["card"]), "symbol_removed", "by"),
        (in_type("by", symbols=["card", "cash", "wire"], default="nothing"), "enum_without_default", "by"),
        (lambda s: field(s, "by")["type"].pop("default"), "enum_without_default", "by"),
        (lambda s: field(s, "total")["type"]["fields"][0].update(type="string"), "type_changed", "total.minor"),
        (lambda s: field(s, "total")["type"]["fields"].pop(), "removed_without_default", "total.currency"),
        (lambda s: s.pop("doc"), "doc_missing", "Paid.2"),
        (in_field("id", doc="The invoice"), "doc_missing", "id"),
        (added(default=5), "default_mismatch", "new"),
        (added(type=["string", "null"], default=None), "default_mismatch", "new"),
        (added(type="long", default=True), "default_mismatch", "new"),
        (added(name="id", default=""), "duplicate_field", "Paid.2"),
        (added(type="double", default=0.5), "float", "new"),
        (lambda s: None, "fingerprint_shared", "Paid.2"),
        (in_field("id", doc="The one invoice."), "fingerprint_shared", "Paid.2"),
    ],
)
def test_a_change_that_breaks_a_reader_is_refused(change: Change, code: str, where: str) -> None:
    found = problems(changed(change), fingerprint)
    assert code in [each.code for each in found], found
    assert where in next(each.where for each in found if each.code == code)


@pytest.mark.parametrize(
    "change",
    [
        added(default=""),
        added(type=["null", "string"], default=None),
        removed("note"),
        in_type("by", symbols=["card", "cash", "wire"]),
        lambda schema: schema["fields"][0].update(name="invoice", aliases=["id"]),
    ],
)
def test_a_change_that_every_reader_survives_is_allowed(change: Change) -> None:
    assert problems(changed(change), fingerprint) == []


def test_each_version_is_held_against_all_before_it_not_only_the_last() -> None:
    middle, last = deepcopy(PAID), deepcopy(PAID)
    removed("note")(middle)
    in_field("note", type=["null", "long"])(last)
    versions = [Released("events", "Paid", number, each) for number, each in enumerate((PAID, middle, last), 1)]
    assert [(each.code, each.where) for each in problems(versions, fingerprint)] == [
        ("type_changed", "Paid.3 against .1: note")
    ]


def test_one_name_may_not_stand_for_two_shapes_in_two_streams() -> None:
    other = {
        "type": "record",
        "name": "Refunded",
        "namespace": "tallybook.commands",
        "doc": "A refund.",
        "fields": [{"name": "total", "type": deepcopy(MONEY), "doc": "What was refunded."}],
    }
    other["fields"][0]["type"]["fields"].pop()  # type: ignore[index]
    found = problems([Released("events", "Paid", 1, PAID), Released("commands", "Refunded", 1, other)], fingerprint)
    assert [(each.code, each.where) for each in found] == [("two_meanings", "Refunded: Money")]


def test_the_released_schemas_are_compatible() -> None:
    assert problems(bundled(), fingerprint) == []


def mutants() -> list[Any]:
    """For each released record: the first change of each kind that its fields allow."""
    cases = []
    for released in bundled():
        for kind in ("rename", "remove", "retype", "rescale"):
            schema = deepcopy(released.schema)
            target = next((each for each in schema["fields"][1:] if mutate(each, kind)), None)
            if target is not None:
                if kind == "remove":
                    schema["fields"].remove(target)
                cases.append(pytest.param(released, schema, id=f"{kind}-{released.record}.{target['name']}"))
    return cases


def mutate(entry: Schema, kind: str) -> bool:
    """Change `entry` in place; False if it does not lend itself to `kind`."""
    match kind, entry:
        case "rename", {"name": name} if "default" not in entry:
            entry["name"] = f"{name}_renamed"
        case "remove", _ if "default" not in entry:
            pass
        case "retype", {"type": "string" | "long" as before}:
            entry["type"] = {"string": "bytes", "long": "int"}[before]
        case "rescale", {"type": {"logicalType": "decimal"} as decimal}:
            entry["type"] = {**decimal, "scale": 6}
        case _:
            return False
    return True


@pytest.mark.parametrize(("released", "schema"), mutants())
def test_no_mutant_of_a_released_schema_gets_through(released: Released, schema: Schema) -> None:
    mutant = Released(released.stream, released.record, released.version + 1, schema)
    assert {each.code for each in problems([released, mutant], fingerprint)} & {
        "renamed_without_alias",
        "removed_without_default",
        "type_changed",
        "decimal_changed",
    }
