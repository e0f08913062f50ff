"""The same producer for asyncio: nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import functools
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from tallybook_sdk.delivery import BufferFull, Delivery, NotDelivered
from tallybook_sdk.event import UsageEvent
from tallybook_sdk.producer import ANSWER, UsageProducer
from tallybook_sdk.spool import Fsync
from tallybook_sdk.spread import Placing

_ROOM = timedelta(milliseconds=50)


class AsyncUsageProducer:
    """As `UsageProducer`, for one event loop.

    >>> async with AsyncUsageProducer("localhost:9092", "acme", source="api-gateway") as usage:
    ...     await usage.send(UsageEvent(type="api_call", customer="c-1", time=datetime.now(UTC)))
    """

    def __init__(self, bootstrap: str, tenant: str, **options: Any) -> None:
        """`options`: those of `UsageProducer`; reports by `on_delivery` come from another thread."""
        self._waits = options.get("when_full", "wait") == "wait"
        self._blocks = options.get("fsync") is Fsync.EVENT
        self._spread: Placing | None = options.get("spread")
        self._make = functools.partial(UsageProducer, bootstrap, tenant, **(options | {"when_full": "raise"}))
        self._producer: UsageProducer | None = None

    async def send(self, event: UsageEvent) -> None:
        """Take `event` along with the next batch; waits while too many are under way. Raises what the sync one does."""
        await self._send(event)

    async def deliver(self, event: UsageEvent) -> Delivery:
        """Send `event` and wait until the brokers have it.

        Raises:
            NotDelivered: they may not have it; send it again, with its id.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Delivery] = loop.create_future()

        def settle(delivery: Delivery) -> None:
            if not answer.done():  # else whoever waited was cancelled
                answer.set_result(delivery)

        await self._send(event, lambda delivery: loop.call_soon_threadsafe(settle, delivery))
        delivery = await answer
        if delivery.error is not None:
            raise NotDelivered([delivery], [])
        return delivery

    async def void(
        self, id: str, *, reason: str, source: str = "", time: datetime | None = None, timeout: timedelta = ANSWER
    ) -> None:
        """Take the event (`source`, `id`) back; returns when the brokers have that. The rest as the sync one."""
        producer = await self._ready()
        await asyncio.to_thread(producer.void, id, reason=reason, source=source, time=time, timeout=timeout)

    async def amend(self, event: UsageEvent, *, reason: str, timeout: timedelta = ANSWER) -> None:
        """Have the event with the source and id of `event` count as `event`. The rest as the sync one."""
        await asyncio.to_thread((await self._ready()).amend, event, reason=reason, timeout=timeout)

    async def check(self, timeout: timedelta = timedelta(seconds=8)) -> None:
        """Raises `Unreachable` unless the brokers answer and have the topic."""
        await asyncio.to_thread((await self._ready()).check, timeout)

    async def flush(self, timeout: timedelta = ANSWER) -> None:
        """Return when the brokers have every event that was sent. Raises `NotDelivered`."""
        await asyncio.to_thread((await self._ready()).flush, timeout)

    async def close(self, timeout: timedelta = ANSWER) -> None:
        """Flush, and end. Raises what `flush` does."""
        if self._producer is not None:
            await asyncio.to_thread(self._producer.close, timeout)

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except NotDelivered:
            if error is None:
                raise

    async def _ready(self) -> UsageProducer:
        if self._producer is None and self._spread is not None:
            await asyncio.to_thread(self._spread.ready)
        if self._producer is None:
            self._producer = self._make()  # reads the spool, if there is one: done once, before the work
        return self._producer

    async def _send(self, event: UsageEvent, report: Any = None) -> None:
        producer = await self._ready()
        while True:
            try:
                if self._blocks:
                    await asyncio.to_thread(producer.send, event, report)
                else:
                    producer.send(event, report)
                return
            except BufferFull:
                if not self._waits:
                    raise
                await asyncio.to_thread(producer.wait_for_room, _ROOM)
