"""`tallybook reconcile`: the conservation count of usage, per tenant."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.table import Table

from infra.settings import Settings
from services import cli_reconcile_hours
from services.reconcile import Reconciliation, reconcile

DIFFERENCES = 1
_COLUMNS = (
    "received", "counted", "unmatched", "duplicate", "conflict", "rejected", "billed", "unbilled", "voided",
    "pruned"
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add `reconcile`."""

    @app.command("reconcile")
    def run(
        tenant: Annotated[str | None, typer.Option(help="Report only this one.")] = None,
        hours: Annotated[
            bool, typer.Option("--hours", help="By hour, from the count that `recount` keeps: at once.")
        ] = False,
        last: Annotated[int, typer.Option(min=1, help="With --hours: how many of them are shown.")] = 24,
        as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    ) -> None:
        """Count the usage log again and hold it against what was counted and billed. Changes nothing.

        Exit code 0: everything balances; 1: there are differences.
        """
        settings = Settings.from_env(os.environ)
        if hours:
            adds_up = cli_reconcile_hours.report(settings, tenant, timedelta(hours=last), as_json=as_json)
            raise typer.Exit(0 if adds_up else DIFFERENCES)
        report = _with_progress(settings, tenant, quiet=as_json)
        if as_json:
            print(json.dumps(dataclasses.asdict(report) | {"balanced": report.balanced}))
        else:
            show(report, Console(width=None if sys.stdout.isatty() else 140))
        raise typer.Exit(0 if report.balanced else DIFFERENCES)


def show(report: Reconciliation, console: Console) -> None:
    """The table for people, then what differs."""
    table = Table("tenant", box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for each in report.tenants:
        table.add_row(each.tenant or "(not told)", *(f"{getattr(each, name):,}" for name in _COLUMNS))
    console.print(table)
    for each in report.tenants:
        for difference in each.differences:
            console.print(f"{each.tenant or '(not told)'}: {difference}", markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    console.print("balanced" if report.balanced else "differences found")


def _with_progress(settings: Settings, tenant: str | None, *, quiet: bool) -> Reconciliation:
    if quiet or not sys.stderr.isatty():
        return reconcile(settings, tenant=tenant)
    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(doing)
            bars.update(tasks[doing], completed=done, total=total)

        return reconcile(settings, progress, tenant)
