"""What a request must be before anybody looks at it: the caller known, JSON exact, small, flat and unambiguous.

The standard parser takes NaN, doubled keys, a byte-order mark and lone surrogates, and then fails on its own
error text; `EdgeRoute` reads bodies with `load` instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from services.api.problems import Problem
from services.exact_values import NotFinite
from services.shapes import Fault, hint

SIZE_MAX_BYTES = 2 * 1024 * 1024
DEPTH_MAX = 32
INTEGER_DIGITS_MAX = 64


class Inexact(float):
    """A JSON number with a point or an exponent: every field refuses it by name."""


class EdgeRoute(APIRoute):
    """A route that refuses unknown query parameters and bodies that are not plain, small JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        known = _query_names(self.dependant)
        takes_body = self.body_field is not None

        async def handle(request: Request) -> Response:
            authenticate = request.app.state.authenticate
            await authenticate(request)
            for name in request.query_params:
                if name not in known:
                    said = hint(name, known)
                    raise Problem(422, "unknown_parameter", said, errors=[Fault("unknown_parameter", said, name)])
            if not takes_body:
                return await inner(request)
            return await inner(_Checked(request.scope, await _content(request)))

        return handle


def _query_names(dependant: Dependant) -> list[str]:
    own = [each.alias for each in dependant.query_params]
    return own + [name for inner in dependant.dependencies for name in _query_names(inner)]


class _Checked(Request):
    """A request whose body is read and parsed already."""

    def __init__(self, scope: Any, content: bytes) -> None:
        super().__init__(scope)
        self._body = content
        self._json = load(content)


async def _content(request: Request) -> bytes:
    kind = media_type(request)
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "send application/json")
    return await read_body(request, SIZE_MAX_BYTES)


def media_type(request: Request) -> str:
    """What the request says that its body is, without parameters; empty if it does not."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, size_max_bytes: int) -> bytes:
    """The body as it came, read no further than is allowed.

    Raises:
        Problem: 415 if it is compressed, 413 if it is larger.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "send the body uncompressed")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > size_max_bytes:
        raise _too_large(size_max_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > size_max_bytes:
            raise _too_large(size_max_bytes)
    return b"".join(chunks)


def load(content: bytes) -> Any:
    """What `content` says in JSON. Numbers that no field takes stay recognisable: `Inexact`, `NotFinite`.

    Raises:
        Problem: 400 malformed_json, duplicate_key or too_deep.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Problem(400, "malformed_json", f"byte {e.start} is not UTF-8") from e
    if text.startswith("\ufeff"):
        raise Problem(400, "malformed_json", "leave the byte-order mark away")
    _check_depth(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=lambda _: NotFinite(0),
            parse_float=_number,
            parse_int=_integer,
        )
    except json.JSONDecodeError as e:
        said = f"line {e.lineno} column {e.colno}: {e.msg}" if text.strip() else "the body is empty"
        raise Problem(400, "malformed_json", said) from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if any(not name.isascii() and name.encode("utf-8", "replace").decode() != name for name, _ in pairs):
        raise Problem(422, "invalid_text", "a lone surrogate in the name of a field is no text")
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = ascii(next(name for name in names if names.count(name) > 1))[:60]
        raise Problem(400, "duplicate_key", f"{twice} stands there twice")
    return made


def _number(text: str) -> float:
    exponent = text.lower().partition("e")[2].lstrip("+-0")
    if len(exponent) > 3 or Decimal(text).adjusted() > 300:
        return NotFinite(0)
    return Inexact(0)


def _integer(text: str) -> Any:
    # Longer ones fit no field, and the time to convert them grows with the square of their length.
    return int(text) if len(text) <= INTEGER_DIGITS_MAX else NotFinite(0)


def _check_depth(text: str) -> None:
    depth, quoted, escaped = 0, False, False
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return
    for character in text:
        if quoted:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise Problem(400, "too_deep", f"nested deeper than {DEPTH_MAX} levels")
        elif character in "]}":
            depth -= 1


def _too_large(size_max_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"allowed are {size_max_bytes:,} bytes")
