"""Writes what is to be collected from the log into the payment outbox.

Consumes  billing.events, group `outbox`: PaymentDue, PaymentAttemptStarted, PaymentDeclined, PaymentSucceeded,
          DunningExhausted, PaymentMethodAttached
Produces  nothing
Owns      app.payment_outbox and its own place in app.consumer_offset; no projection: it is never rebuilt, so a replay
          of the log charges nobody
Repeats   safely because rows and place are one Postgres transaction
"""

from __future__ import annotations

from typing import Final

from infra import postgres, telemetry
from infra.errors import Transient
from infra.settings import Settings
from infra.shutdown import on_signals
from infra.watchdog import watched
from services import payment_outbox
from services.event_intake import EventIntake, consumer

log = telemetry.logger("services.outbox")

NAME: Final = "outbox"
POLL_S: Final = 0.1
TROUBLE_S: Final = 1.0

_PLACES: Final = {"rows": "outbox.after_rows", "commit": "outbox.after_commit"}


def main(settings: Settings) -> int:
    """Write until SIGTERM."""
    stop = on_signals()
    with postgres.worker_pool(settings) as pool:
        events = consumer(settings, NAME)
        intake = EventIntake(
            NAME,
            events,
            pool,
            payment_outbox.WANTED,
            payment_outbox.apply,
            passing=_PLACES,
            watchdog=watched(settings),
        )
        try:
            while not stop.is_set():
                try:
                    intake.step(POLL_S)
                except Transient as e:
                    log.warning("outbox pauses", reason=str(e))
                    stop.wait(TROUBLE_S)
        finally:
            intake.close()
    return 0
