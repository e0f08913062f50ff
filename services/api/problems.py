"""Every refusal as an RFC 9457 problem: `application/problem+json`, never a stack trace, never the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from billing.errors import Rejected
from infra import telemetry
from infra.errors import Conflict, Poison, Transient
from projections.generation import NoGeneration
from services.shapes import Fault, faults

log = telemetry.logger("services.api")

MEDIA_TYPE = "application/problem+json"
CONFLICTS = frozenset(
    (
        "awaiting_invoice",
        "clock_backwards",
        "customer_exists",
        "effective_before_newest",
        "grant_exists",
        "invalid_state",
        "limit_exceeded",
        "manual_payment",
        "no_test_clock",
        "not_yet",
        "other_period",
        "subscription_exists",
        "tenant_exists",
        "tenant_settings_differ",
    )
)
"""Codes of rejections that the present state causes: 409. The others blame the request: 422."""


class FaultBody(BaseModel):
    """What is wrong with one field."""

    code: str
    """Stable, for programs."""
    detail: str
    """For people."""
    field: str
    """Path of the field, such as `plans[0].charges[2].model.tiers[1].up_to`; empty for the whole."""


class ProblemBody(BaseModel):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    """Stable, snake_case, for programs."""
    detail: str
    """For people: what is wrong and what is allowed."""
    errors: list[FaultBody]
    trace_id: str
    """Names this request in our logs."""


class Problem(HTTPException):
    """An answer that refuses."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.errors = list(errors)


def of_rejection(rejected: Rejected, *, missing: str = "") -> Problem:
    """A rule's no as a problem. `missing`: the code that means that the addressed resource is not there."""
    if rejected.code == missing or rejected.code == "unknown_tenant":
        return not_found(rejected.detail)
    status = 409 if rejected.code in CONFLICTS else 422
    blamed = [Fault(rejected.code, rejected.detail, rejected.field)] if rejected.field else []
    return Problem(status, rejected.code, rejected.detail, errors=blamed)


def not_found(detail: str) -> Problem:
    """The addressed resource is not there, or not the caller's: nobody is told which."""
    return Problem(404, "not_found", detail)


def response(request: Request, problem: Problem) -> Response:
    """`problem` on the wire."""
    status = problem.status_code
    trace = getattr(request.state, "trace_id", "")
    body = ProblemBody(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        code=problem.code,
        detail=problem.detail,
        errors=[FaultBody(code=each.code, detail=each.detail, field=each.field) for each in problem.errors],
        trace_id=trace,
    )
    return Response(body.model_dump_json(), status, problem.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    def refused(request: Request, error: Exception) -> Response:
        return response(request, _problem(error))

    for kind in (HTTPException, RequestValidationError, Rejected, Transient, NoGeneration, Conflict, Poison):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(Exception, _bug)


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException(status_code=404):
            return not_found("there is nothing at this address")
        case HTTPException(status_code=405):
            return Problem(405, "method_not_allowed", "the address does not take this method", headers=error.headers)
        case HTTPException():
            return Problem(error.status_code, "refused", str(error.detail), headers=error.headers)
        case Rejected():
            return of_rejection(error)
        case Transient() | NoGeneration():
            log.warning("request not served", reason=str(error))
            return Problem(503, "unavailable", "try again with the same idempotency key", headers={"Retry-After": "1"})
        case Conflict():
            return Problem(409, "conflict", "somebody else was first; read again and decide again")
        case _:
            return Problem(400, "unacceptable", str(error))


def _invalid(error: RequestValidationError) -> Problem:
    found = []
    for each in error.errors():
        where, *rest = each["loc"]
        given = error.body if where == "body" else None
        found += faults([{**each, "loc": tuple(rest)}], given)
    status = 400 if any(each.code == "card_data_refused" for each in found) else 422
    first = found[0]
    return Problem(status, first.code, f"{first.field}: {first.detail}" if first.field else first.detail, errors=found)


def _bug(request: Request, error: Exception) -> Response:
    log.error("request crashed", path=request.scope.get("path"), exc_info=error)
    return response(request, Problem(500, "internal_error", "the fault is on our side; it has been logged"))
