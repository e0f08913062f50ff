"""`tallybook entitlements`: may a customer use a feature, and parts of hard limits, promised before they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, TypeVar
from uuid import uuid4

import typer

from billing.errors import Rejected
from infra import postgres
from infra.redis_cache import RedisCache
from services import cli_world
from services.cli_asking import AsJson, Tenant
from services.entitlements import Entitlements
from services.reservations import TTL_MAX, Reservation, Reservations

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="Id of the customer.")]
Feature = Annotated[str, typer.Argument(metavar="FEATURE", help="Key of the feature.")]
Id = Annotated[str, typer.Argument(metavar="RESERVATION", help="Its id, as `reserve` told it.")]
Done = TypeVar("Done")


def register(app: typer.Typer) -> None:
    """Add `entitlements`."""
    group = typer.Typer(help="What customers may use, and reservations of hard limits.", no_args_is_help=True)
    app.add_typer(group, name="entitlements")
    for command in (check, reserve, show, commit, release):
        group.command()(command)


def check(customer: Customer, feature: Feature, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Whether one more unit of FEATURE may be used, as the API answers it. Exit code 1: it may not."""
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = cli_world.the_tenant(tx, tenant)
    with postgres.worker_pool(settings, size=1) as pool, closing(RedisCache(settings)) as cache:
        answer = Entitlements(cache, pool).access(chosen, customer, feature)
    access = answer.access
    if as_json:
        print(json.dumps(asdict(answer), default=str))
    else:
        share = "" if access.limit is None else f", {_plain(access.used)} of {_plain(access.limit)} used"
        told = f"{answer.source}{', stale' if answer.stale else ''}"
        print(f"{'yes' if access.allowed else 'no'}: {access.reason}{share} (from {told}; when unknown: ", end="")
        print(f"{answer.when_unknown.value})")
    raise typer.Exit(0 if access.allowed else 1)


def reserve(
    customer: Customer,
    feature: Feature,
    quantity: Annotated[str, typer.Argument(metavar="QUANTITY", help="In the unit of the feature's limit.")],
    ttl: Annotated[
        int,
        typer.Option(
            min=1, max=int(TTL_MAX.total_seconds()), help="Seconds until it lapses, if nothing becomes of it."
        ),
    ] = 60,
    key: Annotated[
        str | None, typer.Option(help="Asked again with the same key, the same promise is told. Default: a new one.")
    ] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Promise QUANTITY of a hard limit: what is promised, with what is used, never exceeds it. Exit code 1: refused."""
    wanted, span = _quantity(quantity), timedelta(seconds=ttl)
    given = key or f"cli:{uuid4().hex}"
    granted = _done(tenant, lambda each, name: each.reserve(name, given, customer, feature, wanted, span))
    if as_json:
        print(json.dumps(asdict(granted), default=str))
        return
    left = "no hard limit" if granted.remaining is None else f"{_plain(granted.remaining)} can still be reserved"
    print(f"{_line(granted.reservation)}; {left}{'; as before, by its key' if granted.replayed else ''}")


def show(reservation: Id, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show a reservation as it stands."""
    _tell(_done(tenant, lambda each, name: each.find(name, reservation)), reservation, as_json)


def commit(
    reservation: Id,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Id of the usage event that uses it up.")],
    source: Annotated[str, typer.Option(help="Source of that event.")] = "file",
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Name the usage event that uses a reservation up; it ends when that event is counted. Free to repeat."""
    _tell(_done(tenant, lambda each, name: each.commit(name, reservation, source, event)), reservation, as_json)


def release(reservation: Id, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Give a reservation back unused. Free to repeat."""
    _tell(_done(tenant, lambda each, name: each.release(name, reservation)), reservation, as_json)


def _done(tenant: str | None, act: Callable[[Reservations, str], Done]) -> Done:
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        chosen = cli_world.the_tenant(tx, tenant)
    with postgres.worker_pool(settings, size=1) as pool:
        return act(Reservations(pool), chosen)


def _tell(found: Reservation | None, asked: str, as_json: bool) -> None:
    if found is None:
        raise Rejected("unknown_reservation", f"there is no reservation {asked!r}, or it ended days ago")
    print(json.dumps(asdict(found), default=str) if as_json else _line(found))


def _line(each: Reservation) -> str:
    until = f"until {each.expires_at:%Y-%m-%d %H:%M:%S} UTC" if each.state in ("held", "committed") else ""
    event = f"for event {each.source} {each.event_id}" if each.source else ""
    said = (each.id, each.state, _plain(each.quantity), "of", each.feature, "for", each.customer, event, until)
    return " ".join(part for part in said if part)


def _quantity(text: str) -> Decimal:
    try:
        wanted = Decimal(text)
    except InvalidOperation:
        wanted = Decimal(0)
    if not wanted.is_finite() or wanted <= 0:
        raise typer.BadParameter(f"{text!r} is no number above zero", param_hint="QUANTITY")
    return wanted


def _plain(number: Decimal | None) -> str:
    return "?" if number is None else f"{number.normalize():f}"
