"""The short way of the one question that is asked all the time: may this customer use the feature?

    the key was known a moment ago, and Redis knows the answer --> answered on the event loop, without a thread
    anything else: another key, an odd id, Redis away or behind --> the route in `services.api.entitlements`

So the route alone decides what is refused and how, and what is answered here is, byte for byte, what it would answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import Final

from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send

from infra import telemetry
from infra.errors import Transient
from services.api.callers import Callers
from services.api.entitlements import PATH, AccessBody, body_of
from services.api.parts import Entitlements
from services.entitlements import Answer

REQUESTS = telemetry.counter("api_requests_total", "Requests answered.", "method", "route", "status")
SECONDS = telemetry.histogram("api_request_seconds", "Time until the answer.", "method", "route")
ALWAYS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of every answer of the API."""

_PLAIN = re.compile(r"/v1/customers/([A-Za-z0-9_.:@-]{1,128})/entitlements/([A-Za-z0-9_.:@-]{1,128})", re.ASCII)
_BODY = TypeAdapter(AccessBody)
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in ALWAYS.items()]
_JSON = (b"content-type", b"application/json")
_ANSWERED = REQUESTS.labels("GET", PATH, 200)
_TOOK = SECONDS.labels("GET", PATH)


class QuickChecks:
    """Stands before the application `app`, on the event loop."""

    def __init__(self, app: ASGIApp, callers: Callers, entitlements: Entitlements) -> None:
        self._app = app
        self._callers = callers
        self._entitlements = entitlements
        self._looking: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        answer = await self._answer(scope)
        if answer is None:
            await self._app(scope, receive, send)
            return
        body = _BODY.dump_json(body_of(answer))
        headers = [(b"content-length", b"%d" % len(body)), _JSON, *_HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        _ANSWERED.inc()
        _TOOK.observe(time.perf_counter() - began)

    async def _answer(self, scope: Scope) -> Answer | None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
            return None
        asked = _PLAIN.fullmatch(scope["path"])
        presented = asked and _presented(scope)
        if not asked or not presented:
            return None
        caller = self._callers.known(presented)
        if caller is None:
            return None
        if self._callers.is_aging(presented):
            looking = asyncio.get_running_loop().run_in_executor(None, self._look_again, presented)
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        return await self._entitlements.at_once(caller.tenant, asked[1], asked[2])

    def _look_again(self, presented: str) -> None:
        with contextlib.suppress(Transient):  # whoever asks with it when its time is over is told
            self._callers.find(presented)


def _presented(scope: Scope) -> str | None:
    """The API key that the request brings, as the other routes read it."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, presented = value.decode("latin-1").partition(" ")
            return presented.strip() if scheme.lower() == "bearer" else None
    return None
