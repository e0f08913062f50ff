"""The API as a process: everything it depends on is on one of these lines."""

from __future__ import annotations

import gc
import sys
from datetime import timedelta

import uvicorn

from infra import postgres, telemetry
from infra.clock import SystemClock
from infra.errors import Misconfigured
from infra.kafka import KafkaConfig
from infra.redis_cache import LoopCache, RedisCache
from infra.settings import Settings
from infra.shutdown import on_signals
from services.api.app import create_app
from services.api.cursors import Cursors
from services.api.parts import Parts
from services.api.usage_publisher import UsagePublisher
from services.commands import CommandClient
from services.entitlements import Entitlements
from services.reservations import Reservations
from services.usage_log import UsageLog
from services.usage_placing import Layout

log = telemetry.logger("services.api")

POOL_SIZE = 16
CHECKS_POOL_SIZE = 4
CHECKS_PATIENCE = timedelta(seconds=1)  # a check that Redis cannot answer must not wait for Postgres to come back
_SWITCH_S = 0.001  # how long a thread may keep the event loop waiting for the interpreter
STOP_S = 8  # of the ten seconds that a process has after SIGTERM


def serve(settings: Settings) -> int:
    """Serve until SIGTERM.

    Raises:
        Misconfigured: the database role is stronger than one tenant at a time.
        Transient: Postgres or Kafka does not answer.
    """
    clock = SystemClock()
    pool = postgres.api_pool(settings, size=POOL_SIZE)
    cache = RedisCache(settings)
    checks = postgres.api_pool(settings, size=CHECKS_POOL_SIZE, patience=CHECKS_PATIENCE)
    layout = Layout(settings.usage_partitions)
    usage = UsagePublisher(KafkaConfig.of(settings), layout, clock)
    usage_log = UsageLog(settings)
    try:
        with CommandClient(settings, clock=clock) as commands:
            commands.listen()
            parts = Parts(
                pool=pool,
                commands=commands,
                usage=usage,
                layout=layout,
                usage_log=usage_log,
                entitlements=Entitlements(cache, checks, clock, LoopCache(settings)),
                reservations=Reservations(pool),
                quick=checks,
                cursors=Cursors(cursor_secret(pool)),
                clock=clock,
            )
            config = uvicorn.Config(
                create_app(parts),
                host=settings.api_host,
                port=settings.api_port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
            )
            # uvicorn raises the signal again at its end: without a handler of ours the process would die of it.
            on_signals()
            _spare_pauses()
            log.info("api starts", host=settings.api_host, port=settings.api_port)
            uvicorn.Server(config).run()
    finally:
        usage.close()
        usage_log.close()
        cache.close()
        checks.close()
        pool.close()
    return 0


def _spare_pauses() -> None:
    """Keep what would hold up every request at once short."""
    gc.collect()
    gc.freeze()  # what is there stays: no collection looks at it again
    sys.setswitchinterval(_SWITCH_S)


def cursor_secret(pool: postgres.Pool) -> bytes:
    """What signs cursors: the same for every instance of the API.

    Raises:
        Misconfigured: the migrations have not run.
    """
    with postgres.transaction(pool) as tx:
        row = tx.execute("SELECT secret FROM app.api_signing_key WHERE purpose = 'cursor'").fetchone()
    if row is None:
        raise Misconfigured("app.api_signing_key is empty: run the migrations")
    return bytes(row[0])
