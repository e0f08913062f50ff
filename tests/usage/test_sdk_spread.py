"""The SDK asks the API for a tenant's spread, keeps it up to date, and goes on by the last answer."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from tallybook_sdk import AsyncUsageProducer, PublishedSpread, Spread, Unreachable, UsageProducer
from tests.usage.making import NOON, TENANT
from tests.usage.test_sdk_entitlements import NOBODY_HTTP, api
from tests.waiting import eventually

SOON = timedelta(milliseconds=20)
NOBODY_KAFKA = "127.0.0.1:1"


class Told:
    """What the API answers."""

    def __init__(self) -> None:
        self.status = 200
        self.versions: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, path: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        self.may_answer.wait(10)
        return self.status, {"log_partitions": 6, "versions": self.versions}

    def spread(self, partitions: int) -> Spread:
        self.versions = [{"effective_from": NOON.isoformat(), "partitions": partitions}]
        return Spread.from_json(json.dumps({"log_partitions": 6, "versions": self.versions}))


def places(spread: Spread | PublishedSpread) -> list[int]:
    return [spread.partition(TENANT, "test", f"e-{number}", NOON) for number in range(40)]


def test_events_are_placed_by_the_newest_answer() -> None:
    told = Told()
    first = told.spread(3)
    with api(told) as url, PublishedSpread(f"{url}/behind/", "key", refresh=SOON) as spread:
        assert places(spread) == places(first)
        assert set(told.asked) == {"/behind/v1/usage/spread"}
        second = told.spread(5)
        eventually(lambda: places(spread) == places(second))


def test_the_last_answer_stands_where_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    first = told.spread(3)
    with api(told) as url, PublishedSpread(url, "key", refresh=SOON) as spread:
        spread.ready()
        told.spread(5)
        told.status = 503
        with caplog.at_level(logging.WARNING):
            eventually(lambda: "known last" in caplog.text)
        assert places(spread) == places(first)


def test_a_forked_child_asks_on_its_own() -> None:
    told = Told()
    newer = told.spread(5)
    told.spread(3)
    with api(told) as url, PublishedSpread(url, "key", refresh=SOON) as spread:
        spread.ready()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                eventually(lambda: places(spread) == places(newer))
                os._exit(0)
            os._exit(1)
        told.spread(5)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("status", [None, 401, 404])
def test_a_producer_does_not_begin_without_an_answer(status: int | None) -> None:
    told = Told()
    told.status = status or 200
    with api(told) as url:
        asked = url if status else NOBODY_HTTP
        with pytest.raises(Unreachable, match=str(status or "ConnectionRefused")):
            UsageProducer(NOBODY_KAFKA, TENANT, spread=PublishedSpread(asked, "key"))

        async def begin() -> None:
            async with AsyncUsageProducer(NOBODY_KAFKA, TENANT, spread=PublishedSpread(asked, "key")):
                pass

        with pytest.raises(Unreachable):
            asyncio.run(begin())


def test_an_answer_that_is_none_of_ours_is_told() -> None:
    told = Told()
    told.versions = [{"partitions": 3}]
    with api(told) as url, pytest.raises(Unreachable, match="no answer of /v1/usage/spread"):
        PublishedSpread(url, "key").ready()


def test_asking_does_not_hold_up_the_event_loop() -> None:
    told = Told()
    told.spread(3)
    told.may_answer.clear()

    async def begin(url: str) -> None:
        with PublishedSpread(url, "key", timeout=timedelta(seconds=5)) as spread:
            usage = AsyncUsageProducer(NOBODY_KAFKA, TENANT, spread=spread)
            entering = asyncio.ensure_future(usage.__aenter__())
            while not told.asked:
                await asyncio.sleep(0)
            told.may_answer.set()  # only a loop that goes on comes here
            await entering
            await usage.close()

    with api(told) as url:
        asyncio.run(begin(url))


def test_what_would_misplace_events_is_refused() -> None:
    with pytest.raises(ValueError, match="http: 'tallybook' is no address; write it as https://host:port"):
        PublishedSpread("tallybook", "key")
    for wrong in (timedelta(0), timedelta(hours=1)):
        with pytest.raises(ValueError, match=r"refresh: allowed is above 0 up to 0:30:00"):
            PublishedSpread("http://tallybook", "key", refresh=wrong)
