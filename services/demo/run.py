"""The main job: a year of flights becomes paid invoices, while three processes are killed.

start everything, apply the catalogue
send the year: each day shuffled, 2 % of the events twice             kill -9 usage-aggregator
move the test clock over twelve month ends, one after the other       kill -9 projector, command-handler
print the airlines, the totals, the rates; reconcile; verify the replay
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.settings import Settings
from services.demo.flights import NEW_YORK, as_sent, departures
from services.demo.progress import Account, Books
from services.demo.stage import Stage
from tallybook_sdk import UsageEvent, UsageProducer

TENANT = "airport"
CATALOG = Path(__file__).parents[2] / "examples" / "airport" / "catalog.yaml"
SEED = 2013
REPEAT_PERCENT = 2
MONTH_ENDS = [datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=NEW_YORK) for month in range(1, 13)]
KILLED_AT_MONTH_END = {3: "projector", 6: "command-handler"}


@dataclass
class Report:
    """What the demonstration found, for people and for programs."""

    events: dict[str, int] = field(default_factory=dict)
    """Events sent per airline, without repetitions."""
    sent: int = 0
    """Events sent, with repetitions."""
    accounts: list[Account] = field(default_factory=list)
    rates: list[tuple[str, str]] = field(default_factory=list)
    """Stage and its throughput."""
    reconciliation: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    charges: list[dict[str, Any]] = field(default_factory=list)
    """The payment provider's own book of successful charges: the witness."""
    invoices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether usage is conserved, the replay identical, and every invoice paid."""
        return (
            bool(self.accounts)
            and all(account.paid_minor == account.total_minor for account in self.accounts)
            and self.reconciliation.get("balanced") is True
            and self.verification.get("identical") is True
            and self.charged_once
        )

    @property
    def charged_once(self) -> bool:
        """Whether the provider charged every invoice once, and its amount."""
        charged = sorted((charge["metadata"]["invoice_id"], charge["amount"]) for charge in self.charges)
        return charged == sorted((invoice["id"], invoice["total"]["minor"]) for invoice in self.invoices)


def run(stage: Stage, *, days: int | None = None) -> Report:
    """The whole demonstration on `stage`; `days` limits the flights that are sent, for a quick look.

    Raises:
        Transient: something did not answer or did not get done in time; the message says where to look.
    """
    report = Report()
    started = time.monotonic()
    stage.say(stage.command("up").rstrip())
    stage.say(stage.command("catalog", "apply", str(CATALOG)).rstrip())
    settings = stage.settings()
    books = Books(settings, TENANT)
    try:
        _send_usage(stage, settings, report, days)
        _pass_the_year(stage, books, report)
        report.accounts = books.accounts()
    finally:
        books.close()
    _prove(stage, settings, report)
    report.rates.append(("whole demonstration", f"{time.monotonic() - started:,.0f} s"))
    return report


def _send_usage(stage: Stage, settings: Settings, report: Report, days: int | None) -> None:
    """Send the flights through the SDK, and kill the aggregator half-way."""
    stage.say(f"sending the flights of 2013: each day shuffled, {REPEAT_PERCENT} % of the events twice")
    events = list(_flights(days))
    report.events = dict(Counter(event.customer for event in {event.id: event for event in events}.values()))
    report.sent = len(events)
    killer = threading.Thread(target=stage.kill, args=("usage-aggregator",))
    started = time.monotonic()
    with UsageProducer(settings.require("kafka"), TENANT) as producer:
        for number, event in enumerate(events):
            if number == len(events) // 2:
                killer.start()
            producer.send(event)
        producer.flush()
    report.rates.append(("usage accepted by Kafka", _rate(len(events), "events", time.monotonic() - started)))
    killer.join()
    stage.wait(lambda: _usage_lag(stage) == 0, within_s=300, what="the usage aggregator to catch up")
    elapsed = time.monotonic() - started
    report.rates.append(("usage counted in Postgres, with one kill", _rate(len(events), "events", elapsed)))


def _flights(days: int | None) -> Iterator[UsageEvent]:
    events = departures()
    if days is not None:
        last = datetime(2013, 1, 1, tzinfo=NEW_YORK).toordinal() + days
        events = (event for event in events if event.time.astimezone(NEW_YORK).toordinal() < last)
    return as_sent(events, seed=SEED, repeat_percent=REPEAT_PERCENT)


def _usage_lag(stage: Stage) -> int | None:
    status = json.loads(stage.command("status", "--json", quiet=True, codes=(0, 1)))
    lag: int | None = status["processes"]["usage-aggregator"]["lag_records"]
    return lag


def _pass_the_year(stage: Stage, books: Books, report: Report) -> None:
    """Move the test clock over every month end; each time all that is due is billed and collected."""
    started = time.monotonic()
    for number, month_end in enumerate(MONTH_ENDS, start=1):
        clock = month_end.astimezone(UTC)
        stage.command("clock", "advance", "--tenant", TENANT, "--to", month_end.isoformat())
        if number in KILLED_AT_MONTH_END:
            stage.kill(KILLED_AT_MONTH_END[number])
        stage.wait(lambda: books.settled(clock), within_s=180, what=f"everything due by {month_end} to be done")  # noqa: B023
    elapsed = time.monotonic() - started
    count = sum(account.invoices for account in books.accounts())
    report.rates.append(("invoices issued and collected, with two kills", _rate(count, "invoices", elapsed)))


def _prove(stage: Stage, settings: Settings, report: Report) -> None:
    with urllib.request.urlopen(f"{settings.require('sandbox')}/book", timeout=10) as book:
        report.charges = json.load(book)["charges"]
    report.invoices = json.loads(stage.command("invoices", "list", "--tenant", TENANT, "--json"))
    report.reconciliation = json.loads(stage.command("reconcile", "--json", codes=(0, 1)))
    started = time.monotonic()
    report.verification = json.loads(stage.command("replay", "verify", "--json", codes=(0, 1)))
    report.rates.append(("replay of both logs, with comparison", f"{time.monotonic() - started:,.1f} s"))


def _rate(count: int, what: str, seconds: float) -> str:
    return f"{count:,} {what} in {seconds:,.1f} s = {count / seconds:,.0f}/s"
