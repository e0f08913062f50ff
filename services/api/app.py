"""The HTTP application: routes, errors, keys and metrics around the parts that it is given."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool

from services.api import (
    clock,
    customers,
    entitlements,
    invoices,
    meter_backfills,
    money,
    operations,
    price_books,
    reservations,
    spread,
    subscriptions,
    usage,
    usage_corrections,
    usage_duplicates,
    usage_positions,
    usage_quantities,
    usage_reads,
)
from services.api.callers import Callers
from services.api.parts import Parts, trace_id
from services.api.problems import MEDIA_TYPE, Problem, ProblemBody, install
from services.api.quick_checks import ALWAYS, REQUESTS, SECONDS, QuickChecks

VERSION = "1"
ROUTERS = (
    customers,
    subscriptions,
    price_books,
    invoices,
    money,
    clock,
    spread,
    meter_backfills,
    usage,
    usage_corrections,
    usage_duplicates,
    usage_positions,
    usage_quantities,
    usage_reads,
    reservations,
    entitlements,
    operations,
)

_DESCRIPTION = """Usage and subscription billing.

Commands need the header `Idempotency-Key`; sending one again with the same key is free, and answers with
`Idempotency-Replayed: true`. They answer with `Tallybook-Position`: send it with a read and the read knows the change.
Amounts are whole minor units, decimals are text. Errors are RFC 9457 problems with a stable `code`."""


def create_app(given: Parts | None = None) -> FastAPI:
    """The application on `given` parts. Without parts it can only describe itself."""
    app = FastAPI(
        title="Tallybook",
        version=VERSION,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        responses={"default": {"description": "A problem (RFC 9457).", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}},
    )
    app.state.parts = given
    app.state.callers = given and Callers(given.quick or given.pool, given.clock)
    app.state.authenticate = _authenticate
    for each in ROUTERS:
        app.include_router(each.router)
    install(app)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]  # FastAPI's own way to add to it
    app.middleware("http")(_observed)
    if given is not None:
        app.add_middleware(QuickChecks, callers=app.state.callers, entitlements=given.entitlements)
    return app


async def _authenticate(request: Request) -> None:
    """Note whom the request speaks for.

    Raises:
        Problem: 401: it brings no key, or none that is known.
    """
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    found = None
    if scheme.lower() == "bearer" and presented:
        callers: Callers = request.app.state.callers
        key = presented.strip()
        found = callers.known(key) or await run_in_threadpool(callers.find, key)
    if found is None:
        said = "send an API key: `Authorization: Bearer tb_...`"
        raise Problem(401, "unauthorized", said, headers={"WWW-Authenticate": "Bearer"})
    request.state.caller = found


async def _observed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.trace_id = trace_id(request.headers.get("traceparent", ""))
    began = time.perf_counter()
    response = await call_next(request)
    route = getattr(request.scope.get("route"), "path", "none")
    REQUESTS.labels(request.method, route, response.status_code).inc()
    SECONDS.labels(request.method, route).observe(time.perf_counter() - began)
    response.headers.update(ALWAYS)
    return response


def _description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that a route reads by itself."""
    if app.openapi_schema is None:
        made = FastAPI.openapi(app)
        _, extra = models_json_schema(
            [
                (each, "validation")
                for each in (ProblemBody, usage.UsageBody, usage.UsageBatchBody, usage.CloudEventBody)
            ],
            ref_template="#/components/schemas/{model}",
        )
        made["components"]["schemas"] |= extra["$defs"]
        for operation in (each for path in made["paths"].values() for each in path.values()):
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "Idempotency-Key":  # we say ourselves what is wrong when it is missing
                    parameter |= {"required": True, "schema": {"type": "string", "minLength": 1}}
        app.openapi_schema = made
    return app.openapi_schema


def openapi_text() -> str:
    """The OpenAPI document as `docs/openapi.json` holds it."""
    return json.dumps(create_app().openapi(), indent=1, sort_keys=True) + "\n"


def _operation_id(route: APIRoute) -> str:
    return route.name


_PROBLEM = {"$ref": "#/components/schemas/ProblemBody"}


if __name__ == "__main__":
    print(openapi_text(), end="")
