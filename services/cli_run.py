"""`tallybook run NAME`: one process of the system in the foreground, as the supervisor or an orchestrator starts it."""

from __future__ import annotations

import importlib
import os
from typing import Annotated

import typer

from infra import failpoints, telemetry
from infra.errors import Misconfigured, Transient
from infra.schema_registry import SchemaRegistry
from infra.settings import Settings
from schemas import codec

MODULES = {
    "prepare": "services.prepare",
    "sandbox": "infra.sandbox_provider",
    "command-handler": "services.command_handler",
    "usage-aggregator": "services.usage_aggregator",
    "backfill": "services.usage_backfilling",
    "recount": "services.usage_recount",
    "projector": "services.projector",
    "entitlements": "services.entitlement_publisher",
    "meters": "services.meter_publisher",
    "scheduler": "services.scheduler",
    "invoicing": "services.invoicing",
    "outbox": "services.outbox_writer",
    "payments": "services.payment_worker",
    "api": "services.api",
}
"""Process -> the module whose `main(settings) -> int` it is."""

_UNREACHABLE, _BUG, _MISCONFIGURED = 69, 70, 78


def register(app: typer.Typer) -> None:
    """Add `run`."""

    @app.command()
    def run(name: Annotated[str, typer.Argument(help=f"One of: {', '.join(MODULES)}.")]) -> None:
        """Run one process in the foreground; it logs JSON lines to standard output and stops on SIGTERM."""
        if name not in MODULES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MODULES)}", param_hint="NAME")
        raise typer.Exit(process(name, Settings.from_env(os.environ)))


def process(name: str, settings: Settings) -> int:
    """Run process `name` to its end; an error that leaves it becomes its last log line and its exit code."""
    telemetry.configure(settings.log_level, service=name)
    log = telemetry.logger("services.run")
    try:
        failpoints.configure(settings.failpoint, settings.data)
        if settings.schema_registry:
            codec.use_registry(SchemaRegistry(settings.schema_registry))
        if settings.metrics_port:
            telemetry.serve_metrics(settings.metrics_host, settings.metrics_port)
        log.info("process started", pid=os.getpid())
        code: int = importlib.import_module(MODULES[name]).main(settings)
    except KeyboardInterrupt:
        code = 130
    except Transient as error:
        log.error("process gave up", reason=str(error))
        code = _UNREACHABLE
    except Misconfigured as error:
        log.error("process misconfigured", reason=str(error))
        code = _MISCONFIGURED
    except Exception:
        log.exception("process crashed")
        code = _BUG
    log.info("process ended", exit_code=code)
    return code
