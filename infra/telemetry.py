"""Logs as JSON lines on standard output, and the metrics of this process.

A log line is a constant phrase with fields: `log.info("payment declined", invoice_id=invoice, attempt=2)`. Ids, minor
units and currencies; never a name, an address or a card number. Lines of libraries take the same form.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

REGISTRY = CollectorRegistry()
"""The metrics of this process; what `/metrics` shows."""

LAG = Gauge(
    "tallybook_consumer_lag_records",
    "Records in the log that this process has not applied yet.",
    ("topic", "partition"),
    registry=REGISTRY,
)
"""Set by every consumer after each batch; `tallybook status` shows the sum."""

_NOISY = ("faust", "aiokafka", "mode", "httpx", "stripe", "uvicorn.access")


def configure(level: str, service: str) -> None:
    """Write every log line of this process to standard output as JSON, from `level` up, marked with `service`."""
    steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)


def forget() -> None:
    """Undo `configure`, as far as structlog goes; for tests that run several services in one process."""
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: `log = telemetry.logger("services.payments")`."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


def bind(**fields: Any) -> None:
    """Add `fields` (a tenant, a trace) to every further line of this thread or task."""
    structlog.contextvars.bind_contextvars(**fields)


def unbind(*names: str) -> None:
    """Drop fields added by `bind`."""
    structlog.contextvars.unbind_contextvars(*names)


def counter(name: str, what: str, *labels: str) -> Counter:
    """A new counter `tallybook_<name>`; declare it once, as a module constant."""
    return Counter(f"tallybook_{name}", what, labels, registry=REGISTRY)


def gauge(name: str, what: str, *labels: str) -> Gauge:
    """A new gauge `tallybook_<name>`; declare it once, as a module constant."""
    return Gauge(f"tallybook_{name}", what, labels, registry=REGISTRY)


def histogram(name: str, what: str, *labels: str) -> Histogram:
    """A new histogram `tallybook_<name>` of seconds; declare it once, as a module constant."""
    return Histogram(f"tallybook_{name}", what, labels, registry=REGISTRY)


def metrics_text() -> bytes:
    """All metrics of this process in the Prometheus text format."""
    return generate_latest(REGISTRY)


def serve_metrics(host: str, port: int) -> None:
    """Answer `GET /metrics` on `host:port` from a thread of its own, as long as the process lives."""
    start_http_server(port, addr=host, registry=REGISTRY)
