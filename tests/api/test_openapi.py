"""The API's description is checked in, so that a change to it is seen in review."""

from __future__ import annotations

from pathlib import Path

from services.api.app import create_app, openapi_text

CHECKED_IN = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_checked_in_description_is_that_of_the_code() -> None:
    assert CHECKED_IN.read_text() == openapi_text(), "write it anew: python -m services.api.app > docs/openapi.json"


def test_every_reference_of_the_description_resolves() -> None:
    described = create_app().openapi()

    def references(part: object) -> list[str]:
        match part:
            case dict():
                own = [str(part["$ref"])] if "$ref" in part else []
                return own + [each for value in part.values() for each in references(value)]
            case list():
                return [each for value in part for each in references(value)]
            case _:
                return []

    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(references(described)) <= known


ENDINGS = {f"/v1/entitlements/reservations/{{reservation_id}}/{each}" for each in ("commit", "release")}
ENDINGS |= {"/v1/usage/events/{source}/{id}", "/v1/usage/events/{source}/{id}/void"}
"""Free to repeat by what they name."""


def test_every_command_asks_for_an_idempotency_key() -> None:
    for path, operations in create_app().openapi()["paths"].items():
        for method, operation in operations.items():
            needed = [each["name"] for each in operation.get("parameters", ()) if each.get("required")]
            is_command = method in ("post", "put") and path != "/v1/usage" and path not in ENDINGS
            assert ("Idempotency-Key" in needed) == is_command, path
