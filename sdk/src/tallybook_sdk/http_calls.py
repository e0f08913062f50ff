"""Calls of Tallybook's API; one connection for each thread that asks."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from datetime import timedelta
from email.message import Message
from urllib.parse import urlsplit
from weakref import WeakSet


class NoAnswer(Exception):
    """Nobody answered, or the answer was lost. Says what happened."""


class HttpCalls:
    """Safe to share between threads. Every call must be free to repeat: a connection that was kept may be gone."""

    def __init__(self, url: str, api_key: str, timeout: timedelta) -> None:
        """`timeout`: of each step of a call. Raises `ValueError`: `url` is no address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"http: {url!r} is no address; write it as https://host:port")
        self._parts = parts
        self._headers = {"Authorization": f"Bearer {api_key}", "Accept": "application/json"}
        self._timeout_s = timeout.total_seconds()
        self.forget()

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Message]:
        """Status, body and headers of the answer.

        Raises:
            NoAnswer: there is none; the call may have been taken.
        """
        given = {**self._headers, **(headers or {})}
        if body is not None:
            given["Content-Type"] = "application/json"
        for attempt in (1, 2):
            connection, is_new = self._connection()
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, body=body, headers=given)
                answer = connection.getresponse()
                return answer.status, answer.read(), answer.headers
            except (OSError, http.client.HTTPException) as e:
                connection.close()
                self._local.connection = None
                if is_new or attempt == 2:  # a kept one may have been closed by the server meanwhile
                    raise NoAnswer(f"HTTP: {type(e).__name__}: {e}") from e
        raise AssertionError

    def close(self) -> None:
        """Close all connections: nobody may be in a call."""
        with self._lock:
            made = list(self._made)
        for each in made:
            each.close()
        self.forget()

    def forget(self) -> None:
        """Begin anew; in the child of a fork the connections are the parent's."""
        self._local = threading.local()
        self._lock = threading.Lock()
        self._made: WeakSet[http.client.HTTPConnection] = WeakSet()  # that of a thread that ended goes with it

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            return kept, False
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        made = kind(self._parts.hostname, self._parts.port, timeout=self._timeout_s)
        self._local.connection = made
        with self._lock:
            self._made.add(made)
        return made, True
