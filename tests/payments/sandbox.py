"""A sandbox provider in this process, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.sandbox_provider import Sandbox, server


class RunningSandbox:
    """The sandbox and its controls."""

    def __init__(self, sandbox: Sandbox, url: str) -> None:
        self.sandbox = sandbox
        self.url = url

    def fail_next(self, kind: str, count: int = 1) -> None:
        answer = httpx.post(f"{self.url}/control/fail_next", data={"kind": kind, "count": str(count)})
        assert answer.status_code == 200, answer.text

    def advance(self, seconds: int) -> None:
        httpx.post(f"{self.url}/control/clock", data={"advance_s": str(seconds)}).raise_for_status()

    def charges(self) -> list[dict[str, Any]]:
        charges: list[dict[str, Any]] = httpx.get(f"{self.url}/book").json()["charges"]
        return charges


@contextmanager
def running_sandbox(folder: Path, *, slow_s: float = 3) -> Iterator[RunningSandbox]:
    """A sandbox on a free port with its book in `folder`; gone at the end of the block, the book stays."""
    sandbox = Sandbox(folder / "book.sqlite3", slow_s=slow_s)
    serving = server(sandbox, "127.0.0.1", 0)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield RunningSandbox(sandbox, f"http://127.0.0.1:{serving.server_address[1]}")
    finally:
        serving.shutdown()
        serving.server_close()
        sandbox.book.close()
