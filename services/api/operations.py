"""For those who run the API: is it alive, can it serve, and how does it do. No key is needed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from infra import postgres, telemetry
from services.api.parts import parts
from services.read_models import entered

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz")
def ready(request: Request) -> dict[str, str]:
    """Postgres answers and the projections exist; 503 otherwise."""
    with postgres.transaction(parts(request).pool) as tx:
        entered(tx)
    return {"status": "ready"}


@router.get("/metrics")
def metrics() -> Response:
    """All metrics of this process in the Prometheus text format."""
    return Response(telemetry.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")
