"""The embedded stack: which servers run on a data folder, and where they answer."""

from __future__ import annotations

from infra.local import kafka_server, postgres_server, valkey_server
from infra.local.children import Program
from infra.local.ports import Ports
from infra.settings import Settings


def servers(settings: Settings, ports: Ports, given: frozenset[str]) -> tuple[list[Program], dict[str, str]]:
    """The servers to run, and the addresses of all three; those named in `given` are somebody else's and not run."""
    programs: list[Program] = []
    addresses = {name: getattr(settings, name) for name in sorted(given)}
    if "kafka" not in given:
        program, addresses["kafka"] = kafka_server.program(settings.data / "kafka", settings.cache, ports)
        programs.append(program)
    if "postgres" not in given:
        program, addresses["postgres"] = postgres_server.program(settings.data / "postgres", ports)
        programs.append(program)
    if "redis" not in given:
        program, addresses["redis"] = valkey_server.program(settings.data / "valkey", ports)
        programs.append(program)
    return programs, addresses
