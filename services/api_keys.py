"""Keys with which applications speak for a tenant: `tb_<id>_<secret>`, of which only a hash is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from infra.postgres import Cursor

_KEY = re.compile(r"tb_(?P<id>[0-9a-z]{12})_(?P<secret>[A-Za-z0-9_-]{43})\Z", re.ASCII)
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a key speaks for."""

    tenant: str
    key_id: str

    @property
    def actor(self) -> str:
        """The name under which events remember who asked."""
        return f"api_key:{self.key_id}"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is known of a key; not its secret."""

    tenant: str
    key_id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


def create(tx: Cursor, tenant: str, name: str) -> str:
    """Store a new key of `tenant`; returns it, for the only time."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    tx.execute(
        "INSERT INTO app.api_key (tenant_id, key_id, name, secret_sha256) VALUES (%s, %s, %s, %s)",
        (tenant, key_id, name, hashlib.sha256(secret.encode()).digest()),
    )
    return f"tb_{key_id}_{secret}"


def revoke(tx: Cursor, key_id: str) -> bool:
    """Let a key open nothing any more; False if there is no such key in use."""
    done = tx.execute("UPDATE app.api_key SET revoked_at = now() WHERE key_id = %s AND revoked_at IS NULL", (key_id,))
    return done.rowcount == 1


def listed(tx: Cursor, tenant: str | None) -> list[StoredKey]:
    """All keys (of `tenant`), oldest first."""
    rows = tx.execute(
        """
        SELECT tenant_id, key_id, name, created_at, revoked_at
          FROM app.api_key
         WHERE %(tenant)s::text IS NULL OR tenant_id = %(tenant)s
         ORDER BY created_at, key_id
        """,
        {"tenant": tenant},
    ).fetchall()
    return [StoredKey(*row) for row in rows]


def find(tx: Cursor, presented: str) -> Caller | None:
    """Whom `presented` speaks for; None if it is no key, a wrong one or a revoked one."""
    match = _KEY.match(presented)
    if match is None:
        return None
    tx.execute("SELECT set_config('app.api_key', %s, true)", (match["id"],))
    row = tx.execute(
        "SELECT tenant_id, secret_sha256 FROM app.api_key WHERE key_id = %s AND revoked_at IS NULL", (match["id"],)
    ).fetchone()
    if row is None or not hmac.compare_digest(bytes(row[1]), hashlib.sha256(match["secret"].encode()).digest()):
        return None
    return Caller(row[0], match["id"])
