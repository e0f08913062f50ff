"""Brings Postgres and Kafka to what the processes expect: migrations, topics, first generations.

Consumes nothing. Runs as the owner, before the other processes; repeats safely because each step does only what is
missing.
"""

from __future__ import annotations

from infra import telemetry
from infra.migrate import migrate
from infra.settings import Settings

log = telemetry.logger("services.prepare")


def main(settings: Settings) -> int:
    """Do what is missing; 0 when everything is there."""
    log.info("migrations applied", files=migrate(settings))
    return 0
