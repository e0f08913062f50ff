"""What the demonstration found, as a text."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from billing.money import Money
from services.demo.run import Report

CURRENCY = "USD"
_WIDTH = 100


def text(report: Report) -> str:
    """The airlines, the totals, the rates and the verdicts."""
    out = StringIO()
    console = Console(file=out, width=_WIDTH)
    console.print(_airlines(report))
    total = sum(account.total_minor for account in report.accounts)
    paid = sum(account.paid_minor for account in report.accounts)
    print(f"\nGrand total of all invoices with tax: {_amount(total)} {CURRENCY}; paid: {_amount(paid)}", file=out)
    verdict = "every invoice charged once" if report.charged_once else "DIFFERENCES FOUND"
    print(f"The payment provider's book: {len(report.charges):,} charges; {verdict}", file=out)
    print("\nTHROUGHPUT (this machine, everything on it)", file=out)
    for stage, rate in report.rates:
        print(f"  {stage:46} {rate}", file=out)
    print("\nCONSERVATION (tallybook reconcile)", file=out)
    out.writelines(f"  {line}\n" for line in _conservation(report.reconciliation))
    print("\nREPLAY (tallybook replay verify)", file=out)
    out.writelines(f"  {line}\n" for line in _verdict(report.verification))
    print(f"\n{'PASSED' if report.passed else 'FAILED'}", file=out)
    return out.getvalue()


def _airlines(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=True)
    rows = report.accounts
    events = sum(report.events.values())
    table.add_column("airline", "total")
    table.add_column("events", f"{events:,}", justify="right")
    table.add_column("invoices", f"{sum(row.invoices for row in rows):,}", justify="right")
    table.add_column("total", _amount(sum(row.total_minor for row in rows)), justify="right")
    table.add_column("paid", _amount(sum(row.paid_minor for row in rows)), justify="right")
    for row in rows:
        table.add_row(
            row.customer,
            f"{report.events.get(row.customer, 0):,}",
            str(row.invoices),
            _amount(row.total_minor),
            _amount(row.paid_minor),
        )
    return table


def _amount(minor: int) -> str:
    return str(Money(minor, CURRENCY))


def _conservation(reconciliation: dict[str, Any]) -> Iterable[str]:
    for tenant in reconciliation["tenants"]:
        received, counted, billed = (
            " + ".join(f"{tenant[name]:,} {name}" for name in names)
            for names in (
                ("received",),
                ("counted", "unmatched", "duplicate", "conflict", "rejected"),
                ("billed", "unbilled", "voided"),
            )
        )
        yield f"{tenant['tenant']}: {received} = {counted}"
        yield f"{tenant['tenant']}: {tenant['counted']:,} counted = {billed}"
        yield from tenant["differences"]
    yield "balanced" if reconciliation["balanced"] else "DIFFERENCES FOUND"


def _verdict(verification: dict[str, Any]) -> Iterable[str]:
    for name, tables in verification["tables"].items():
        rows = sum(table["rows"] for table in tables)
        differing = sum(table["missing"] + table["unexplained"] for table in tables)
        yield f"{name}: {len(tables)} tables, {rows:,} rows rebuilt from the log, {differing:,} differing"
    made = verification["invoices"]
    yield f"invoices rated and issued again from the log: {made['checked']:,}, {made['differing']:,} differing"
    yield "identical" if verification["identical"] else "DIFFERENCES FOUND"
