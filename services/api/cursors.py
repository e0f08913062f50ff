"""Page cursors: opaque, signed, and good only for the tenant, the address and the filters that they were made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from services.api.problems import Problem

_SIGNATURE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Cursors:
    """Makes and reads cursors with the API's secret."""

    secret: bytes

    def seal(self, scope: Sequence[str], after: str) -> str:
        """A cursor for what follows `after` within `scope` (tenant, address, filters)."""
        content = json.dumps(after).encode()
        return base64.urlsafe_b64encode(self._sign(scope, content) + content).decode().rstrip("=")

    def open(self, scope: Sequence[str], cursor: str | None) -> str:
        """What `cursor` goes on after; empty without one.

        Raises:
            Problem: 400 invalid_cursor: it was not made here, or not for this `scope`.
        """
        if cursor is None:
            return ""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as e:
            raise _invalid() from e
        signature, content = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(scope, content)):
            raise _invalid()
        return str(json.loads(content))

    def _sign(self, scope: Sequence[str], content: bytes) -> bytes:
        signed = json.dumps(list(scope)).encode() + b"\n" + content
        return hmac.new(self.secret, signed, hashlib.sha256).digest()[:_SIGNATURE_BYTES]


def _invalid() -> Problem:
    return Problem(400, "invalid_cursor", "use next_cursor of the page before, with the same filters")
