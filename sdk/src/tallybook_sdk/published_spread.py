"""The spread of a tenant's usage as Tallybook's API tells it, asked again before an answer can be out of date."""

from __future__ import annotations

import http.client
import logging
import threading
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tallybook_sdk.delivery import Unreachable
from tallybook_sdk.living import watch
from tallybook_sdk.spread import Spread

REFRESH_MAX = timedelta(minutes=30)  # a new spread begins an hour after what is accepted when it is set, or later

log = logging.getLogger(__name__)


class PublishedSpread:
    """How a tenant's usage is spread, kept up to date. For any number of producers, threads and forks.

    >>> spread = PublishedSpread("https://tallybook.example", "tb_...")
    >>> with UsageProducer("localhost:9092", "acme", spread=spread) as usage:
    ...     usage.send(event)

    Where the API does not answer any more, the last answer stands. What a spread that is not known here places
    elsewhere is refused as `key_mismatch`, and `tallybook usage rejected requeue` sends it there: it counts once.
    """

    def __init__(
        self,
        http: str,
        api_key: str,
        *,
        refresh: timedelta = timedelta(minutes=1),
        timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        """`api_key`: of the tenant. `refresh`: age at which an answer is asked for again. `timeout`: of each call.

        Raises:
            ValueError: `http` is no address, or `refresh` so long that events could be misplaced.
        """
        parts = urlsplit(http)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"http: {http!r} is no address; write it as https://host:port")
        if not timedelta(0) < refresh <= REFRESH_MAX:
            raise ValueError(f"refresh: allowed is above 0 up to {REFRESH_MAX}")
        self._parts = parts
        self._headers = {"Authorization": f"Bearer {api_key}", "Accept": "application/json"}
        self._refresh_s = refresh.total_seconds()
        self._timeout_s = timeout.total_seconds()
        self._known: Spread | None = None
        self._closed = threading.Event()
        self._begin()
        watch(self)

    def _begin(self) -> None:
        """Everything that is of this process."""
        self._lock = threading.Lock()
        self._refreshing: threading.Thread | None = None

    def forget(self) -> None:
        """In the child of a fork: the thread is the parent's; what is known is good here too."""
        self._begin()

    def ready(self) -> None:
        """Return once the spread is known. Producers call it before they take the first event.

        Raises:
            Unreachable: the API does not answer, or not as ours does; says what happened.
        """
        self._now()

    def partition(self, tenant: str, source: str, id: str, time: datetime | None) -> int:
        """Where an event belongs. Raises `Unreachable` if it was never known."""
        known = self._known
        if known is None or self._refreshing is None:
            known = self._now()
        return known.partition(tenant, source, id, time)

    def close(self, timeout: timedelta = timedelta(seconds=2)) -> None:
        """Ask no more; what is known stays."""
        self._closed.set()
        refreshing = self._refreshing
        if refreshing is not None:
            refreshing.join(timeout.total_seconds())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _now(self) -> Spread:
        with self._lock:
            if self._known is None:
                self._known = self._asked()
            if self._refreshing is None and not self._closed.is_set():
                self._refreshing = threading.Thread(target=self._refresh, name="tallybook-spread", daemon=True)
                self._refreshing.start()
            return self._known

    def _refresh(self) -> None:
        while not self._closed.wait(self._refresh_s):
            try:
                self._known = self._asked()
            except Unreachable as error:
                log.warning("usage is placed by the spread that was known last: %s", error)

    def _asked(self) -> Spread:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._parts.path.rstrip("/") + "/v1/usage/spread", headers=self._headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"{self._parts.netloc}: {type(e).__name__}: {e}") from e
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise Unreachable(f"{self._parts.netloc}: {answer.status} {body[:200].decode(errors='replace')}")
        try:
            return Spread.from_json(body)
        except ValueError as e:
            raise Unreachable(f"{self._parts.netloc}: {e}") from e
