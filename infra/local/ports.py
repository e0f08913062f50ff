"""Ports of the local stack: picked once and remembered, so that a restart answers where it did before."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the range from which Linux takes ports for outgoing connections: a client that keeps calling a stopped server
could otherwise be given that very port, connect to itself, and keep the server from coming back."""


class Ports:
    """The ports of one data folder, by name."""

    def __init__(self, data: Path) -> None:
        self._file = data / "ports.json"
        self._of: dict[str, int] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def get(self, name: str) -> int:
        """The port of `name`: the remembered one while it is free, else a new one, remembered from now on."""
        port = self._of.get(name)
        if port is None or not is_free(port):
            taken = set(self._of.values())
            port = next(p for p in _candidates() if p not in taken and is_free(p))
            self._of[name] = port
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._of, indent=1))
        return port


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _candidates() -> list[int]:
    return random.sample(range(_LOWEST, _HIGHEST), 2_000)
