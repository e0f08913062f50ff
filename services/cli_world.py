"""How commands of the command line reach the system: straight to Kafka and Postgres, by the settings' addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from billing.errors import Rejected
from infra import postgres
from infra.errors import Transient
from infra.postgres import Cursor
from infra.settings import Settings
from services import read_models

ACTOR = "cli"


def settings() -> Settings:
    """The settings of this call.

    Raises:
        Misconfigured: one of them is bad.
    """
    return Settings.from_env(os.environ)


@contextmanager
def reading(given: Settings) -> Iterator[Cursor]:
    """A transaction on the current projections, over all tenants.

    Raises:
        Transient: Postgres does not answer, or nothing was ever projected.
    """
    url = postgres.worker_url(given)
    with postgres.connect(url) as connection, connection.cursor() as tx, postgres.translated():
        yield read_models.entered(tx)


def the_tenant(tx: Cursor, asked: str | None) -> str:
    """`asked`, or the only tenant there is.

    Raises:
        Rejected: it is not registered, or there is not exactly one to choose.
        Transient: no tenant is known yet.
    """
    known = [each.tenant for each in read_models.tenants(tx)]
    if asked is not None:
        if asked not in known:
            raise Rejected("unknown_tenant", f"there is no tenant {asked!r}; known: {', '.join(known) or 'none'}")
        return asked
    if not known:
        raise Transient("no tenant is known yet; `tallybook catalog apply FILE` registers one")
    if len(known) > 1:
        raise Rejected("tenant_needed", f"which tenant? --tenant {' | '.join(known)}")
    return known[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """`rows` under `header`, one line each however wide; the columns named in `right` end at the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    aligned = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(aligned)
