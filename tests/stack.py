"""The servers that a test session uses: external ones by URL, else containers, else the embedded stack.

One stack serves the whole session. Tests keep apart by tenant ids of their own (`tenant` fixture) or, where they look
at everything, by a database and topics of their own (`Stack.fresh`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from infra import postgres
from infra.settings import STATE_FILE, Settings
from services.prepare import prepare
from tests.waiting import eventually

_GIVEN = ("KAFKA", "POSTGRES", "REDIS")
_KAFKA_IMAGE, _POSTGRES_IMAGE, _VALKEY_IMAGE = "apache/kafka:4.3.1", "postgres:18", "valkey/valkey:9.1"
_START_S = 300
_MS = timedelta(milliseconds=1)


@dataclass(slots=True)
class Stack:
    """Running servers, and settings that point at a prepared database and topics of this session."""

    kind: str
    """external, containers or embedded."""
    data: Path
    """Folder of the session: logs, and the embedded stack's data."""
    settings: Settings
    """Database, topics and roles are ready; the providers' processes are not started."""
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def fresh(self, **changes: object) -> Settings:
        """Settings with an empty database and topics of their own on the same servers, prepared."""
        name = f"t{uuid.uuid4().hex[:12]}"
        owner = postgres.create_database(self.settings.postgres, name)
        own = {
            "postgres": owner,
            "postgres_worker": "",
            "postgres_api": "",
            "topic_prefix": f"{name}.",
            "data": self.data / name,
        }
        settings = self.settings.model_copy(update=own | changes)
        prepare(settings)
        return settings

    def environment(self, settings: Settings | None = None, **more: str) -> dict[str, str]:
        """The environment of a process that runs with `settings`; `more` are further variables by full name."""
        own = (settings or self.settings).model_dump(mode="json", exclude_defaults=True)
        spans = (settings or self.settings).model_dump(include=own.keys())
        own |= {name: f"{span // _MS}ms" for name, span in spans.items() if isinstance(span, timedelta)}
        secret = {"kafka_sasl_password", "stripe_key", "stripe_webhook_secret"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_")}
        return clean | {f"TALLYBOOK_{k.upper()}": str(v) for k, v in own.items() if k not in secret} | more

    def start(self, name: str, settings: Settings | None = None, **more: str) -> subprocess.Popen[bytes]:
        """Start `tallybook run NAME` with log `settings.data/logs/NAME.log`; ended with the session at the latest."""
        logs = (settings or self.settings).data / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "run", name],
                env=self.environment(settings, **more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], within_s: float = 30) -> int:
        """Ask a started process to end and wait for it; returns its exit code (negative: the signal that ended it)."""
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            self._running.remove(process)

    def _end(self) -> None:
        for process in list(self._running):
            self.stop(process)


@contextmanager
def open_stack() -> Iterator[Stack]:
    """The servers of this session, prepared; everything that was started here is gone afterwards."""
    data = Path(tempfile.mkdtemp(prefix="tallybook-test-"))
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, data, ignore_errors=True)
        kind, addresses = _servers(data, cleanup)
        settings = Settings(data=data / "session", **addresses)  # type: ignore[arg-type]
        if kind == "external":
            # Somebody else's servers: leave nothing of ours in their default database.
            name = f"t{uuid.uuid4().hex[:12]}"
            owner = postgres.create_database(settings.postgres, name)
            cleanup.callback(postgres.drop_database, settings.postgres, name)
            settings = settings.model_copy(update={"postgres": owner, "topic_prefix": f"{name}."})
        prepare(settings)
        stack = Stack(kind, data, settings)
        cleanup.callback(stack._end)
        yield stack


def _servers(data: Path, cleanup: ExitStack) -> tuple[str, dict[str, str]]:
    """The one place that decides."""
    given = {name.lower(): os.environ.get(f"TALLYBOOK_TEST_{name}", "") for name in _GIVEN}
    if all(given.values()):
        return "external", given
    if any(given.values()):
        missing = ", ".join(f"TALLYBOOK_TEST_{name.upper()}" for name, value in given.items() if not value)
        raise RuntimeError(f"give all three servers or none; missing: {missing}")
    containers = _containers(cleanup)
    if containers is not None:
        return "containers", containers
    return "embedded", cleanup.enter_context(embedded(data))


@contextmanager
def embedded(data: Path, env: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """The embedded stack on `data`, run by our own supervisor, which ends with this process at the latest."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBOOK_")}
    kept = {name: os.environ[name] for name in ("TALLYBOOK_CACHE",) if name in os.environ}
    (data / "logs").mkdir(parents=True, exist_ok=True)
    with (data / "logs" / "supervisor.log").open("ab") as out:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--foreground", "--with-parent", "--only", "servers"],
            env=clean | kept | {"TALLYBOOK_DATA": str(data)} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        state = eventually(lambda: _started(data, supervisor), within_s=_START_S)
        yield {name: state[name] for name in ("kafka", "postgres", "redis")}
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(240)


def _started(data: Path, supervisor: subprocess.Popen[bytes]) -> dict[str, str]:
    state = json.loads((data / STATE_FILE).read_text()) if supervisor.poll() is None else {}
    if supervisor.poll() is not None:
        raise RuntimeError("the supervisor ended: " + (data / "logs" / "supervisor.log").read_text()[-2000:])
    addresses: dict[str, str] = state["addresses"] if state["phase"] == "running" else {}
    return addresses


def _containers(cleanup: ExitStack) -> dict[str, str] | None:
    """The three servers as containers; None if no Docker engine answers or it cannot get the images."""
    try:
        import docker
        from testcontainers.core.container import DockerContainer

        with contextlib.closing(docker.from_env(timeout=2)) as client:
            client.ping()
    except Exception:  # whatever the reason, there is no engine to be used
        return None
    with contextlib.ExitStack() as started:
        try:
            addresses = _start_containers(DockerContainer, started)
        except Exception as error:
            sys.stderr.write(f"containers do not start ({error}); using the embedded stack\n")
            return None
        cleanup.push(started.pop_all())
    return addresses


def _start_containers(container: type, started: ExitStack) -> dict[str, str]:
    from infra.local import kafka_server, ports, postgres_server, valkey_server

    with tempfile.TemporaryDirectory() as folder:
        port = ports.Ports(Path(folder)).get("kafka")
    kafka = container(_KAFKA_IMAGE).with_bind_ports(9092, port)
    for name, value in _KAFKA_ENVIRONMENT.items():
        kafka = kafka.with_env(name, value.format(port=port))
    database = container(_POSTGRES_IMAGE).with_exposed_ports(5432)
    for name, value in {"USER": "tallybook_owner", "PASSWORD": "tallybook", "DB": "tallybook"}.items():
        database = database.with_env(f"POSTGRES_{name}", value)
    valkey = container(_VALKEY_IMAGE).with_exposed_ports(6379)
    for each in (kafka, database, valkey):
        started.enter_context(each)
    host = database.get_container_host_ip()
    postgres_port, valkey_port = int(database.get_exposed_port(5432)), int(valkey.get_exposed_port(6379))
    eventually(lambda: kafka_server.answers(host, port))
    eventually(lambda: postgres_server.answers(host, postgres_port))
    eventually(lambda: valkey_server.answers(host, valkey_port))
    return {
        "kafka": f"{host}:{port}",
        "postgres": f"postgresql://tallybook_owner:tallybook@{host}:{postgres_port}/tallybook",
        "redis": f"redis://{host}:{valkey_port}/0",
    }


_KAFKA_ENVIRONMENT = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://localhost:{port}",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
}
