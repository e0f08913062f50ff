"""Requests at a fixed rate, whatever becomes of them: each is timed from the moment at which it was due.

A client that waits for an answer before it asks again hides how long others would have waited. Here a request that
finds every connection taken waits for one, and that wait is in its time. The sender's own lateness is in it, too: what
an endpoint takes that does nothing (`empty_endpoint`) says how much that is.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

CONNECTIONS = 32
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask what."""

    port: int
    """On this machine."""
    requests: Sequence[bytes]
    """Whole requests, sent one after the other, again and again."""
    answers: bytes
    """What is in every right answer."""


def ask(targets: Sequence[Target], rate: int, seconds: float, turn_s: float = 2.0) -> list[list[float]]:
    """Seconds of each request, by target: they take turns, `seconds` each in all, at `rate` requests a second.

    Raises:
        SystemExit: an answer was not right, or did not come.
    """
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        return runner.run(_ask(targets, rate, seconds, turn_s))


def _precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())  # epoll would round every wait up to a millisecond


async def _ask(targets: Sequence[Target], rate: int, seconds: float, turn_s: float) -> list[list[float]]:
    senders = [_Sender(each) for each in targets]
    for _ in range(max(1, round(seconds / turn_s))):
        for each in senders:
            await each.turn(rate, int(rate * turn_s))
    for each in senders:
        each.close()
    return [each.found for each in senders]


class _Sender:
    """The connections to one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.found: list[float] = []
        self.wrong: bytes | None = None
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self._number = 0

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self.idle) < CONNECTIONS:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.target.port)

    async def turn(self, rate: int, count: int) -> None:
        """`count` requests, and their answers."""
        await self.connect()  # a server closes what was idle for some seconds
        wanted = len(self.found) + count
        began = time.perf_counter() + 0.01
        for number in range(count):
            due = began + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            self._number += 1
            self.waiting.append((due, self.target.requests[self._number % len(self.target.requests)]))
            self.send()
        deadline = time.perf_counter() + _PATIENCE_S
        while len(self.found) < wanted:
            if self.wrong is not None or time.perf_counter() > deadline:
                raise SystemExit(f"not answered as expected: {(self.wrong or b'nothing')!r}")
            await asyncio.sleep(0.001)

    def send(self) -> None:
        """Send what waits, as far as there are connections."""
        while self.waiting and self.idle:
            self.idle.popleft().ask(*self.waiting.popleft())

    def close(self) -> None:
        for each in list(self.idle):
            each.close()


class _Connection(asyncio.Protocol):
    def __init__(self, sender: _Sender) -> None:
        self._sender = sender
        self._transport: Any = None
        self._due = 0.0
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sender.idle.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self._sender.idle:
            self._sender.idle.remove(self)
        elif self._due:
            self._sender.wrong = b"a closed connection"

    def ask(self, due: float, request: bytes) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._sender.found.append(time.perf_counter() - self._due)
        if not head.startswith(b"HTTP/1.1 200") or self._sender.target.answers not in body:
            self._sender.wrong = self._read
        self._read, self._due = b"", 0.0
        self._sender.idle.append(self)
        self._sender.send()

    def close(self) -> None:
        self._transport.close()


def request(path: str, **headers: str) -> bytes:
    """A GET on a connection that stays open."""
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextmanager
def empty_endpoint() -> Iterator[Target]:
    """What the same server takes to answer nothing, in a process of its own."""
    # Without the name of its protocol, asyncio would let its answers wait for acknowledgements (TCP_NODELAY).
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(listening,), daemon=True)
    server.start()
    try:
        yield Target(listening.getsockname()[1], [request("/")], b"true")
    finally:
        server.terminate()
        server.join()
        listening.close()


def _serve(listening: socket.socket) -> None:
    config = uvicorn.Config(_nothing, log_config=None, access_log=False, server_header=False)
    uvicorn.Server(config).run([listening])


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"true"})
