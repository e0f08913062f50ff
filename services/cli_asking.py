"""Asking for a change from the command line: the wish, its acceptance, and what came of it once reads show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar
from uuid import uuid4

import typer

from billing.envelope import CommandResult, Outcome
from billing.errors import Rejected
from infra.errors import Transient
from infra.postgres import Cursor
from services import cli_world, read_models
from services.commands import CommandClient

READ_WITHIN_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05

Tenant = Annotated[str | None, typer.Option("--tenant", help="Needed if there is more than one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked for.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Row = TypeVar("Row")
Read = Callable[[Cursor, str], Row | None]
"""The resource that is changed, by tenant; None if there is none."""


def known(tenant: str | None, read: Read[Row], missing: Rejected) -> Row:
    """The resource as reads show it.

    Raises:
        Rejected: `missing`, if there is none.
        Transient: Postgres does not answer.
    """
    with cli_world.reading(cli_world.settings()) as tx:
        row = read(tx, cli_world.the_tenant(tx, tenant))
    if row is None:
        raise missing
    return row


def changed(command: Any, tenant: str | None, kind: str, read: Read[Row]) -> Row:
    """The resource as the accepted command left it. `kind` of resource stands in the command's key.

    Raises:
        Rejected: the command was refused.
        Transient: the outcome is unknown, or reads do not show it within 10 seconds.
    """
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        name = cli_world.the_tenant(tx, tenant)
    with CommandClient(settings) as client:
        result = client.request(name, command, key=f"cli:{kind}:{uuid4().hex}", actor=cli_world.ACTOR)
    sequence = accepted(result).sequence
    deadline = time.monotonic() + READ_WITHIN_S
    while True:
        with cli_world.reading(settings) as tx:
            seller, row = read_models.tenant(tx, name), read(tx, name)
        if seller is not None and row is not None and seller.last_sequence >= sequence:
            return row
        if time.monotonic() > deadline:
            raise Transient("it is accepted, but reads do not show it yet: is the process `projector` up?")
        time.sleep(_LOOK_AGAIN_S)


def accepted(result: CommandResult) -> CommandResult:
    """`result`, if it was accepted.

    Raises:
        Rejected: it was not.
    """
    if result.outcome is Outcome.REJECTED:
        raise Rejected(result.code, result.detail, field=result.field)
    return result
