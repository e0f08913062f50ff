"""Who presents which key, remembered for two seconds: an application asks hundreds of times with the same one."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final

from infra import postgres, telemetry
from infra.clock import Clock
from infra.errors import Transient
from services import api_keys
from services.api_keys import Caller

log = telemetry.logger("services.api")

FRESH_S: Final = 2.0
"""A revoked key opens nothing any more after this time at the latest."""
TRUSTED_S: Final = 900.0
"""While Postgres does not answer, a key that it knew this lately is taken: entitlements must be answered then, too."""
_AGING_S: Final = 1.0
"""From then on whoever asks all the time looks again beforehand, and never waits for it."""
_SPARED_S: Final = 1.0
_KNOWN_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    verified_s: float
    ask_at_s: float
    aging_at_s: float


class Callers:
    """Finds callers by their keys; safe to use from several threads."""

    def __init__(self, pool: postgres.Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._lock = Lock()

    def known(self, presented: str) -> Caller | None:
        """Whom a key speaks for that was looked up a moment ago; None: call `find`, which takes longer."""
        known = self._known.get(_digest(presented))
        return known.caller if known is not None and self._clock.monotonic_s() < known.ask_at_s else None

    def is_aging(self, presented: str) -> bool:
        """Whether a known key should be looked up again before its time; said to one asker only, who calls `find`."""
        digest = _digest(presented)
        with self._lock:
            known = self._known.get(digest)
            if known is None or self._clock.monotonic_s() < known.aging_at_s:
                return False
            self._known[digest] = replace(known, aging_at_s=math.inf)
            return True

    def find(self, presented: str) -> Caller | None:
        """Whom `presented` speaks for; None if it is no key, a wrong one or a revoked one.

        Raises:
            Transient: Postgres is away, and the key was not seen lately.
        """
        digest = _digest(presented)
        asked_s = self._clock.monotonic_s()
        try:
            with postgres.transaction(self._pool) as tx:
                found = api_keys.find(tx, presented)
        except Transient:
            known, now = self._known.get(digest), self._clock.monotonic_s()
            if known is None or now - known.verified_s > TRUSTED_S:
                raise
            log.warning("key taken as it was known", key_id=known.caller.key_id)
            self._keep(digest, replace(known, ask_at_s=now + _SPARED_S, aging_at_s=math.inf))
            return known.caller
        self._keep(digest, None if found is None else _Known(found, asked_s, asked_s + FRESH_S, asked_s + _AGING_S))
        return found

    def _keep(self, digest: bytes, known: _Known | None) -> None:
        with self._lock:
            if known is None:
                self._known.pop(digest, None)
                return
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[digest] = known


def _digest(presented: str) -> bytes:
    """Keys are not kept in memory as they are."""
    return hashlib.sha256(presented.encode("utf-8", "replace")).digest()
