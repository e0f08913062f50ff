"""The only module that talks to Postgres' client library: connections, pools, transactions, roles and leases.

Workers use `transaction`, the API `tenant_transaction`. A connection goes back to its pool without settings, temporary
tables and locks, so that nothing of one tenant is ever seen by the next.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from infra.errors import Conflict, Misconfigured, Transient
from infra.settings import Settings

Connection = psycopg.Connection[TupleRow]
Cursor = psycopg.Cursor[TupleRow]
Pool = ConnectionPool[Connection]

WORKER = "tallybook_worker"
API = "tallybook_api"


def owner_url(settings: Settings) -> str:
    """URL of the role that owns schemas and tables, for migrations and generations."""
    return settings.require("postgres")


def worker_url(settings: Settings) -> str:
    """URL of the workers' role, which sees all tenants."""
    return settings.postgres_worker or role_url(settings.require("postgres"), WORKER)


def api_url(settings: Settings) -> str:
    """URL of the API's role, which sees one tenant at a time."""
    return settings.postgres_api or role_url(settings.require("postgres"), API)


def role_url(owner: str, role: str) -> str:
    """The URL of `role` in the database of `owner`; its password follows from the owner's, so none has to be stored."""
    parts = conninfo_to_dict(owner)
    secret = str(parts.get("password") or "")
    password = hmac.new(secret.encode(), role.encode(), hashlib.sha256).hexdigest()[:32]
    return _as_url({**parts, "user": role, "password": password})


def with_database(url: str, database: str) -> str:
    """`url`, for another database of the same server."""
    return _as_url({**conninfo_to_dict(url), "dbname": database})


def password_in(url: str) -> str:
    """The password that `url` carries, or nothing."""
    return str(conninfo_to_dict(url).get("password") or "")


def connect(url: str, *, timeout: timedelta = timedelta(0), autocommit: bool = False) -> Connection:
    """A connection outside any pool, for migrations, advisory locks and COPY. `timeout` is per statement; 0 is none.

    Raises:
        Transient: the server cannot be reached.
    """
    with translated():
        return psycopg.connect(url, autocommit=autocommit, **_arguments(timeout))


def worker_pool(settings: Settings, *, size: int = 2) -> Pool:
    """Connections of the workers' role, opened on first use; `size` is the most there will be."""
    return _pool(worker_url(settings), settings.statement_timeout, size, pooler=settings.postgres_pooler)


def api_pool(settings: Settings, *, size: int = 8, patience: timedelta = timedelta(seconds=30)) -> Pool:
    """Connections of the API's role. `patience`: how long to wait for one.

    Raises:
        Misconfigured: the role is stronger than one tenant at a time (`check_api_role`).
    """
    pool = _pool(api_url(settings), settings.api_statement_timeout, size, patience, pooler=settings.postgres_pooler)
    try:
        with transaction(pool) as tx:
            check_api_role(tx)
    except BaseException:
        pool.close()
        raise
    return pool


@contextmanager
def transaction(pool: Pool) -> Iterator[Cursor]:
    """One transaction: commits at the end, rolls back on an exception.

    Raises:
        Transient: the server is away, refused the connection or broke a deadlock; nothing was committed, or the outcome
            is unknown (repeat: every writer compares its stored position).
        Conflict: another transaction was first.
    """
    with translated(), pool.connection() as connection, connection.transaction(), connection.cursor() as tx:
        yield tx


@contextmanager
def tenant_transaction(pool: Pool, tenant: str) -> Iterator[Cursor]:
    """One transaction that sees the rows of `tenant` only (row-level security by the setting `app.tenant`)."""
    if not tenant:
        raise ValueError("a tenant transaction needs a tenant")
    with transaction(pool) as tx:
        tx.execute("SELECT set_config('app.tenant', %s, true)", (tenant,))
        yield tx


def check_api_role(tx: Cursor) -> None:
    """Refuse a role that row-level security would not hold back.

    Raises:
        Misconfigured: the current role is a superuser, bypasses row-level security, owns a table or may become
            a role that does.
    """
    row = tx.execute(_STRENGTH).fetchone()
    assert row is not None
    role, superuser, bypass, owns, stronger = row
    reasons = []
    if superuser:
        reasons.append("is a superuser")
    if bypass:
        reasons.append("bypasses row-level security")
    if owns:
        reasons.append(f"owns {owns}")
    if stronger:
        reasons.append(f"has the rights of {stronger}")
    if reasons:
        raise Misconfigured(f"TALLYBOOK_POSTGRES_API: role {role} {' and '.join(reasons)}; the API needs {API}")


_STRENGTH = """
SELECT r.rolname,
       r.rolsuper,
       r.rolbypassrls,
       (SELECT min(n.nspname || '.' || c.relname)
          FROM pg_class c
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relowner = r.oid
           AND c.relkind IN ('r', 'p', 'v', 'm')
           AND n.nspname !~ '^pg_'),
       (SELECT min(o.rolname)
          FROM pg_roles o
         WHERE pg_has_role(r.oid, o.oid, 'MEMBER')
           AND (o.rolname = 'tallybook_worker'  -- itself, too: the policies show it all tenants
                OR o.oid <> r.oid
                   AND (o.rolsuper OR o.rolbypassrls
                        OR EXISTS (SELECT FROM pg_namespace n WHERE n.nspowner = o.oid AND n.nspname = 'app'))))
  FROM pg_roles r
 WHERE r.rolname = current_user
"""


def try_lease(connection: Connection, name: str) -> int | None:
    """The fencing token of lease `name` if this connection now leads, else None. Held until the connection closes.

    `connection` is in autocommit mode, serves nothing else and goes through no pooler. Every write of the leader says
    `WHERE token = mine` on app.lease: a leader that was paused finds itself deposed.
    """
    with translated():
        held = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (f"lease {name}",)).fetchone()
        if held is None or not held[0]:
            return None
        row = connection.execute(_NEXT_TOKEN, (name,)).fetchone()
    assert row is not None
    return int(row[0])


_NEXT_TOKEN = """
INSERT INTO app.lease (name, token)
VALUES (%s, 1)
    ON CONFLICT (name) DO UPDATE
   SET token = lease.token + 1, taken_at = now()
RETURNING token
"""


class Listener:
    """Hears what other transactions tell on a channel (NOTIFY), on a connection that goes through no pooler."""

    def __init__(self, url: str, channel: str) -> None:
        """Connects with the first call of `wait`."""
        self._url = url
        self._channel = channel
        self._connection: Connection | None = None

    def wait(self, timeout: timedelta) -> bool:
        """Whether something was told within `timeout`, or since the last call. The first call only begins to listen.

        Raises:
            Transient: the server is away; call again after a pause.
        """
        try:
            if self._connection is None:
                self._connection = connect(self._url, autocommit=True)
                self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                return True  # what was told before nobody heard: look
            with translated():
                heard = list(self._connection.notifies(timeout=timeout.total_seconds(), stop_after=1))
        except BaseException:
            self.close()
            raise
        return bool(heard)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into reactions: Transient, Conflict or Misconfigured; a bug stays what it is."""
    try:
        yield
    except (psycopg.errors.InvalidPassword, psycopg.errors.InvalidAuthorizationSpecification) as error:
        raise Misconfigured(f"Postgres refused the role: {error}") from error
    except (psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable) as error:
        raise Conflict(str(error)) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        if "password authentication failed" in str(error):
            raise Misconfigured(f"Postgres refused the role: {error}") from error
        raise Transient(f"Postgres: {error}") from error


def set_role_password(tx: Cursor, role: str, password: str) -> None:
    """Give `role` the password that its URL carries."""
    tx.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))


def create_database(owner: str, name: str) -> str:
    """Create the empty database `name` on the server of `owner`; returns the owner's URL of it."""
    with connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return with_database(owner, name)


def drop_database(owner: str, name: str) -> None:
    """Remove the database `name` with all it holds, whoever is connected to it."""
    with connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _pool(
    url: str, timeout: timedelta, size: int, patience: timedelta = timedelta(seconds=30), *, pooler: bool
) -> Pool:
    arguments = _arguments(timeout)
    if pooler:
        arguments["prepare_threshold"] = None
    return ConnectionPool(
        url,
        connection_class=psycopg.Connection[TupleRow],
        kwargs=arguments,
        min_size=0,
        max_size=size,
        timeout=patience.total_seconds(),
        reset=_forget,
        check=ConnectionPool.check_connection,
        open=True,
    )


def _forget(connection: Connection) -> None:
    connection.autocommit = True
    # All that DISCARD ALL does but for prepared statements: the driver would go on calling those that it dropped.
    connection.execute(
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *;"
        " SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP"
    )
    connection.autocommit = False


def _arguments(timeout: timedelta) -> dict[str, Any]:
    options = {
        "statement_timeout": int(timeout.total_seconds() * 1000),
        "idle_in_transaction_session_timeout": 60_000,
        "timezone": "UTC",
    }
    return {
        "connect_timeout": 5,
        "tcp_user_timeout": 20_000,
        "keepalives_idle": 10,
        "application_name": "tallybook",
        "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
    }


def _as_url(parts: dict[str, Any]) -> str:
    """Connection parameters as a URL."""
    rest = {name: str(value) for name, value in parts.items() if value is not None}
    user, password = (quote(rest.pop(name, ""), safe="") for name in ("user", "password"))
    host, port, database = rest.pop("host", ""), rest.pop("port", ""), rest.pop("dbname", "")
    if host.startswith("/") or "," in host:
        rest["host"], host = host, ""
    place = f"{host}:{port}" if port else host
    return f"postgresql://{user}{':' if password else ''}{password}@{place}/{database}" + (
        f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    )
