"""`tallybook catalog`: prices as code."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from billing.catalog import PublishPriceBook
from billing.envelope import CommandResult, Outcome
from billing.errors import Rejected
from billing.ids import SubscriptionId
from billing.plan_change import MigrateSubscription
from billing.tenant import RegisterTenant
from infra import postgres
from infra.errors import Transient
from infra.settings import Settings
from services import catalog_apply, catalog_plan, cli_world, customer_profile, meter_publisher, read_models
from services.catalog_apply import Change, World
from services.catalog_file import BadCatalog, CatalogFile, read
from services.commands import CommandClient
from services.customer_profile import Profile
from services.read_rows import SubscriptionRow

REFUSED = 1
METERED_WITHIN_S = 60
LOOK_AGAIN_S = 0.05

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="YAML or JSON.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Instead of `tenant.id` of the file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the file and say what would be asked for.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add `catalog`."""
    group = typer.Typer(help="Prices as code.", no_args_is_help=True)
    app.add_typer(group, name="catalog")
    group.command()(check)
    group.command()(plan)
    group.command()(apply)
    group.command()(migrate)


def check(file: File, as_json: AsJson = False) -> None:
    """Check a catalogue file; exit code 1 and every mistake with its line if it could not be applied."""
    found = _read(file, as_json)
    if as_json:
        typer.echo(json.dumps({"sha256": found.sha256, "faults": []}))
    else:
        typer.echo(f"{file}: good")


def plan(
    file: File,
    tenant: Tenant = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 if there are differences.")] = False,
    as_json: AsJson = False,
) -> None:
    """What publishing a catalogue file would change against the newest price book, for whom, and from when."""
    found = _read(file, as_json)
    name = _named(found, tenant)
    with cli_world.reading(cli_world.settings()) as tx:
        known = read_models.tenant(tx, name)
        zone = found.tenant.zone if found.tenant else known.zone if known else "UTC"
        planned = catalog_plan.planned(
            read_models.price_book(tx, name),
            found.price_book,
            catalog_apply.effective_at(found, lambda: zone),
            read_models.subscribers(tx, name),
        )
    typer.echo(catalog_plan.as_json(planned) if as_json else catalog_plan.as_text(planned, zone))
    if exit_code and planned.differences:
        raise typer.Exit(REFUSED)


def migrate(
    plan: Annotated[str, typer.Option("--plan", help="Key of the plan whose subscribers are migrated.")],
    now: Annotated[bool, typer.Option("--now", help="At once, and not at the end of their periods.")] = False,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Needed if there is more than one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say who would be migrated.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put all subscribers of a plan on its newest version, by default when their periods end.

    Exit code 1 if some are refused; the others are migrated. Running it again does the rest.
    """
    settings = cli_world.settings()
    with cli_world.reading(settings) as tx:
        name = cli_world.the_tenant(tx, tenant)
        newest = read_models.price_book(tx, name)
        version = newest.version if newest else 0
        subscribers = read_models.on_other_versions(tx, name, plan, version)
    if dry_run:
        if as_json:
            typer.echo(json.dumps({"plan": plan, "price_book_version": version, "subscriptions": subscribers}))
            return
        typer.echo(f"would migrate {len(subscribers)} subscriptions of {plan} to price book {version}; nothing changed")
        return
    migrated, refused = _migrated(settings, name, subscribers, at_period_end=not now)
    if as_json:
        typer.echo(json.dumps({"plan": plan, "migrated": migrated, "refused": refused}))
    else:
        for id, said in refused.items():
            typer.echo(f"{id}: {said}", err=True)
        typer.echo(f"migrated {len(migrated)} of {len(subscribers)} subscriptions of {plan}")
    if refused:
        raise typer.Exit(REFUSED)


def _migrated(
    settings: Settings, tenant: str, subscribers: list[str], *, at_period_end: bool
) -> tuple[list[str], dict[str, str]]:
    """Those that are migrated, and why the others are not."""
    migrated, refused = [], {}
    with CommandClient(settings) as client:
        for id in subscribers:
            command = MigrateSubscription(subscription_id=SubscriptionId(id), at_period_end=at_period_end)
            result = client.request(tenant, command, key=f"cli:migrate:{uuid4().hex}", actor=cli_world.ACTOR)
            if result.outcome is Outcome.REJECTED:
                refused[id] = f"{result.detail} [{result.code}]"
            else:
                migrated.append(id)
    return migrated, refused


def _named(file: CatalogFile, tenant: str | None) -> str:
    name = tenant or file.tenant_id
    if name is None:
        raise typer.BadParameter("the file has no tenant.id; name one", param_hint="--tenant")
    return name


def apply(file: File, tenant: Tenant = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Make the tenant be what a catalogue file says; what is so already stays. Exit code 1 if it is refused.

    Returns when the meters are in force: usage sent from then on is measured by them.
    """
    found = _read(file, as_json)
    name = _named(found, tenant)
    if dry_run:
        _report(name, catalog_apply.planned(found), as_json)
        if not as_json:
            typer.echo("nothing changed")
        return
    done: list[Change] = []
    try:
        with _world(cli_world.settings(), name) as world:
            for change in catalog_apply.apply(found, world):
                done.append(change)
                if not as_json:
                    _print(change)
    except Rejected:
        if not as_json:
            typer.echo(f"stopped after {len(done)} steps, which are done", err=True)
        raise
    if as_json:
        _report(name, done, as_json)
        return
    changed = sum(each.outcome != catalog_apply.UNCHANGED for each in done)
    typer.echo(f"tenant {name}: {changed} of {len(done)} changed")


def _read(file: Path, as_json: bool) -> CatalogFile:
    try:
        return read(file.read_bytes())
    except BadCatalog as e:
        if as_json:
            typer.echo(json.dumps({"faults": [{"line": line, **asdict(fault)} for line, fault in e.found]}))
        for line, fault in e.found:
            where = f"{fault.field}: " if fault.field else ""
            typer.echo(f"{file}:{line}: {where}{fault.detail} [{fault.code}]", err=True)
        raise typer.Exit(REFUSED) from e


@contextmanager
def _world(settings: Settings, tenant: str) -> Iterator[World]:
    pool = postgres.worker_pool(settings)

    def write_profile(customer: str, profile: Profile) -> bool:
        with postgres.transaction(pool) as tx:
            return customer_profile.write(tx, tenant, customer, profile)

    def zone() -> str:
        with postgres.transaction(pool) as tx:
            row = read_models.tenant(read_models.entered(tx), tenant)
        if row is None:
            raise Rejected("unknown_tenant", f"tenant {tenant!r} is not registered; give its section", field="tenant")
        return row.zone

    def subscription(id: str) -> SubscriptionRow | None:
        with postgres.transaction(pool) as tx:
            return read_models.subscription(read_models.entered(tx), tenant, id)

    def until_metered(sequence: int) -> None:
        deadline = time.monotonic() + METERED_WITHIN_S
        while True:
            with postgres.transaction(pool) as tx:
                if meter_publisher.published(tx, tenant) >= sequence:
                    return
            if time.monotonic() > deadline:
                raise Transient(f"after {METERED_WITHIN_S} s the meters are not in force: is the process `meters` up?")
            time.sleep(LOOK_AGAIN_S)

    measured_by = 0
    try:
        with CommandClient(settings) as client:

            def ask(command: Any, key: str) -> CommandResult:
                nonlocal measured_by
                result = client.request(tenant, command, key=key, actor=cli_world.ACTOR)
                if isinstance(command, RegisterTenant | PublishPriceBook):
                    measured_by = max(measured_by, result.last_sequence)
                return result

            yield World(
                ask=ask,
                write_profile=write_profile,
                zone=zone,
                subscription=subscription,
            )
        until_metered(measured_by)
    finally:
        pool.close()


def _report(tenant: str, changes: list[Change], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "changes": [asdict(each) for each in changes]}))
        return
    for change in changes:
        _print(change)


def _print(change: Change) -> None:
    typer.echo(f"{change.outcome:15}{change.what:13}{change.id}{'  ' + change.detail if change.detail else ''}")
