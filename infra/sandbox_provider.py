"""The sandbox payment provider: a process of its own with a book of its own, in the shape of Stripe's API.

Serves   POST /v1/payment_intents (create and confirm), GET /v1/payment_intents/{id}, GET /v1/payment_intents/search,
         GET /book (every successful charge), GET /health, and for tests POST /control/fail_next, POST /control/clock
Owns     `sandbox/book.sqlite3` under the data folder; nothing else in the system writes there
Repeats  safely because a charge and the answer saved under its idempotency key are one durable write

It listens on loopback only and knows no real card; `sandbox_book.CARDS` lists the tokens it takes.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from infra import clock, shutdown, telemetry
from infra.failpoints import failpoint
from infra.sandbox_book import Answer, Book, Params
from infra.settings import Settings

log = telemetry.logger("infra.sandbox")

FAULTS = ("before", "after", "500", "500_charged", "409", "429", "reset", "slow", "truncated")
SLOW_S = 3  # longer than a person waits, shorter than a client's timeout
BODY_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class Sandbox:
    """What the requests share: the book, the faults to come, the keys being worked on, and the clock."""

    path: Path
    offset: timedelta = timedelta(0)
    slow_s: float = SLOW_S
    faults: list[str] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    book: Book = field(init=False)

    def __post_init__(self) -> None:
        self.book = Book(self.path, self.now)

    def now(self) -> datetime:
        """The provider's present; tests move it on to make it forget its keys."""
        return clock.now() + self.offset

    def next_fault(self) -> str:
        """The fault that the next request for money meets, or nothing."""
        with self.lock:
            return self.faults.pop(0) if self.faults else ""

    @contextmanager
    def working_on(self, key: str | None) -> Iterator[bool]:
        """Whether this request is the only one at work under `key`, for as long as the block runs."""
        with self.lock:
            alone = key not in self.busy
            if key is not None and alone:
                self.busy.add(key)
        try:
            yield alone
        finally:
            if key is not None and alone:
                with self.lock:
                    self.busy.discard(key)

    def loses_answer(self, params: Params, key: str | None) -> bool:
        """Whether the answer to a charge of the card that loses answers is lost: the first one of each key."""
        if params.get("payment_method") != "pm_card_lostAnswer" or key is None:
            return False
        with self.lock:
            first = key not in self.lost
            self.lost.add(key)
        return first


class _Dropped(Exception):
    """The connection ends here, with no or half an answer."""


class _Handler(BaseHTTPRequestHandler):
    """One connection. `sandbox` is set by `server`."""

    sandbox: ClassVar[Sandbox]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        book = self.sandbox.book
        match url.path.strip("/").split("/"):
            case ["health"]:
                self._answer(Answer(200, {"status": "ok"}))
            case ["book"]:
                self._answer(Answer(200, {"charges": book.charges()}))
            case ["v1", "payment_intents", "search"] if self._authorized():
                self._answer(book.search(query.get("query", "")))
            case ["v1", "payment_intents", intent] if self._authorized():
                self._answer(book.retrieve(intent))
            case ["v1", *_] if not self._authorized():
                self._answer(_unauthorized())
            case _:
                self._answer(_unknown(self.path))

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > BODY_BYTES_MAX:
            self.close_connection = True
            self._answer(_refused("the body is too large"))
            return
        raw = self.rfile.read(size)
        try:
            params = dict(parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=bool(raw)))
        except (ValueError, UnicodeDecodeError):
            self._answer(_refused("the body is not form-encoded"))
            return
        try:
            match urlsplit(self.path).path.strip("/").split("/"):
                case ["v1", "payment_intents"] if self._authorized():
                    self._charge(params)
                case ["v1", *_] if not self._authorized():
                    self._answer(_unauthorized())
                case ["control", "fail_next"]:
                    self._answer(self._fail_next(params))
                case ["control", "clock"]:
                    self.sandbox.offset += timedelta(seconds=int(params.get("advance_s", "0")))
                    self._answer(Answer(200, {"now": self.sandbox.now().isoformat()}))
                case _:
                    self._answer(_unknown(self.path))
        except _Dropped:
            self.close_connection = True

    def _charge(self, params: Params) -> None:
        key = self.headers.get("Idempotency-Key")
        fault = self.sandbox.next_fault()
        if fault == "before":
            raise _Dropped
        if fault == "429":
            self._answer(_error(429, "rate_limit", "Too many requests."))
            return
        with self.sandbox.working_on(key) as alone:
            if fault == "409" or not alone:
                self._answer(_error(409, "idempotency_key_in_use", "Another request with this key is at work."))
                return
            answer = self.sandbox.book.saved(key, params) if key else None
            if answer is None:
                answer = self.sandbox.book.charge(key, params, fail=fault == "500", lose=fault == "500_charged")
                failpoint("sandbox.after_write")
            if fault == "slow" or params.get("payment_method") == "pm_card_slow":
                time.sleep(self.sandbox.slow_s)
        if fault == "after" or self.sandbox.loses_answer(params, key):
            raise _Dropped
        if fault == "reset":
            self._reset()
        failpoint("sandbox.before_answer")
        self._answer(answer, truncated=fault == "truncated")

    def _fail_next(self, params: Params) -> Answer:
        kind, count = params.get("kind", ""), params.get("count", "1")
        if kind not in FAULTS or not count.isdigit():
            return _refused(f"kind is one of {', '.join(FAULTS)}, count a number")
        with self.sandbox.lock:
            self.sandbox.faults += [kind] * int(count)
        return Answer(200, {"faults": list(self.sandbox.faults)})

    def _authorized(self) -> bool:
        scheme, _, key = (self.headers.get("Authorization") or "").partition(" ")
        return scheme in ("Bearer", "Basic") and len(key) > 0

    def _answer(self, answer: Answer, *, truncated: bool = False) -> None:
        body = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if answer.replayed:
            self.send_header("Idempotent-Replayed", "true")
        if answer.status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if truncated else body)
        if truncated:
            self.wfile.flush()
            raise _Dropped

    def _reset(self) -> None:
        """End the connection with a TCP reset instead of a farewell."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Dropped

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("request answered", line=format % args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("connection ended in an error", exc_info=True)


def server(sandbox: Sandbox, host: str, port: int) -> ThreadingHTTPServer:
    """A server for `sandbox` on `host:port` (0: any free port), ready for `serve_forever`."""
    return _Server((host, port), type("Handler", (_Handler,), {"sandbox": sandbox}))


def main(settings: Settings) -> int:
    """Serve until SIGTERM."""
    stop = shutdown.on_signals()
    port = settings.sandbox_port or urlsplit(settings.sandbox).port or 0
    sandbox = Sandbox(settings.data / "sandbox" / "book.sqlite3")
    serving = server(sandbox, settings.sandbox_host, port)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    log.info("sandbox provider listens", port=serving.server_address[1])
    stop.wait()
    serving.shutdown()
    serving.server_close()
    sandbox.book.close()
    return 0


def _unauthorized() -> Answer:
    return _error(401, "", "You did not provide an API key.")


def _unknown(path: str) -> Answer:
    return _error(404, "", f"Unrecognized request URL ({urlsplit(path).path}).")


def _refused(message: str) -> Answer:
    return _error(400, "parameter_invalid", message)


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"error": {"type": "invalid_request_error", "code": code, "message": message}})
