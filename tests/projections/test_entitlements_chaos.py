"""Redis killed and emptied while many ask: every answer is right, whoever gave it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from infra import postgres
from infra.errors import Transient
from infra.local import valkey_server
from infra.local.ports import Ports
from infra.redis_cache import RedisCache
from infra.settings import Settings
from services.entitlement_publisher import Publisher
from services.entitlements import CACHE, DATABASE, Answer, Entitlements
from tests.projections.history import START, History
from tests.projections.log import append
from tests.projections.test_replay import project_log
from tests.projections.usage_log import calls, count_log, measure_from_now_on, send
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("topics")

ASKING = 4


class Valkey:
    """A server of the test's own, which it may kill."""

    def __init__(self, folder: Path) -> None:
        self._program, self.url = valkey_server.program(folder, Ports(folder))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._program.command, stdout=subprocess.DEVNULL)
        eventually(self._program.ready)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def empty(self) -> None:
        redis.Redis.from_url(self.url).flushall()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    made = Valkey(tmp_path)
    made.start()
    yield made
    made.kill()


class Asking:
    """Threads that ask without pause whether Ann may make calls."""

    def __init__(self, checks: Entitlements) -> None:
        self._checks = checks
        self._stop = threading.Event()
        self.answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(ASKING)]
        for each in self._threads:
            each.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._checks.access("acme", "ann", "calls"))

    def await_source(self, source: str) -> None:
        """Until an answer of now came from there."""
        seen = len(self.answers)
        eventually(lambda: source in {each.source for each in self.answers[seen:]})

    def end(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()


def test_redis_killed_and_emptied_while_many_ask_grants_nothing_wrong(
    fresh: Settings, pool: postgres.Pool, api: postgres.Pool, valkey: Valkey
) -> None:
    history = History("acme").register().subscribe("ann")
    append(fresh, history.events)
    measure_from_now_on(fresh, "acme", START)
    send(fresh, "acme", calls("ann", 400, START))
    project_log(fresh, pool)
    count_log(fresh, pool)
    cache = RedisCache(fresh.model_copy(update={"redis": valkey.url}))
    publisher = Publisher(pool, cache)
    publisher.step()
    send(fresh, "acme", calls("ann", 600, START + timedelta(hours=1)))
    count_log(fresh, pool)  # the limit is reached, and Redis has not been told yet
    valkey.kill()
    asking = Asking(Entitlements(cache, api))
    try:
        asking.await_source(DATABASE)
        for _ in range(3):
            valkey.start()
            told(publisher)
            asking.await_source(CACHE)
            valkey.empty()
            asking.await_source(DATABASE)
            told(publisher)
            asking.await_source(CACHE)
            valkey.kill()
            asking.await_source(DATABASE)
    finally:
        asking.end()
        cache.close()
    assert {each.access.allowed for each in asking.answers} == {False}
    assert {each.source for each in asking.answers} == {CACHE, DATABASE}
    assert not any(each.stale for each in asking.answers)


def told(publisher: Publisher) -> None:
    """Until the publisher could tell everything."""

    def tell() -> bool:
        with contextlib.suppress(Transient):
            publisher.step()
            return True
        return False

    eventually(tell)
